"""Areas of pixels in resampled fluxes and variances, and the correlation of resampled noise."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.geometry.areas import AREA_NODE_SPACING, area_factors
from gdask.kernels.geometry.grid import common_grid, grid_to_sky, pixel_map
from gdask.kernels.geometry.projection import Geometry, from_sky, pixel_area
from gdask.kernels.resample.interpolation import (
    TAPS,
    aperture_noise,
    lag_correlation,
    noise_correlation,
)
from gdask.kernels.resample.resampling import resample

SIZE = 400
#: Pixels 1.5 % larger at one end than in the middle, and a frame whose own distortion changes areas
#: by another 2 %.
STATIC = Geometry(
    1.0,
    1.0,
    (-4.0, 0.0197, 0.0, 4e-7, 0.0, 0.0),
    (-4.0, 0.0, 0.0197, 0.0, 0.0, 3e-7),
    150.0,
    -30.0,
    20.0,
)
MOVED = STATIC._replace(
    correction_x=(0.01, 0.3, 0.0, 3.0, 0.0, 0.0), correction_y=(0.0, 0.0, -0.2, 0.0, 2.0, 0.0)
)
REFERENCE_AREA = float(pixel_area(STATIC, 200.0, 200.0))


def resampled(
    geometry: Geometry, data: np.ndarray, variance: np.ndarray, corrected: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Resampled data and variance on a grid of 0.02 arcsec; corrected: with area_factors."""
    grid = common_grid([geometry], [(SIZE, SIZE)], 0.02, 0.0, 150.0, -30.0)
    window = (0, grid.shape[0], 0, grid.shape[1])
    dq = np.zeros(data.shape, np.uint16)
    value, noise, _ = resample(
        data,
        variance,
        dq,
        *pixel_map(geometry, grid, window),
        area_ratio=grid.scale**2 / REFERENCE_AREA,
    )
    of_data, of_variance = area_factors(geometry, grid, window, REFERENCE_AREA)
    return (value * of_data, noise * of_variance) if corrected else (value, noise)


@pytest.mark.parametrize("geometry", [STATIC, MOVED])
def test_a_star_keeps_its_electrons_wherever_it_falls(geometry: Geometry) -> None:
    """A star's electrons over a flat that holds the static area.

    Without the factors the frame's own distortion shows.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    flat = pixel_area(STATIC, x, y) / REFERENCE_AREA
    grid = common_grid([geometry], [(SIZE, SIZE)], 0.02, 0.0, 150.0, -30.0)
    worst = {True: 0.0, False: 0.0}
    for place in ((60, 60), (60, 340), (340, 60), (340, 340), (200, 200)):
        electrons = (
            1e5 / (2 * np.pi * 9) * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / 18)
        )
        data = (electrons / flat).astype(np.float32)
        for corrected in (True, False):
            total = resampled(geometry, data, np.ones_like(data), corrected)[0].sum(dtype=float)
            worst[corrected] = max(worst[corrected], abs(total / electrons.sum() - 1))
    assert grid.shape[0] > SIZE / 2
    assert worst[True] < 2e-4
    assert (worst[False] > 5e-3) == (geometry is MOVED)


@pytest.mark.parametrize("geometry", [STATIC, MOVED])
def test_variance_is_that_of_sums(geometry: Geometry) -> None:
    """Sums of flat-fielded and resampled white noise scatter by sqrt(sum VAR).

    Sums are over 20 x 20 pixels.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(float)
    flat = pixel_area(STATIC, x, y) / REFERENCE_AREA
    rng = np.random.default_rng(4)
    pulls, pixels = [], []
    for _ in range(12):
        data = (rng.normal(0, 10, flat.shape) / flat).astype(np.float32)
        value, noise = resampled(geometry, data, (100 / flat**2).astype(np.float32))
        ny, nx = (n // 2 for n in value.shape)
        inside = (slice(ny - 120, ny + 120), slice(nx - 120, nx + 120))
        a, b = (
            np.add.reduceat(
                np.add.reduceat(p[inside].astype(float), range(0, 240, 20), 0), range(0, 240, 20), 1
            )
            for p in (value, noise)
        )
        pulls.append(a / np.sqrt(b))
        pixels.append(value[inside] / np.sqrt(noise[inside]))
    assert np.std(pulls) == pytest.approx(
        aperture_noise("quintic", 11.3), abs=0.05
    )  # 1728 sums: 0.017 rms
    assert np.std(pixels) == pytest.approx(
        noise_correlation("quintic") * 0.02 / REFERENCE_AREA**0.5, rel=0.01
    )


def test_factors_do_not_depend_on_the_window() -> None:
    grid = common_grid([MOVED], [(SIZE, SIZE)], 0.02, 0.0, 150.0, -30.0)
    whole = area_factors(MOVED, grid, (0, grid.shape[0], 0, grid.shape[1]), REFERENCE_AREA)
    part = area_factors(MOVED, grid, (37, 190, 101, 260), REFERENCE_AREA)
    for a, b in zip(whole, part, strict=True):
        assert a.dtype == np.float32 and a[37:190, 101:260].tobytes() == b.tobytes()


def test_factors_between_nodes_are_exact_enough() -> None:
    grid = common_grid([MOVED], [(SIZE, SIZE)], 0.02, 0.0, 150.0, -30.0)
    factor = area_factors(MOVED, grid, (0, grid.shape[0], 0, grid.shape[1]), REFERENCE_AREA)[0]
    halfway = AREA_NODE_SPACING // 2 + AREA_NODE_SPACING * np.arange(
        1, grid.shape[0] // AREA_NODE_SPACING - 1
    )
    gx, gy = np.meshgrid(halfway.astype(float), halfway.astype(float))
    x, y = from_sky(MOVED, *grid_to_sky(grid, gx, gy))
    exact = pixel_area(STATIC, x, y) / pixel_area(MOVED, x, y)
    np.testing.assert_allclose(factor[np.ix_(halfway, halfway)], exact, rtol=3e-6)


@pytest.mark.parametrize("kernel", TAPS)
def test_correlation_of_a_kernel(kernel: str) -> None:
    """Lags of both signs sum to 1: white noise keeps its power at large scales.

    Apertures go from a pixel to 1.
    """
    lags = lag_correlation(kernel)
    assert lags[0] + 2 * lags[1:].sum() == pytest.approx(1, abs=1e-5)
    assert lags[0] == pytest.approx(noise_correlation(kernel), rel=1e-6)
    steps = [aperture_noise(kernel, radius) for radius in (0.4, 1, 3, 30)]
    assert steps[0] == pytest.approx(noise_correlation(kernel), rel=1e-6) and steps[
        -1
    ] == pytest.approx(1, abs=5e-3)
    assert steps[0] < steps[1] < steps[2] < 1.001
