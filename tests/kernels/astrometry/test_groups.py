"""Frames that share no stars stay where their headers put them; those that do are found."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.astrometry.association import find_shift, seen_in
from gdask.kernels.astrometry.catalogue_tie import Reference
from gdask.kernels.astrometry.groups import linked_groups
from gdask.kernels.astrometry.measured_stars import Measurements
from gdask.kernels.astrometry.solution import solve
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky

CENTRE = (201.2925, -43.1015)
#: Middles of four arrays (arcsec), and half of the side that is read: 384 pixels.
MIDDLES, HALF = ((-21.2, -20.9), (21.4, -21.1), (20.8, 21.3), (-21.0, 20.7)), 3.8
ERROR = 1e-3
OUTLINE = tuple(
    np.array(
        [(x - HALF, y - HALF), (x + HALF, y - HALF), (x + HALF, y + HALF), (x - HALF, y + HALF)]
    )
    for x, y in MIDDLES
)


def sky(density, seed, half=130.0):
    """East, North (arcsec), flux of a field with so many stars per square arcsec."""
    rng = np.random.default_rng([seed, 5])
    n = int(density * (2 * half) ** 2)
    return (*rng.uniform(-half, half, (2, n)), 10 ** rng.uniform(3.5, 6, n))


def observe(stars, f, *, east=0.0, pa=0.0, seed=0, off=(0.0, 0.0), header=0.1, spurious=3):
    """Measure the stars in a frame `east` arcsec from the centre with a dither of about 2 arcsec.

    off: error of the header (arcsec) that frames may share, beside one of `header` of its own.
    Returns the measurements and the header's true error.
    """
    rng = np.random.default_rng([seed, f])
    dither = rng.uniform(-2, 2, 2) + (east, 0.0)
    ra0, dec0 = (float(v) for v in tangent_sky(*dither, *CENTRE))
    xi, eta = tangent_plane(*tangent_sky(*stars[:2], *CENTRE), ra0, dec0)
    c, s = np.cos(np.radians(pa)), np.sin(np.radians(pa))
    u, v = c * xi - s * eta, s * xi + c * eta
    inside = [(abs(u - x) < HALF) & (abs(v - y) < HALF) for x, y in MIDDLES]
    rows = np.flatnonzero(np.any(inside, axis=0) & (rng.uniform(size=len(u)) < 0.95))
    more = np.array(MIDDLES)[rng.integers(0, 4, spurious)] + rng.uniform(-HALF, HALF, (spurious, 2))
    x = np.append(u[rows] + rng.normal(0, ERROR, len(rows)), more[:, 0])
    y = np.append(v[rows] + rng.normal(0, ERROR, len(rows)), more[:, 1])
    flux = np.append(stars[2][rows], 10 ** rng.uniform(3.5, 5, spurious))
    wrong = rng.normal(0, header, 2) + off
    ra, dec = (float(w) for w in tangent_sky(*wrong, ra0, dec0))
    e, array = np.full(len(x), ERROR), (2 * (y > 0) + (x > 0)).astype(int)
    frame = Measurements(f"N{f}.fits", x, y, e, e, flux, array, ra, dec, pa, OUTLINE)
    return frame, wrong


def two_groups(seed, density=0.25, east=0.0, pa=0.0, **second):
    """Four frames of each of two groups, one after the other, and their headers' errors."""
    stars = sky(density, seed)
    first = [observe(stars, f, seed=seed) for f in range(4)]
    rest = [observe(stars, f, seed=seed, east=east, pa=pa, **second) for f in range(4, 8)]
    frames, wrong = zip(*first, *rest, strict=True)
    return stars, list(frames), np.array(wrong)


def left(solution, wrong):
    """What is left of each header's error (arcsec), against the mean of the first four."""
    rest = np.array([fit.shift for fit in solution.frames]) + wrong
    return rest - rest[:4].mean(axis=0)


@pytest.mark.parametrize(
    ("east", "pa"), [(15.0, 0.0), (25.0, 0.0), (0.0, 90.0), (0.0, 180.0), (70.0, 0.0)]
)
@pytest.mark.parametrize("density", [0.1, 0.25, 1.0])
def test_groups_that_share_no_stars_stay_on_their_headers(east, pa, density):
    for seed in range(3):
        _, frames, wrong = two_groups(seed, density, east, pa)
        solution = solve(frames)
        assert all(fit.ok for fit in solution.frames)
        rest = left(solution, wrong)
        assert np.hypot(*rest.T).max() < 0.35  # two means of four headers of 0.1 arcsec
        assert np.hypot(*(rest[:4] - rest[:4].mean(axis=0)).T).max() < 0.01
        assert np.hypot(*(rest[4:] - rest[4:].mean(axis=0)).T).max() < 0.01
        shared = _shared(frames, wrong)
        groups = [fit.group for fit in solution.frames]
        if not shared:
            assert sorted({*groups[:4]} | {*groups[4:]}) == [1, 2]
            assert len({*groups[:4]}) == len({*groups[4:]}) == 1


def _shared(frames, wrong):
    """Whether any star of the last four frames is within 10 mas of one of the first four."""
    places = []
    for frame, (east, north) in zip(frames, wrong, strict=True):
        ra, dec = tangent_sky(-east, -north, frame.ra, frame.dec)
        c, s = np.cos(np.radians(frame.pa)), np.sin(np.radians(frame.pa))
        x, y = c * frame.x + s * frame.y, c * frame.y - s * frame.x
        places.append(np.column_stack(tangent_plane(*tangent_sky(x, y, ra, dec), *CENTRE)))
    one, two = np.concatenate(places[:4]), np.concatenate(places[4:])
    return np.hypot(*(one[:, None] - two).transpose(2, 0, 1)).min() < 0.01


@pytest.mark.parametrize("off", [(0.2, -0.1), (2.5, 1.0), (-6.0, 7.0), (18.0, 11.0)])
def test_a_wrong_pointing_of_a_group_is_found_by_many_stars(off):
    """The second group is where the first is, with headers that are all wrong in the same way."""
    for seed in range(2):
        _, frames, wrong = two_groups(seed, 0.25, off=off)
        solution = solve(frames)
        assert [fit.group for fit in solution.frames] == [1] * 8
        assert np.hypot(*left(solution, wrong).T).max() < 0.01


@pytest.mark.parametrize("search", [0.5, 3.0])
def test_search_bounds_every_search(search):
    """Groups 6 arcsec off by their headers: beyond the search nothing is looked for."""
    _, frames, _ = two_groups(1, 0.25, off=(6.0, 0.0), header=0.02)
    solution = solve(frames, search=search)
    good = [fit for fit in solution.frames if fit.ok]
    assert len(good) >= 4 and all(np.hypot(*fit.shift) < search for fit in good)
    # All the stars that the headers promise are missing: one of the groups is elsewhere.
    reasons = [fit.reason for fit in solution.frames if not fit.ok]
    assert len(reasons) == 4 and all("that 4 others show there" in reason for reason in reasons)


def test_a_catalogue_ties_each_group():
    stars, frames, wrong = two_groups(2, 0.25, east=25.0, header=0.02, off=(0.3, -0.2))
    ra, dec = tangent_sky(*stars[:2], *CENTRE)
    reference = Reference(ra, dec, np.full(len(ra), 0.002), stars[2])
    solution = solve(frames, reference=reference)
    rest = np.array([fit.shift for fit in solution.frames]) + wrong
    assert {fit.group for fit in solution.frames} == {1, 2}
    assert all(fit.tied for fit in solution.frames) and np.hypot(*rest.T).max() < 0.005


def test_a_shift_needs_more_pairs_the_further_it_is():
    """Five common stars of forty convince near the header, but not 20 arcsec from it."""
    rng = np.random.default_rng(3)
    for off, ok in (((0.2, 0.1), True), ((14.0, -14.0), False)):
        xa, ya, xb, yb = rng.uniform(-15, 15, (4, 40))
        xb[:5], yb[:5] = xa[:5] - off[0], ya[:5] - off[1]
        shift = find_shift((xa, ya, np.ones(40)), (xb, yb, np.ones(40)), 30.0 if not ok else 1.0)
        assert shift.ok == ok, shift


def test_groups_are_numbered_by_size():
    frame, star = np.array([0, 1, 3, 4, 5, 3, 1]), np.array([7, 7, 1, 1, 2, 2, 7])
    assert linked_groups(frame, star, 7).tolist() == [1, 1, -1, 0, 0, 0, -1]
    assert linked_groups(frame[:0], star[:0], 2).tolist() == [-1, -1]
    chain = np.arange(200)
    links = np.append(chain, chain[1:]), np.append(chain, chain[:-1])
    assert (linked_groups(*links, 200) == 0).all()


def test_places_outside_a_raster_are_not_seen():
    from gdask.kernels.astrometry.association import Field

    field = Field(0.0, 0.0, 1.0, 2.0, np.array([[True, False], [False, True]]))
    x, y = np.array([0.5, 1.5, 1.5, -0.5, 2.5]), np.array([1.0, 1.0, 3.0, 1.0, 3.0])
    assert seen_in(field, x, y).tolist() == [True, False, True, False, False]
