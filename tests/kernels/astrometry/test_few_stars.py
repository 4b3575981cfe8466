"""Frames with few or no stars: placed by those or by headers, or left out; never by cosmic rays."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.astrometry.measured_stars import Measurements, displace, to_common_plane
from gdask.kernels.astrometry.solution import solve
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky

CENTRE = (201.2925, -43.1015)
HALF, ERROR = 42.0, 5e-4  # half the field, error of a bright star's position (arcsec)
SQUARE = (np.array([(-HALF, -HALF), (HALF, -HALF), (HALF, HALF), (-HALF, HALF)]),)


def field(stars, seed=0):
    """East, North (arcsec) and flux of stars that a dither keeps in the field."""
    rng = np.random.default_rng([seed, 77])
    return (*rng.uniform(-30, 30, (2, stars)), 10 ** rng.uniform(4, 5, stars))


def observe(stars, f, *, seed=0, pointing=0.25, rays=3, hot=0, dither=8.0, lost=(), pa=0.0):
    """Make up one frame, with its sources in a scrambled order.

    rays: cosmic rays anywhere, of any brightness; hot: defects at fixed places of the detector;
    lost: rows of the stars that it does not show. Returns measurements and the true shift of the
    header.
    """
    rng = np.random.default_rng([seed, f])
    ra0, dec0 = (float(v) for v in tangent_sky(*rng.uniform(-dither, dither, 2), *CENTRE))
    east, north, flux = (np.delete(v, lost) for v in stars)
    xi, eta = tangent_plane(*tangent_sky(east, north, *CENTRE), ra0, dec0)
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    u, v = c * xi - s * eta, s * xi + c * eta
    u, v = u + rng.normal(0, ERROR, len(u)), v + rng.normal(0, ERROR, len(u))
    fixed = np.random.default_rng([seed, 99]).uniform(-HALF, HALF, (2, hot)) + rng.normal(
        0, 0.005, (2, hot)
    )
    u, v = (
        np.concatenate([a, b, rng.uniform(-HALF, HALF, rays)])
        for a, b in zip((u, v), fixed, strict=True)
    )
    bright = np.concatenate(
        [
            flux * rng.lognormal(0, 0.03, len(flux)),
            np.full(hot, 5e4),
            10 ** rng.uniform(3.5, 5, rays),
        ]
    )
    order = rng.permutation(len(u))
    off = rng.normal(0, pointing, 2)
    ra1, dec1 = (float(w) for w in tangent_sky(*off, ra0, dec0))
    e = np.full(len(u), ERROR)
    return Measurements(
        f"N{f}.fits",
        u[order],
        v[order],
        e,
        e,
        bright[order],
        np.zeros(len(u), int),
        ra1,
        dec1,
        pa,
        SQUARE,
    ), -off


def errors(frames, truths, solution):
    """By how much each placed frame's shift is off, relative to their median (arcsec).

    NaN where the frame is set aside.
    """
    got = np.array([fit.shift if fit.ok else (np.nan, np.nan) for fit in solution.frames])
    off = got - np.array(truths)
    return np.hypot(*(off - np.nanmedian(off, axis=0)).T)


def solved(stars, count=6, **how):
    frames, truths = zip(*[observe(stars, f, **how) for f in range(count)], strict=True)
    return frames, truths, solve(frames)


@pytest.mark.parametrize(("rays", "pa"), [(0, 0.0), (3, 137.0), (25, 0.0)])
@pytest.mark.parametrize("stars", [1, 2, 3, 5])
def test_a_few_stars_align_frames_to_the_precision_of_their_centroids(stars, rays, pa):
    for seed in range(2):
        frames, truths, solution = solved(field(stars, seed), seed=seed, rays=rays, pa=pa)
        assert all(fit.ok and fit.order == 0 and fit.terms <= 3 for fit in solution.frames)
        assert errors(frames, truths, solution).max() < 5 * ERROR
        if stars < 4:
            assert {fit.how for fit in solution.frames} == {
                f"shift by {stars} star{'s' * (stars > 1)}"
            }
            assert all(0 < fit.error < 15 for fit in solution.frames)


def distorted(frame, rng):
    """The frame with a turn, a scale and a distortion of its own."""
    terms = np.concatenate(
        [np.zeros(2), rng.normal(0, 0.002, 2), np.zeros(2), rng.normal(0, 0.01, 14)]
    )
    u, v = displace(frame.x, frame.y, terms)
    return frame._replace(x=frame.x - u, y=frame.y - v)


def test_the_error_of_a_place_by_few_stars_knows_of_the_frames_own_distortion():
    ratio = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 5])
        frames, truths = zip(
            *[observe(field(1 + seed % 3, seed), f, seed=seed, rays=0) for f in range(4)],
            strict=True,
        )
        solution = solve([distorted(frame, rng) for frame in frames])
        off = np.array([fit.shift for fit in solution.frames]) - np.array(truths)
        off = 1000 * (off - off.mean(axis=0)) * np.sqrt(4 / 3)
        ratio += list(off / np.array([fit.error for fit in solution.frames])[:, None])
    # So few measurements do not say what their errors beyond photon noise are: 3 mas are assumed,
    # rather too much.
    assert 0.35 < np.sqrt(np.mean(np.square(ratio))) < 1.1
    near, far = (np.array([[off], [-off], [3e4]]) for off in (2.0, 30.0))
    small, large = (
        max(fit.error for fit in solved(tuple(star), rays=0)[2].frames) for star in (near, far)
    )
    assert small < 4 and large > 5


def test_the_error_of_a_place_by_many_stars_is_theirs():
    """Frames without a turn are shifted only; had they one, many stars would have shown it."""
    ratio, shifted = [], 0
    for seed in range(6):
        frames, truths, solution = solved(field(80, seed), seed=seed, rays=0)
        shifted += sum(fit.terms == 2 for fit in solution.frames)
        off = np.array([fit.shift for fit in solution.frames]) - np.array(truths)
        off = 1000 * (off - off.mean(axis=0)) * np.sqrt(len(frames) / (len(frames) - 1))
        ratio += list(off / np.array([fit.error for fit in solution.frames])[:, None])
    assert shifted > 10  # it is these that are tested
    # They have no turn: what the stars leave open of one is stated, but not there.
    assert 0.5 < np.sqrt(np.mean(np.square(ratio))) < 1.4


@pytest.mark.parametrize("rays", [0, 3, 25])
def test_without_stars_all_keep_their_headers(rays):
    for seed in (3, 6):  # two skies of cosmic rays that look like stars
        _, _, solution = solved(field(0), seed=seed, rays=rays)
        assert all(fit.ok and fit.how == "header" and fit.error == 250 for fit in solution.frames)
        assert all(fit.shift == (0, 0) and not any(fit.correction_x) for fit in solution.frames)


def test_two_frames_with_one_star():
    wrong = 0
    for seed in range(40):
        frames, truths, solution = solved(field(1, seed), 2, seed=seed, rays=2)
        off = errors(frames, truths, solution)
        if all(fit.how == "shift by 1 star" for fit in solution.frames):
            wrong += off.max() > 5 * ERROR
    assert wrong == 0


def test_a_cosmic_ray_where_the_star_is_lost_moves_nothing():
    stars = field(1, 3)
    for seed in range(10):
        frames, truths = map(
            list, zip(*[observe(stars, f, seed=seed, rays=0) for f in range(5)], strict=True)
        )
        frames[2], truths[2] = observe(stars, 2, seed=seed, rays=1, lost=[0])
        # As bright as the star, two arcsec from where the header puts it.
        x, y = tangent_plane(
            *tangent_sky(stars[0][0], stars[1][0], *CENTRE), frames[2].ra, frames[2].dec
        )
        near = frames[2]._replace(
            x=np.array([x + 2.0]), y=np.array([float(y)]), flux=stars[2][:1] * 2
        )
        frames[2] = near
        solution = solve(frames)
        assert not solution.frames[2].ok and "too few stars" in solution.frames[2].reason
        assert np.nanmax(errors(frames, truths, solution)) < 5 * ERROR


def test_defects_of_the_detector_do_not_hold_the_frames():
    """Hot pixels are the same pattern in every frame, at minus the dither."""
    for stars in (0, 1, 2, 5):
        frames, truths, solution = solved(field(stars, 5), seed=5, rays=1, hot=9, dither=2.0)
        assert all(fit.ok for fit in solution.frames)
        if stars:
            assert errors(frames, truths, solution).max() < 5 * ERROR
        else:
            assert {fit.how for fit in solution.frames} == {"header"}
        assert all(
            len(fit.star) == len(frame.x)
            for fit, frame in zip(solution.frames, frames, strict=True)
        )


def test_a_frame_through_clouds_is_set_aside():
    stars = field(40, 1)
    frames = [observe(stars, f, rays=2)[0] for f in range(5)]
    frames.append(observe(stars, 5, rays=3, lost=np.arange(40))[0])
    frames.append(observe(stars, 6, rays=0, lost=np.arange(2, 40))[0])
    solution = solve(frames)
    assert [fit.ok for fit in solution.frames] == [True] * 5 + [False] * 2
    for fit in solution.frames[5:]:
        assert "too few stars" in fit.reason and "clouds" in fit.reason
    assert {fit.how for fit in solution.frames[:5]} == {"joint fit"}


def test_the_edge_of_a_mosaic_is_kept_where_no_star_is_expected():
    """Two frames further off: one shares a corner with three stars, one shares nothing."""
    stars = field(40, 2)
    frames, truths = map(list, zip(*[observe(stars, f, rays=2) for f in range(5)], strict=True))
    corner, beyond = observe(stars, 7, rays=0)[0], observe(stars, 8, rays=2)[0]
    for frame, east in ((corner, 60.0), (beyond, 110.0)):
        ra, dec = (float(v) for v in tangent_sky(east, 0.0, *CENTRE))
        frame_stars = tangent_plane(*tangent_sky(*stars[:2], *CENTRE), ra, dec)
        inside = abs(frame_stars[0]) < HALF
        e = np.full(inside.sum(), ERROR)
        moved = Measurements(
            frame.name,
            frame_stars[0][inside] + 0.1,
            frame_stars[1][inside] - 0.2,
            e,
            e,
            stars[2][inside],
            np.zeros(inside.sum(), int),
            ra,
            dec,
            0.0,
            SQUARE,
        )
        frames.append(moved)
        truths.append((-0.1, 0.2))
    solution = solve(frames)
    assert all(fit.ok for fit in solution.frames)
    assert solution.frames[6].how == "header" and solution.frames[6].shift == (0, 0)
    assert errors(frames, truths, solution)[5] < 5 * ERROR
    assert solution.frames[5].how.startswith("shift by") or solution.frames[5].how == "joint fit"
    kept_out = solve(
        frames, untrusted=["", "", "", "", "", "", "points 40 arcsec from its target and offsets"]
    )
    assert [fit.ok for fit in kept_out.frames] == [True] * 6 + [False]
    assert (
        "points 40 arcsec" in kept_out.frames[6].reason
        and "cannot be trusted" in kept_out.frames[6].reason
    )


def test_a_frame_of_another_field_is_no_sparse_frame():
    rng = np.random.default_rng(1)
    frames = [observe(field(40, 2), f, rays=2)[0] for f in range(4)]
    e = np.full(40, ERROR)
    stranger = Measurements(
        "X.fits",
        *rng.uniform(-HALF, HALF, (2, 40)),
        e,
        e,
        10 ** rng.uniform(4, 5, 40),
        np.zeros(40, int),
        *CENTRE,
        0.0,
        SQUARE,
    )
    assert [fit.ok for fit in solve([*frames, stranger]).frames] == [True] * 4 + [False]


def test_a_catalogue_moves_frames_without_stars_as_well():
    from gdask.kernels.astrometry.catalogue_tie import Reference

    stars = field(40, 2)
    frames = [observe(stars, f, rays=2, pointing=0.02)[0] for f in range(5)]
    moved = [frame._replace(dec=frame.dec + 0.7 / 3600) for frame in frames]
    empty = {name: np.zeros(0) for name in ("x", "y", "ex", "ey", "flux", "array")}
    ra, dec = (float(v) for v in tangent_sky(110.0, 0.7, *CENTRE))
    moved.append(moved[0]._replace(name="empty.fits", ra=ra, dec=dec, **empty))
    sky = tangent_sky(*stars[:2], *CENTRE)
    solution = solve(moved, reference=Reference(*sky, np.full(40, 0.005), stars[2]))
    fit = solution.frames[5]
    assert fit.how == "header" and fit.shift[1] == pytest.approx(-0.7, abs=0.05)
    dx, dy = displace(np.zeros(1), np.zeros(1), np.zeros(20))
    assert (
        dx == dy == 0
        and np.isfinite(to_common_plane(moved[5], np.zeros(1), np.zeros(1), CENTRE)).all()
    )


def test_same_bits_in_any_company_of_threads():
    frames = [observe(field(2, 1), f)[0] for f in range(5)]
    one, two = solve(frames), solve(frames)
    assert [f[1:13] for f in one.frames] == [f[1:13] for f in two.frames]
