"""The simulated array: linearity, noise, saturation, cosmic rays."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.simulate import gsaoi
from gdask.simulate.detector import (
    PLATEAU,
    Readout,
    cosmic_rays,
    full_well,
    measured_electrons,
    read_out,
)
from gdask.simulate.seeds import generator

_, ARRAYS = gsaoi.load_facts()


def test_measured_signal_is_the_inverse_of_the_linearity_polynomial() -> None:
    for array in ARRAYS:
        c0, c1, c2 = array["linearity"]
        for n in np.linspace(-50.0, 140000.0, 30):
            assert measured_electrons(n * (c0 + n * (c1 + n * c2)), c0, c1, c2) == pytest.approx(
                n, abs=1e-3
            )


@pytest.mark.parametrize("coadds", [1, 4])
@pytest.mark.parametrize("level", [3.0, 100.0, 20000.0])
def test_noise_of_a_read(level: float, coadds: int) -> None:
    readout = Readout(2.0, 10.0, 50000.0, (1.0, 0.0, 0.0), coadds, 0.1)
    raw = (
        read_out(generator(1, "test"), np.full((300, 300), level, np.float32), readout).astype(
            float
        )
        * 2.0
    )
    sigma = np.sqrt((level + 100.0) / coadds)
    assert raw.mean() == pytest.approx(level, abs=4 * sigma / 300)
    assert raw.std() == pytest.approx(sigma, rel=0.012)


def test_saturated_pixels_read_a_plateau_and_very_bright_cores_read_low() -> None:
    readout = Readout(2.4, 10.0, 52000.0, tuple(ARRAYS[0]["linearity"]), 1, 1 / 15)
    full = full_well(readout)
    expected = (full * np.array([[0.5, 1.2, 3.0, 6.0, 12.0, 30.0]])).astype(np.float32)
    raw = read_out(generator(1, "test"), expected, readout)[0]
    assert raw[0] < 0.6 * 52000
    np.testing.assert_allclose(raw[1:4], PLATEAU * 52000, rtol=1e-3)
    assert np.all(raw[1:4] >= 52000) and raw[3] > raw[4] > raw[5]
    assert raw[5] < 0.1 * 52000


def test_cosmic_rays_have_the_asked_rate_and_stay_inside() -> None:
    counts = [cosmic_rays(generator(i, "cr"), (64, 80), 5.0) for i in range(200)]
    tracks = np.array([hits.x.size > 0 for hits in counts])
    assert tracks.mean() > 0.97
    assert all(
        (hits.x < 80).all() and (hits.y < 64).all() and (hits.electrons > 0).all()
        for hits in counts
    )
    assert 5 * 2 < np.mean([hits.x.size for hits in counts]) < 5 * 10
