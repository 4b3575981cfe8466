"""Positions and fluxes of single frames against the Cramer-Rao bound.

This is a small version of benchmarks/centroids.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.centroids import CAMERAS, measure
from gdask.kernels.sources.centroids import (
    FAILED,
    MISFIT,
    NEIGHBOUR,
    fit_positions,
    fit_positions_and_image,
)
from gdask.kernels.sources.detection import detect
from gdask.kernels.sources.photometry import aperture_fluxes
from gdask.kernels.sources.psf import round_forms, smooth_forms


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize(
    ("name", "crowding", "size"),
    [("gsaoi", "sparse", 640), ("f2", "sparse", 512), ("f2", "dense", 320)],
)
def test_errors_are_near_the_bound_and_as_claimed(name, crowding, size):
    """The star image is longer and wider towards the edges; S/N 20 to 5000 together."""
    m = measure(CAMERAS[name], crowding, "varying", size, 3)
    good = ((m["flags"] & (FAILED | NEIGHBOUR | MISFIT)) == 0) & ~m["hidden"] & (m["snr"] <= 1000)
    m = {key: value[good] for key, value in m.items() if key not in ("all", "times")}
    error = np.concatenate([m["dx"], m["dy"]])
    bound, claimed = np.concatenate([m["bx"], m["by"]]), np.concatenate([m["ex"], m["ey"]])
    limit = 4 / np.sqrt(2 * len(error))
    assert len(error) > 100
    assert rms(error / bound) < (1.0 if crowding == "sparse" else 1.2) * (1 + limit)
    # in a crowd, unseen stars below 3 % of the flux add what no error of a single star knows
    assert abs(rms(error / claimed) - 1) < (0.1 if crowding == "sparse" else 0.2) + limit
    phase = 2 * np.pi * np.concatenate([m["px"], m["py"]])
    waves = np.sqrt(2) * np.stack([np.sin(phase), np.cos(phase)])
    assert np.abs((waves * error / bound).mean(axis=1)).max() < 4 / np.sqrt(len(error))
    change = m["ratio"] / np.median(m["ratio"][m["snr"] == 1000]) - 1
    assert rms(change / m["bf"]) < (1.35 if crowding == "sparse" else 2.2) * (1 + limit)
    assert abs(rms(change / m["ef"]) - 1) < (0.15 if crowding == "sparse" else 0.3) + 2 * limit
    assert rms(change[m["snr"] == 1000]) < (0.003 if crowding == "sparse" else 0.01)


def test_forms_follow_the_array_and_fall_back_where_stars_are_few():
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0, 999, (2, 60))
    truth = np.stack([1 + 2e-4 * x, 1e-4 * (y - 500), 1 - 1e-4 * x], axis=1)
    found, errors = truth + rng.normal(0, 0.01, (60, 3)), np.full((60, 3), 0.01)
    found[7] = (3.0, 0.0, 3.0)  # not a star
    found[8] = np.nan
    wanted_x, wanted_y = np.array([100.0, 900.0]), np.array([900.0, 100.0])
    expected = np.stack([1 + 2e-4 * wanted_x, 1e-4 * (wanted_y - 500), 1 - 1e-4 * wanted_x], axis=1)
    forms = smooth_forms(x, y, found, errors, wanted_x, wanted_y, (1000, 1000))
    assert np.abs(forms - expected).max() < 0.03
    few = smooth_forms(x[:4], y[:4], found[:4], errors[:4], wanted_x, wanted_y, (1000, 1000))
    assert (few == round_forms(2)).all()


def test_an_unseen_companion_is_flagged_and_widens_the_error():
    camera = CAMERAS["f2"]
    m = measure(camera, "dense", "round", 256, 5)
    blended = m["hidden"] & (m["snr"] >= 200) & ((m["flags"] & (FAILED | NEIGHBOUR)) == 0)
    alone = ~m["hidden"] & (m["snr"] >= 200) & ((m["flags"] & (FAILED | NEIGHBOUR)) == 0)
    flagged = (m["flags"] & MISFIT) != 0
    assert flagged[blended].mean() > 0.7 and flagged[alone].mean() < 0.33


def gaussian_stars(x, y, flux, width=2.0, size=120, seed=0):
    """Data and variance (float32) and DQ of Gaussian stars on a flat sky."""
    yy, xx = np.mgrid[:size, :size].astype(float)
    image = sum(
        f * np.exp(-((xx - a) ** 2 + (yy - b) ** 2) / (2 * width**2)) / (2 * np.pi * width**2)
        for a, b, f in zip(x, y, flux, strict=True)
    )
    variance = image + 900.0
    data = image + np.random.default_rng(seed).normal(size=image.shape) * np.sqrt(variance)
    return data.astype("f4"), variance.astype("f4"), np.zeros(image.shape, "u2")


def test_apertures_do_not_count_neighbours_nor_bad_pixels():
    x, y, flux = (
        np.array([40.3, 50.1, 85.0, 30.0, 90.0]),
        np.array([60.2, 60.4, 30.7, 25.0, 95.0]),
        np.full(5, 3e5),
    )
    data, variance, dq = gaussian_stars(x, y, flux)
    dq[62, 41] = 1
    data[62, 41] = 5e5
    out, fits = fit_positions_and_image(data, variance, dq, x, y, fwhm=4.7)
    radii = np.array([4.7, 9.4])
    bad = dq != 0
    got, noise, lost = aperture_fluxes(
        fits.residual,
        variance,
        bad,
        fits.params,
        out["sky"].astype(float),
        np.zeros(5),
        fits.forms,
        fits.profile,
        fits.profile_step,
        radii,
    )
    known = 1 - np.exp(-(radii**2) / (2 * 2.0**2))
    assert np.abs(got / flux[:, None] / known - 1).max() < 0.015
    assert np.abs(noise[2] / (flux[2] * known + 900 * np.pi * radii**2) - 1).max() < 0.02
    assert lost[0, 0] > 0.01 and lost[2].max() == 0
    assert np.abs(out["flux"] / flux - 1).max() < 0.01


def test_a_single_star_and_a_bright_pixel_are_fitted():
    data, variance, dq = gaussian_stars([60.4], [59.7], [2e4])
    out = fit_positions(data, variance, dq, np.array([60.0]), np.array([60.0]), fwhm=4.7)
    assert np.hypot(out["x"] - 60.4, out["y"] - 59.7) < 0.2 and abs(out["flux"] / 2e4 - 1) < 0.1
    assert out["ex"] > 0.002 * 4.7 and out["eflux"] > 0
    data[:] = np.random.default_rng(0).normal(0, 30, data.shape)
    data[40, 40] = 5e4
    catalog, _ = detect(data, variance, dq, threshold=2.0, min_pixels=5, mesh=32)
    fit_positions(
        data,
        variance,
        dq,
        np.append(catalog["X_IMAGE"] - 1, 40),
        np.append(catalog["Y_IMAGE"] - 1, 40),
        fwhm=4.7,
    )
