"""Detection and positions against stars whose places, fluxes and widths are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gdask.kernels.sources.background import background_mesh, interpolate_mesh
from gdask.kernels.sources.centroids import BAD_NEAR, EDGE, NEIGHBOUR, SATURATED, fit_positions
from gdask.kernels.sources.detection import CATALOG, detect, measure_fwhm, object_mask
from gdask.model import DQ, GdaskError

AO = ((0.42, 4.2, 4.0), (0.58, 22.8, 3.0))  # share, FWHM (pixels), Moffat beta: core and halo
SEEING = ((1.0, 25.4, 3.0),)


def moffat(r2, star):
    """Share of a star's light per pixel at a squared distance; star: Moffat components."""
    total = 0.0
    for share, fwhm, beta in star:
        a2 = (fwhm / 2) ** 2 / (2 ** (1 / beta) - 1)
        total = total + share * (beta - 1) / (np.pi * a2) * (1 + r2 / a2) ** -beta
    return total


def field(shape, x, y, flux, star, *, sky=1500.0, read=10.0, seed=0):
    """Simulate stars on a sky that slopes by 5 %, with photon and read noise.

    Returns data, variance (both float32) and dq.
    """
    yy, xx = np.mgrid[: shape[0], : shape[1]].astype(float)
    light = np.zeros(shape)
    for xc, yc, f in zip(x, y, flux, strict=True):
        light += f * moffat((xx - xc) ** 2 + (yy - yc) ** 2, star)
    light += sky * (1 + 0.05 * xx / shape[1])
    variance = light + read**2
    noise = np.random.default_rng(seed).normal(size=shape) * np.sqrt(variance)
    return (light + noise).astype("f4"), variance.astype("f4"), np.zeros(shape, "u2")


def grid(n, spacing, seed=1):
    """x, y of n * n stars on a lattice, displaced by up to half a pixel."""
    rng = np.random.default_rng(seed)
    g = np.arange(n) * spacing + spacing / 2
    return tuple(a.ravel() + rng.uniform(-0.5, 0.5, n * n) for a in np.meshgrid(g, g))


def nearest(catalog, x, y):
    """Index of the source nearest to each place (0-based pixels), and its distance."""
    d = np.hypot(
        catalog["X_IMAGE"] - 1 - np.reshape(x, (-1, 1)),
        catalog["Y_IMAGE"] - 1 - np.reshape(y, (-1, 1)),
    )
    return d.argmin(axis=1), d.min(axis=1)


def test_finds_every_isolated_star_and_nothing_else():
    x, y = grid(6, 50)
    flux = np.geomspace(1.5e4, 2e6, 36)
    data, variance, dq = field((300, 300), x, y, flux, AO)
    catalog, objects = detect(data, variance, dq, mesh=64)
    index, distance = nearest(catalog, x, y)
    assert catalog.dtype == CATALOG and len(catalog) == 36
    assert distance.max() < 1.0 and np.median(distance) < 0.15
    assert len(np.unique(index)) == 36
    assert (np.diff(catalog["FLUX_MAX"]) < 3 * 60).all() and list(catalog["NUMBER"]) == list(
        range(1, 37)
    )
    bright = flux > 1e5
    fwhm = catalog["FWHM_IMAGE"][index][bright]
    assert np.abs(fwhm / 4.4 - 1).max() < 0.2 and abs(measure_fwhm(catalog) / 4.4 - 1) < 0.05
    assert (
        np.isnan(catalog["X_WORLD"]).all()
        and objects[np.rint(y).astype(int), np.rint(x).astype(int)].all()
    )


def test_fluxes_and_their_errors():
    x, y = grid(5, 60)
    star = ((1.0, 6.0, 6.0),)
    ratios, pulls = [], []
    for seed in range(3):
        data, variance, dq = field((300, 300), x, y, np.full(25, 1e5), star, seed=seed)
        catalog, _ = detect(data, variance, dq, mesh=64)
        flux = catalog["FLUX_AUTO"][nearest(catalog, x, y)[0]]
        ratios.append(flux / 1e5)
        pulls.append((flux - np.median(flux)) / catalog["FLUXERR_AUTO"][nearest(catalog, x, y)[0]])
    assert abs(np.median(ratios) - 0.985) < 0.02
    assert 0.7 < np.std(pulls) < 1.6


def test_pixels_flagged_bad_make_no_source_and_no_background():
    rng = np.random.default_rng(3)
    data, variance, dq = field((256, 256), [], [], [], AO)
    clean, _ = background_mesh(data, dq != 0, 64)
    for y, x in rng.integers(5, 245, (200, 2)):
        data[y : y + 6, x : x + 6] = 5e4
        dq[y : y + 6, x : x + 6] = rng.choice([1, 4, 8, 16, 64])
    data[0, 0] = np.nan
    catalog, objects = detect(data, variance, dq, mesh=64)
    assert len(catalog) == 0 and objects.sum() == 0
    spoiled, _ = background_mesh(data, (dq != 0) | np.isnan(data), 64)
    assert np.abs(spoiled - clean).max() < 5.0


def test_background_follows_a_ramp_under_stars():
    x, y = grid(8, 32)
    data, _, dq = field((256, 256), x, y, np.full(64, 3e4), ((1.0, 4.0, 4.0),))
    level, sigma = background_mesh(data, dq != 0, 64)
    truth = 1500 * (1 + 0.05 * np.arange(256) / 256)
    assert np.abs(interpolate_mesh(level, data.shape)[128, 40:216] - truth[40:216]).max() < 12
    assert 38 < sigma.mean() < 46


def test_blends_are_split_and_broad_stars_are_not():
    data, variance, dq = field(
        (200, 200), [90, 97, 150], [90, 90, 150], [1e5, 4e4, 3e4], ((1.0, 4.2, 4.0),)
    )
    catalog, _ = detect(data, variance, dq, mesh=64)
    assert len(catalog) == 3 and sorted(catalog["FLAGS"] & 2) == [0, 2, 2]
    for seed in range(5):
        data, variance, dq = field((200, 200), [100.3], [99.6], [1e6], SEEING, seed=seed)
        assert len(detect(data, variance, dq, mesh=64)[0]) == 1


def test_a_saturated_star_with_a_dead_core_is_one_source():
    data, variance, dq = field((200, 200), [100.0], [80.0], [5e6], AO)
    yy, xx = np.mgrid[:200, :200]
    core = np.hypot(xx - 100, yy - 80) < 6
    dq[core] = int(DQ.SATURATED)
    data[core] = 20000.0
    data[np.hypot(xx - 100, yy - 80) < 3] = 100.0
    catalog, objects = detect(data, variance, dq, mesh=64)
    assert len(catalog) == 1 and catalog["FLAGS"][0] & 4
    assert np.hypot(catalog["X_IMAGE"][0] - 101, catalog["Y_IMAGE"][0] - 81) < 0.5
    assert objects[80, 100]


def test_the_object_mask_reaches_the_wings():
    data, variance, dq = field((300, 300), [150.0], [150.0], [1e6], SEEING)
    _, objects = detect(data, variance, dq, mesh=100)
    radius = np.hypot(*(np.mgrid[:300, :300] - 150.0))
    light = 1e6 * moffat(radius**2, SEEING)
    assert objects[light > 0.6 * 40].mean() > 0.99
    assert objects[light < 0.05 * 40].mean() < 0.02
    assert (objects != object_mask(data, dq, mesh=100)).mean() < 0.002


def test_threads_give_the_same_bits():
    x, y = grid(5, 40)
    data, variance, dq = field((200, 200), x, y, np.geomspace(1e4, 1e6, 25), AO)
    alone = detect(data, variance, dq, mesh=64)
    data.flags.writeable = False
    with ThreadPoolExecutor(3) as pool:
        for catalog, objects in pool.map(lambda _: detect(data, variance, dq, mesh=64), range(6)):
            assert catalog.tobytes() == alone[0].tobytes() and (objects == alone[1]).all()


def test_planes_of_different_shape_are_refused():
    plane = np.ones((20, 20), "f4")
    with pytest.raises(GdaskError, match="one shape"):
        detect(plane, plane, np.zeros((20, 21), "u2"))


def cramer_rao(flux, star, sky=1537.0, read=10.0):
    """Smallest possible error (pixels) of x: the inverse root of the Fisher information."""
    yy, xx = np.mgrid[-60:61, -60:61].astype(float)
    slope = (moffat((xx - 1e-3) ** 2 + yy**2, star) - moffat((xx + 1e-3) ** 2 + yy**2, star)) / 2e-3
    return (
        (flux * slope) ** 2 / (flux * moffat(xx**2 + yy**2, star) + sky + read**2)
    ).sum() ** -0.5


@pytest.mark.parametrize(
    ("star", "fwhm", "n", "spacing", "flux"),
    [(AO, 4.3, 12, 40, 3e4), (AO, 4.3, 12, 40, 1e6), (SEEING, 25.0, 4, 140, 1e6)],
)
def test_centroids_are_near_the_cramer_rao_bound(star, fwhm, n, spacing, flux):
    x, y = grid(n, spacing)
    noise = np.random.default_rng(7).normal(0, 0.3, (2, n * n))
    data, variance, dq = field((n * spacing,) * 2, x, y, np.full(n * n, flux), star)
    out = fit_positions(data, variance, dq, x + noise[0], y + noise[1], fwhm=fwhm)
    error = np.concatenate([out["x"] - x, out["y"] - y])
    bound = cramer_rao(flux, star)
    sampling = 4 / np.sqrt(len(error))  # 5.7 sigma of an rms
    assert np.sqrt((error**2).mean()) < 1.12 * bound * (1 + sampling)
    pull = error / np.concatenate([out["ex"], out["ey"]])
    assert abs(np.sqrt((pull**2).mean()) - 1) < 0.1 + sampling
    assert abs(error.mean()) < 5 * bound / np.sqrt(len(error))


def test_positions_carry_their_warnings():
    x = np.array([60.0, 66.0, 120.0, 160.0, 3.0])
    y = np.array([60.0, 60.0, 120.0, 60.0, 100.0])
    data, variance, dq = field((200, 200), x, y, [2e5, 1e6, 1e6, 3e5, 1e6], AO)
    dq[120, 120], dq[62, 160] = int(DQ.SATURATED), int(DQ.BAD_PIXEL)
    flags = fit_positions(data, variance, dq, x, y, fwhm=4.3)["flags"]
    assert flags[0] & NEIGHBOUR and flags[2] & SATURATED and flags[3] & BAD_NEAR and flags[4] & EDGE
    assert not flags[2] & (EDGE | NEIGHBOUR) and not flags[3] & (SATURATED | EDGE | NEIGHBOUR)
    assert len(fit_positions(data, variance, dq, x[:0], y[:0], fwhm=4.3)) == 0


def test_a_close_pair_is_fitted_together():
    x, y = np.array([80.2, 86.0, 30.4, 130.7, 40.1]), np.array([80.4, 78.0, 30.2, 130.3, 120.6])
    data, variance, dq = field((160, 160), x, y, [1e6, 5e5, 1e6, 1e6, 1e6], AO)
    out = fit_positions(data, variance, dq, x + 0.2, y - 0.2, fwhm=4.3)
    assert np.hypot(out["x"] - x, out["y"] - y).max() < 0.06
