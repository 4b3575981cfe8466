"""The sky of simulated nights: slopes, a ring, noise of rows, and the seeing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask import simulate
from gdask.simulate.rendering import Moffat
from gdask.simulate.seeds import generator
from gdask.simulate.sky_light import FLAT, SkyShape, drifted, row_noise, share_of_sky, sky_shape

NIGHT = {"size": 128, "n_science": 2, "n_darks": 0, "n_short_darks": 0, "n_lamps": 0}
NIGHT |= {"cr_rate": 0.0, "probe": "none"}


def test_slopes_drift_and_differ_on_and_off_target() -> None:
    args = {"gradient": 0.01, "ring": 0.002, "half_field": 40.0}
    shapes = [
        sky_shape(seed, field, mjd, **args)
        for seed in range(300)
        for field, mjd in (("target", 57000.1), ("target", 57000.11), ("sky", 57000.1))
    ]
    terms = np.array([shape.terms for shape in shapes]).reshape(300, 3, 5)
    assert terms[:, 0, :2].std() == pytest.approx(0.01, rel=0.15)
    assert terms[:, 0, 2:].std() == pytest.approx(0.005, rel=0.15)
    drift, off_target = terms[:, 1] - terms[:, 0], terms[:, 2] - terms[:, 0]
    assert 1e-4 < drift[:, 0].std() < off_target[:, 0].std()
    rings = np.array([shape.ring for shape in shapes])
    assert rings.mean() == pytest.approx(0.002, rel=0.1) and len(set(rings)) > 800
    assert sky_shape(1, "target", 57000.0, 0.0, 0.0, 40.0) is FLAT
    assert sky_shape(1, "", 57000.0, 0.1, 0.0, 40.0) is FLAT  # a flat has no sky


def test_the_share_is_that_of_the_law() -> None:
    shape = SkyShape((0.02, 0.0, 0.0, 0.0, 0.01), 0.005, 40.0)
    share = share_of_sky(shape, np.array([40.0, 0.0, 0.0]), np.array([0.0, 24.0, 40.0]))
    far = 0.005 * np.exp(-0.5 * (0.4 / 0.12) ** 2)
    expected = [1.02 - 0.01 / 3 + far, 1 + 0.01 * (0.36 - 1 / 3) + 0.005, 1 + 0.01 * 2 / 3 + far]
    np.testing.assert_allclose(share, expected, rtol=1e-12)


def test_pixels_have_the_slope_that_the_truth_tells(tmp_path: Path) -> None:
    """Frames with and without a slope differ by what frames.ecsv and scene.json say."""
    images = []
    for name, gradient in (("flat", 0.0), ("slope", 0.2)):
        simulate.simulate_f2(tmp_path / name, **NIGHT, sky_gradient=gradient)
        path = min((tmp_path / name / "raw").glob("*.fits"))
        images.append(fits.getdata(path).astype(float).squeeze())
    truth = tmp_path / "slope" / "truth"
    row = Table.read(truth / "frames.ecsv")[0]
    scene = json.loads((truth / "scene.json").read_text())
    terms, _, half = json.loads(str(row["sky_shape"]))
    assert "x = u / half" in scene["sky_law"]
    gain = 4.44
    flat = fits.getdata(truth / "flat_1.fits", "FLAT")
    light = row["sky"] * row["exptime"] * flat
    left, right = (np.s_[:, :32], np.s_[:, 96:])
    found = (images[1] - images[0]) * gain / light
    across = np.median(found[right]) - np.median(found[left])
    along = np.median(found[96:]) - np.median(found[:32])
    expected = sorted(abs(t) * 96 * scene["pixel_scale"] / half for t in terms[:2])
    assert sorted(np.abs([across, along])) == pytest.approx(expected, rel=0.1, abs=1.5e-3)


def test_rows_have_noise_of_one_over_f() -> None:
    rows = np.stack([row_noise(generator(n, "rows"), (512, 8), 6.0)[:, 0] for n in range(200)])
    assert rows.std() == pytest.approx(6.0, rel=0.01) and rows.shape == (200, 512)
    power = (np.abs(np.fft.rfft(rows, axis=1)) ** 2).mean(axis=0)
    low, high = power[4:8].mean(), power[64:128].mean()
    assert low / high == pytest.approx(94 / 5.4, rel=0.3)


def test_the_seeing_drifts() -> None:
    psf = (Moffat(0.4, 0.1, 4), Moffat(0.6, 0.5, 3))
    later = drifted(psf, 0.2, 57000 + 3.4 / 24)
    assert [part.fwhm for part in later] == pytest.approx([0.12, 0.6])
    assert drifted(psf, 0.0, 57000.9) == psf and drifted(psf, -1.0, 57000.9)[0].fwhm > 0
