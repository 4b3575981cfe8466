"""The joint solution against made-up frames whose pointing errors and distortions are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.solution import run
from gdask.kernels.astrometry.association import apply_shift, find_shift, match_pairs
from gdask.kernels.astrometry.catalogue_tie import Reference
from gdask.kernels.astrometry.measured_stars import Measurements
from gdask.kernels.astrometry.solution import solve
from gdask.kernels.geometry.projection import Geometry, tangent_plane, tangent_sky, to_sky
from gdask.model import GdaskError

CENTRE = (201.2925, -43.1015)
POWERS = ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
HALF = 42.0  # half the field, arcsec


def sky(n, seed=0):
    """ra, dec, flux of n stars around the centre."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-60, 60, (2, n))
    return *tangent_sky(x, y, *CENTRE), 10 ** rng.uniform(0, 3, n)


def observe(
    stars, f, *, pa=0.0, warp=0.006, pointing=0.05, turn=0.002, half=HALF, spread=6.0, seed=0
):
    """Make up one frame's measurements; returns these and its true distortion.

    It points near the centre; its header is off by `pointing` arcsec and its position angle by
    `turn` degrees; it has quadratic and cubic terms of `warp` arcsec at 60 arcsec; bright stars are
    good to 0.2 mas.
    """
    rng = np.random.default_rng([seed, f])
    ra, dec, flux = stars
    ra0, dec0 = (float(v) for v in tangent_sky(*rng.uniform(-spread, spread, 2), *CENTRE))
    xi, eta = tangent_plane(ra, dec, ra0, dec0)
    angle = np.radians(pa + rng.normal() * turn)
    u, v = np.cos(angle) * xi - np.sin(angle) * eta, np.sin(angle) * xi + np.cos(angle) * eta
    terms = rng.normal(size=(2, 7)) * warp
    basis = np.stack([(u / 60) ** i * (v / 60) ** j for i, j in POWERS])
    u, v = u - terms[0] @ basis, v - terms[1] @ basis
    seen = np.flatnonzero((abs(u) < half) & (abs(v) < half) & (rng.uniform(size=len(u)) < 0.9))
    error = np.maximum(2e-4, 0.02 / flux[seen] ** 0.8)
    u, v = (w[seen] + rng.normal(size=len(seen)) * error for w in (u, v))
    ra1, dec1 = (float(w) for w in tangent_sky(*(rng.normal(size=2) * pointing), ra0, dec0))
    bright = flux[seen] * rng.lognormal(0, 0.05, len(seen))
    array = (2 * (v > 0) + (u > 0)).astype(int)
    return Measurements(f"N{f}.fits", u, v, error, error, bright, array, ra1, dec1, pa), terms


def offsets_from_truth(solution, stars, faintest=100.0):
    """Bright stars' offsets from the truth (mas, East and North) after one global linear transform.

    Then the stars' places (arcsec) and their offsets before the transform.
    """
    ra, dec, flux = stars
    x, y = tangent_plane(ra, dec, solution.ra, solution.dec)
    found = solution.stars[solution.stars["n"] >= 3]
    ia, ib = match_pairs(x[flux > faintest], y[flux > faintest], found["x"], found["y"], 0.2)
    px, py = found["x"][ib], found["y"][ib]
    off = np.stack([x[flux > faintest][ia] - px, y[flux > faintest][ia] - py]) * 1000
    return _without_linear(off, px, py), (px, py), off


def _without_linear(values, x, y):
    design = np.column_stack([np.ones_like(x), x, y])
    return values - (design @ np.linalg.lstsq(design, values.T, rcond=None)[0]).T


def invisible_distortion(warps, x, y):
    """What no solution without a catalogue can see (mas).

    That is the mean of the frames' distortions, without its linear part.
    """
    basis = np.stack([(x / 60) ** i * (y / 60) ** j for i, j in POWERS])
    return _without_linear(np.mean(warps, axis=0) @ basis * 1000, x, y)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def spread(values):
    return float(1.4826 * np.median(np.abs(values)))


@pytest.mark.parametrize(
    ("move", "turn", "radius"),
    [
        ((0.05, -0.03), 0.0, 3.0),
        ((2.4, 1.5), 0.002, 3.0),
        ((25.0, -18.0), 0.0, 30.0),
        ((6.0, 4.0), 1.3, 30.0),
    ],
)
def test_finds_a_shift_in_a_crowded_field(move, turn, radius):
    stars = sky(6000)
    a, _ = observe(stars, 0, warp=0.0, spread=0.0)
    b, _ = observe(stars, 1, warp=0.0, spread=0.0)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    xb, yb = c * (b.x - move[0]) - s * (b.y - move[1]), s * (b.x - move[0]) + c * (b.y - move[1])
    rotations = tuple(np.arange(-20, 21) / 10) if turn > 1 else (0.0,)
    shift = find_shift((a.x, a.y, a.flux), (xb, yb, b.flux), radius, rotations=rotations)
    assert shift.ok and shift.contrast > 20
    x, y = apply_shift(shift, xb, yb)
    ia, ib = match_pairs(a.x, a.y, x, y, 0.15)
    assert len(ia) > 0.75 * len(b.x) and np.median(np.hypot(a.x[ia] - x[ib], a.y[ia] - y[ib])) < 0.1


@pytest.mark.parametrize("pa", [0.0, 37.0])
def test_nine_distorted_frames_reach_the_floor(pa):
    stars = sky(2500)
    frames, warps = zip(*[observe(stars, f, pa=pa) for f in range(9)], strict=True)
    solution = solve(frames)
    assert all(f.ok and f.order == 3 and f.n > 900 and f.rms < 0.6 for f in solution.frames)
    off, places, total = offsets_from_truth(solution, stars)
    assert rms(off) < 2.0 and spread(off) < 1.0
    if pa == 0:
        # Photon errors of 0.2 mas over 9 frames, and the mean distortion that stars do not show.
        rest = off - invisible_distortion(warps, *places)
        assert (
            rms(off) < 1.2 * rms(invisible_distortion(warps, *places)) + 0.2
            and spread(rest) < 0.35 * spread(off) + 0.1
        )
    # The group's origin is the headers' mean: 9 frames with errors of 50 mas and 0.002 degrees.
    assert np.abs(total.mean(axis=1)).max() < 4 * 50 / 3
    turned = np.polyfit(places[0], total[1], 1)[0] / 1000
    assert abs(np.degrees(turned)) < 4 * 0.002 / 3


def test_no_frame_is_the_perfect_one():
    """The mean correction over the frames is zero in every quadratic and cubic term."""
    stars = sky(2500)
    frames = [observe(stars, f, seed=3, spread=0.5)[0] for f in range(9)]
    corrections = np.array([(f.correction_x[3:], f.correction_y[3:]) for f in solve(frames).frames])
    assert np.abs(corrections.mean(axis=0)).max() < 0.1 * corrections.std()


def test_corrections_mean_what_geometry_says():
    stars = sky(1500)
    frames = [observe(stars, f, pa=120.0)[0] for f in range(5)]
    solution = solve(frames)
    for frame, fit in zip(frames, solution.frames, strict=True):
        straight = (0, 0, (0, 1.0, 0), (0, 0, 1.0))
        geometry = Geometry(
            *straight, frame.ra, frame.dec, frame.pa, fit.correction_x, fit.correction_y
        )
        ra, dec = to_sky(geometry, frame.x, frame.y)
        star = solution.stars[fit.star]
        north, east = (
            (dec - star["dec"]) * 3.6e6,
            (ra - star["ra"]) * 3.6e6 * np.cos(np.radians(dec)),
        )
        bright = frame.flux > 100
        assert spread(np.stack([east, north])[:, bright]) < 0.4
        assert np.allclose(east, fit.residual_x * 1000, atol=0.02)
        assert np.allclose(north, fit.residual_y * 1000, atol=0.02)


def test_faint_noise_does_not_shrink_the_sky():
    stars = sky(1500)
    frames = []
    for f in range(6):
        frame, _ = observe(stars, f, warp=0.0)
        noise = np.random.default_rng(f).normal(0, 0.03, (2, len(frame.x)))
        errors = {"ex": frame.ex + 0.03, "ey": frame.ey + 0.03}
        frames.append(frame._replace(x=frame.x + noise[0], y=frame.y + noise[1], **errors))
    _, (x, _), total = offsets_from_truth(solve(frames), stars, 1.0)
    # mas per arcsec: 2e-5 for 6 frames of 0.1 mas per arcsec
    assert abs(np.polyfit(x, total[0], 1)[0]) < 0.05


@pytest.mark.parametrize(("n", "most"), [(110, 3), (400, 12)])
def test_few_stars_get_few_terms(n, most):
    stars = sky(n, seed=2)
    frames = [observe(stars, f, half=20.0, spread=3.0)[0] for f in range(4)]
    solution = solve(frames)
    assert all(f.ok and 4 <= f.n and f.terms <= most for f in solution.frames)
    worst = max(np.abs(np.array(f.correction_x + f.correction_y)).max() for f in solution.frames)
    assert worst < 0.25  # pointing errors of 50 mas, no wild polynomial
    off, _, _ = offsets_from_truth(solution, stars)
    assert rms(off) < 3


def test_straight_frames_get_no_polynomial():
    stars = sky(1500)
    frames = [observe(stars, f, warp=0.0)[0] for f in range(6)]
    assert all(f.terms <= 6 for f in solve(frames).frames)


def test_wrong_pointings_are_found_and_strangers_set_aside():
    stars = sky(2000)
    frames = [observe(stars, f)[0] for f in range(6)]
    far = tangent_sky(18.0, -12.0, frames[2].ra, frames[2].dec)
    frames[2] = frames[2]._replace(ra=float(far[0]), dec=float(far[1]), pa=1.2)
    rng = np.random.default_rng(0)
    stranger = frames[5]._replace(
        x=rng.uniform(-42, 42, 700),
        y=rng.uniform(-42, 42, 700),
        flux=rng.pareto(1, 700),
        ex=np.full(700, 1e-3),
        ey=np.full(700, 1e-3),
        array=np.zeros(700, int),
    )
    nothing = frames[5]._replace(
        **{k: np.zeros(0) for k in ("x", "y", "ex", "ey", "flux", "array")}
    )
    solution = solve([*frames, stranger, nothing])
    assert [f.ok for f in solution.frames] == [True] * 6 + [False] * 2
    assert "pair" in solution.frames[6].reason or "peak" in solution.frames[6].reason
    assert "too few" in solution.frames[7].reason
    assert np.hypot(solution.frames[2].shift[0] + 18, solution.frames[2].shift[1] - 12) < 0.5
    off, _, total = offsets_from_truth(solution, stars)
    assert rms(off) < 2.0 and np.abs(total.mean(axis=1)).max() < 100


def test_a_catalogue_ties_the_group_as_one():
    stars = sky(2500)
    frames = [observe(stars, f, pa=37.0, pointing=0.5, turn=0.1)[0] for f in range(4)]
    known = np.flatnonzero(stars[2] > 30)
    rng = np.random.default_rng(4)
    x, y = tangent_plane(stars[0][known], stars[1][known], *CENTRE)
    ra, dec = tangent_sky(*(v + rng.normal(0, 0.005, len(known)) for v in (x, y)), *CENTRE)
    reference = Reference(ra, dec, np.full(len(known), 0.005), stars[2][known] / 7)
    solution = solve(frames, reference=reference)
    assert (
        solution.reference_tie.ok
        and solution.reference_tie.n > 400
        and 4 < solution.reference_tie.rms < 6
    )
    _, _, total = offsets_from_truth(solution, stars)
    assert (
        rms(total.mean(axis=1)) < 4 * 5 / np.sqrt(solution.reference_tie.n) + 0.2
        and spread(total) < 2.0
    )
    alone = solve(frames[:1], reference=reference)
    assert alone.frames[0].ok and alone.reference_tie.ok


def test_a_catalogue_far_wider_than_the_field_and_without_its_brightest_stars():
    stars = sky(1200, seed=3)
    frames = [observe(stars, f)[0] for f in range(3)]
    rng = np.random.default_rng(6)
    # Of another population, too: it has next to nothing of the frames' stars.
    x, y = rng.uniform(-600, 600, (2, 20000))
    faint = (stars[2] < 60) & (stars[2] > 4)
    fx, fy = tangent_plane(stars[0][faint], stars[1][faint], *CENTRE)
    outside = np.maximum(abs(x), abs(y)) > 60
    ra, dec = tangent_sky(np.append(x[outside], fx), np.append(y[outside], fy), *CENTRE)
    flux = np.append(10 ** rng.uniform(1, 3, outside.sum()), stars[2][faint])
    solution = solve(frames, reference=Reference(ra, dec, np.full(len(ra), 0.001), flux))
    assert solution.reference_tie.ok and solution.reference_tie.n > 200, solution.reference_tie
    _, _, total = offsets_from_truth(solution, stars)
    assert np.abs(np.median(total, axis=1)).max() < 0.3


@pytest.mark.parametrize(("known", "ok"), [(1, True), (3, True), (2, False)])
def test_one_to_three_catalogue_stars_shift_the_group_where_they_agree(known, ok):
    stars = sky(60, seed=5)
    frames = [observe(stars, f)[0] for f in range(3)]
    middle = np.argsort(np.hypot(*tangent_plane(stars[0], stars[1], *CENTRE)))[:known]
    x, y = tangent_plane(stars[0][middle], stars[1][middle], *CENTRE)
    x = x + (0 if ok else np.array([0.0, 1.0]))  # one of the two is another star
    reference = Reference(*tangent_sky(x, y, *CENTRE), np.full(known, 0.001), np.ones(known))
    solution = solve(frames, reference=reference)
    assert solution.reference_tie.ok == ok and (
        not ok or (solution.reference_tie.n, solution.reference_tie.terms) == (known, 2)
    ), solution.reference_tie
    if ok:
        _, _, total = offsets_from_truth(solution, stars)
        assert np.abs(np.median(total, axis=1)).max() < 6  # their turns and distortions stay


def isolated(stars, faintest, distance=0.5):
    """Bright stars with no other within `distance` arcsec, which no match can confuse."""
    from scipy.spatial import cKDTree

    x, y = tangent_plane(stars[0], stars[1], *CENTRE)
    places = np.column_stack([x, y])
    alone = cKDTree(places).query(places, 2)[0][:, 1] > distance
    return tuple(v[alone | (stars[2] < faintest)] for v in stars)


def test_a_catalogue_takes_out_what_all_frames_share():
    """Distortions of 10 mas differ from frame to frame; stars alone leave their mean.

    A catalogue of 2 mas takes it out up to its own error and the number of terms that 1500 stars of
    it determine: to 0.2 mas beyond photon noise.
    """
    stars = isolated(sky(5000), 0.0)
    frames = [observe(stars, f, warp=0.01)[0] for f in range(9)]
    known = np.flatnonzero(stars[2] > 20)
    rng = np.random.default_rng(4)
    x, y = (
        v + rng.normal(0, 0.002, len(known))
        for v in tangent_plane(stars[0][known], stars[1][known], *CENTRE)
    )
    reference = Reference(*tangent_sky(x, y, *CENTRE), np.full(len(known), 0.002), stars[2][known])
    photon = 0.2 / 3  # mas: 9 frames
    beyond = {}
    for name, catalogue in (("without", None), ("with", reference)):
        solution = solve(frames, reference=catalogue)
        relative, _, absolute = offsets_from_truth(solution, stars)
        beyond[name] = [
            np.sqrt(max(rms(off) ** 2 - photon**2, 0.0)) for off in (relative, absolute)
        ]
    assert (
        solution.reference_tie.terms == 20
        and solution.reference_tie.n > 1200
        and 1.8 < solution.reference_tie.rms < 2.2
    )
    assert beyond["with"][0] <= 0.2 and beyond["with"][1] <= 0.2, beyond
    # Without: the mean over nine frames of what they do not share.
    assert beyond["without"][0] > 2 * beyond["with"][0]


def epochs(size, seed=0):
    """Three epochs of four frames.

    Every array of every epoch is displaced by about `size` arcsec per axis.
    """
    stars = sky(2000, seed)
    moves = np.random.default_rng(50 + seed).normal(0, size, (3, 4, 2))
    frames = []
    for f in range(12):
        frame, move = observe(stars, f, seed=seed)[0], moves[f // 4]
        frames.append(
            frame._replace(
                x=frame.x - move[frame.array, 0], y=frame.y - move[frame.array, 1], epoch=f // 4
            )
        )
    return frames


def test_arrays_that_moved_between_epochs_are_found():
    frames = epochs(0.004)
    free = solve(frames)
    rigid = solve([frame._replace(array=np.zeros(len(frame.x), int)) for frame in frames])
    assert free.floor < 0.3 and rigid.floor > 0.7  # mas
    assert np.median([f.rms for f in free.frames]) < 0.5 * np.median([f.rms for f in rigid.frames])
    for frame, fit in zip(frames, free.frames, strict=True):
        assert len(fit.arrays) == 4 and np.isfinite(fit.arrays).all()
        straight = (0, 0, (0, 1.0, 0), (0, 0, 1.0))
        for k, (cx, cy) in enumerate(fit.arrays):
            bright = (frame.array == k) & (frame.flux > 100)
            _, dec = to_sky(
                Geometry(*straight, frame.ra, frame.dec, frame.pa, cx, cy),
                frame.x[bright],
                frame.y[bright],
            )
            star = free.stars[fit.star[bright]]
            assert spread((dec - star["dec"]) * 3.6e6) < 0.5
            assert np.allclose((dec - star["dec"]) * 3.6e6, fit.residual_y[bright] * 1000, atol=0.1)


def test_arrays_that_stay_get_no_terms():
    assert all(fit.arrays == () for fit in solve(epochs(0.0)).frames)


@pytest.mark.parametrize(("stars", "overlap"), [(60, 1.0), (60, 0.6), (25, 1.0)])
def test_blind_search(stars, overlap):
    """Pointings off by 30 arcsec, angles by up to 2 degrees: found or refused, never wrong."""
    for seed in range(4):
        rng = np.random.default_rng([seed, stars])
        field = sky(int(stars * (120 / 84) ** 2), seed)
        step, turn = 84 * (1 - overlap), rng.uniform(-2, 2)
        one = observe(field, 0, seed=seed, spread=0.0, pointing=0.0, turn=0.0, warp=0.0)[0]
        ra0, dec0 = (float(v) for v in tangent_sky(step / 2, 0.0, *CENTRE))
        xi, eta = tangent_plane(field[0], field[1], ra0, dec0)
        c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        u, v = c * xi - s * eta, s * xi + c * eta
        seen = np.flatnonzero((abs(u) < HALF) & (abs(v) < HALF))
        far, towards = 29 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
        ra, dec = (
            float(w) for w in tangent_sky(far * np.cos(towards), far * np.sin(towards), ra0, dec0)
        )
        e = np.full(len(seen), 1e-3)
        other = Measurements(
            "B.fits", u[seen], v[seen], e, e, field[2][seen], np.zeros(len(seen), int), ra, dec, 0.0
        )
        two = solve([one, other])
        assert all(f.ok for f in two.frames)
        ends = [np.array(f.shift) for f in two.frames]
        wrong = np.array(tangent_plane(ra0, dec0, ra, dec))
        # The plane turns about the middle: 2 degrees of 30 arcsec.
        assert np.hypot(*(ends[1] - ends[0] - wrong)) < 0.9


def test_from_three_stars_to_many_frames():
    """Two frames of three stars; forty frames of a few hundred; in little time and memory."""
    import time
    import tracemalloc

    few = sky(3, seed=1)
    two = [observe(few, f, half=70.0, spread=0.5, seed=8)[0] for f in range(2)]
    assert all(f.ok for f in solve(two).frames)
    many = [observe(sky(400), f)[0] for f in range(40)]
    tracemalloc.start()
    began = time.process_time()
    assert all(f.ok for f in solve(many).frames)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6 and time.process_time() - began < 60


def test_same_input_same_bits():
    stars = sky(800)
    frames = [observe(stars, f)[0] for f in range(4)]
    one, two = solve(frames), solve(frames)
    assert one.stars.tobytes() == two.stars.tobytes()
    assert [f[1:3] for f in one.frames] == [f[1:3] for f in two.frames]


def test_bad_calls_are_refused():
    with pytest.raises(GdaskError, match="0 frames"):
        solve([])


@pytest.mark.parametrize(
    ("stars", "frames", "field", "off"), [(200, 12, "one", 0.25), (400, 27, "chain", 1.0)]
)
def test_the_benchmark_finds_the_stars(stars, frames, field, off):
    figures = run(stars, frames, field)
    assert figures["used"] == frames and figures["offset_mas"] < off
    assert figures["seconds"] < 60 and figures["memory_mb"] < 200
