"""Time, memory and accuracy of the joint astrometric solution, by number of stars and frames.

    python -m benchmarks.solution [--only STARSxFRAMES[:FIELD] ...] [--json FILE]

Made-up source lists with known truth: each frame has a distortion of its own (quadratic and cubic
terms of 6 mas at 60 arcsec), a pointing off by 50 mas, a position angle off by 0.002 degree, and
loses one star in ten. FIELD `one`: dithers of 6 arcsec about one place, so that a frame sees most
stars. `mosaic`: 4 x 4 places with half a field between neighbours. `chain`: the same with three
frames at each place, as many places as there must be. Seconds are of one core; each case runs in a
process of its own; memory is its peak above what Python and its libraries need, and is given for
each measurement, too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np

from gdask.kernels.astrometry.measured_stars import Measurements
from gdask.kernels.astrometry.solution import solve
from gdask.kernels.geometry.projection import tangent_plane, tangent_sky

CENTRE = (201.2925, -43.1015)
#: Half the width of a field, and the largest dither about one place (arcsec).
HALF_FIELD, MAX_DITHER = 42.0, 6.0
#: Stars, frames and field of each case.
CASES = (
    (3, 2, "one"),
    (100, 10, "one"),
    (1000, 10, "one"),
    (1000, 100, "one"),
    (1000, 1000, "one"),
    (10_000, 10, "one"),
    (10_000, 100, "one"),
    (10_000, 1000, "one"),
    (10_000, 1000, "mosaic"),
    (100_000, 10, "one"),
    (100_000, 100, "one"),
    (100_000, 100, "chain"),
    (100_000, 1000, "mosaic"),
    (100_000, 1000, "chain"),
)
#: Powers of x and y of the terms of a frame's distortion.
POWERS = ((2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))
#: x, y (arcsec) or RA, Dec (degrees), and flux of the stars.
Sky = tuple[np.ndarray, np.ndarray, np.ndarray]


def pointings(frames: int, field: str, rng: np.random.Generator) -> np.ndarray:
    """Places (frames, 2), in arcsec, at which the frames look."""
    if field == "one":
        return rng.uniform(-MAX_DITHER, MAX_DITHER, (frames, 2))
    side = 4 if field == "mosaic" else int(np.ceil(np.sqrt(frames / 3)))
    place = (np.arange(frames) % side**2)[:, None]
    grid = np.column_stack([place % side, place // side]) * HALF_FIELD
    return grid - grid.mean(axis=0) + rng.uniform(-MAX_DITHER, MAX_DITHER, (frames, 2))


def scene(stars: int, frames: int, field: str) -> tuple[Sky, list[Measurements]]:
    """x, y (arcsec) and flux of the stars, and what the frames measure."""
    rng = np.random.default_rng(1)
    places = pointings(frames, field, rng)
    low, high = places.min(axis=0) - 0.9 * HALF_FIELD, places.max(axis=0) + 0.9 * HALF_FIELD
    x, y = rng.uniform(low[0], high[0], stars), rng.uniform(low[1], high[1], stars)
    flux = 10 ** rng.uniform(0, 3, stars)
    ra, dec = tangent_sky(x, y, *CENTRE)
    return (x, y, flux), [
        _frame(f, place, (ra, dec, flux), np.column_stack([x, y])) for f, place in enumerate(places)
    ]


def _frame(f: int, place: np.ndarray, stars: Sky, star_places: np.ndarray) -> Measurements:
    """What frame number f at a place (arcsec) measures of the stars (RA, Dec; places in arcsec)."""
    rng = np.random.default_rng([2, f])
    nearby = np.flatnonzero((np.abs(star_places - place) < 1.1 * HALF_FIELD).all(axis=1))
    ra, dec, flux = (v[nearby] for v in stars)
    ra0, dec0 = (float(v) for v in tangent_sky(place[0], place[1], *CENTRE))
    xi, eta = tangent_plane(ra, dec, ra0, dec0)
    angle = np.radians(rng.normal() * 0.002)
    u, v = np.cos(angle) * xi - np.sin(angle) * eta, np.sin(angle) * xi + np.cos(angle) * eta
    terms, basis = (
        rng.normal(size=(2, 7)) * 0.006,
        np.stack([(u / 60) ** i * (v / 60) ** j for i, j in POWERS]),
    )
    u, v = u - terms[0] @ basis, v - terms[1] @ basis
    seen = np.flatnonzero(
        (abs(u) < HALF_FIELD) & (abs(v) < HALF_FIELD) & (rng.uniform(size=len(u)) < 0.9)
    )
    error = np.maximum(2e-4, 0.02 / flux[seen] ** 0.8)
    u, v = (w[seen] + rng.normal(size=len(seen)) * error for w in (u, v))
    east, north = rng.normal(size=2) * 0.05
    ra1, dec1 = (float(w) for w in tangent_sky(east, north, ra0, dec0))
    bright = flux[seen] * rng.lognormal(0, 0.05, len(seen))
    array = (2 * (v > 0) + (u > 0)).astype(int)
    return Measurements(f"N{f}.fits", u, v, error, error, bright, array, ra1, dec1, 0.0)


def _peak_memory() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(stars: int, frames: int, field: str) -> dict[str, float]:
    """One case: seconds, peak memory (MB), and what else its row of the table says.

    offset_mas: median offset of bright stars from the truth (mas) after a cubic.
    """
    solve(scene(60, 3, "one")[1])  # compiled code is loaded before the clock starts
    truth, lists = scene(stars, frames, field)
    count, before = sum(len(m.x) for m in lists), _peak_memory()
    started = time.process_time()
    solution = solve(lists)
    seconds, memory = time.process_time() - started, _peak_memory() - before
    return {
        "stars": stars,
        "frames": frames,
        "measurements": count,
        "seconds": seconds,
        "memory_mb": memory,
        "bytes_per_measurement": 1e6 * memory / count,
        "used": sum(fit.ok for fit in solution.frames),
        "offset_mas": _scatter(truth, solution.stars, (solution.ra, solution.dec)),
        "terms": float(np.median([fit.terms for fit in solution.frames])),
    }


def _scatter(truth: Sky, stars: np.ndarray, centre: tuple[float, float]) -> float:
    """Robust scatter (mas) per axis of the brightest third about a cubic.

    What is common to all frames is not measured.
    """
    from gdask.kernels.astrometry.association import match_pairs

    x, y = tangent_plane(*tangent_sky(truth[0], truth[1], *CENTRE), *centre)
    found = stars[stars["n"] >= 2]
    bright = np.flatnonzero(truth[2] > 100)
    ia, ib = match_pairs(x[bright], y[bright], found["x"], found["y"], 0.5)
    if len(ia) < 12:
        return float("nan")
    px, py = found["x"][ib], found["y"][ib]
    off = 1000 * np.column_stack([x[bright][ia] - px, y[bright][ia] - py])
    u, v = px / np.abs(px).max(), py / np.abs(py).max()
    basis = np.column_stack([u**i * v**j for i in range(4) for j in range(4 - i)])
    rest = off - basis @ np.linalg.lstsq(basis, off, rcond=None)[0]
    return float(1.4826 * np.median(np.abs(rest)))


def main() -> None:
    """Run the cases that the command line names, or all, and print a table of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="cases such as 10000x1000:mosaic")
    parser.add_argument("--json", help="write the figures to this file")
    given = parser.parse_args()
    names = {f"{stars}x{frames}:{field}": (stars, frames, field) for stars, frames, field in CASES}
    for name in given.only:
        size, _, field = name.partition(":")
        stars, frames = (int(n) for n in size.split("x"))
        names[name] = (stars, frames, field or "one")
    figures = {}
    print(
        "| stars | frames | field | measurements | s | MB | bytes each | frames used | terms"
        " | bright stars off, mas |"
    )
    print("|" + "---:|" * 10)
    for name in given.only or names:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures[name] = r = pool.apply(run, names[name])
        print(
            f"| {r['stars']:.0f} | {r['frames']:.0f} | {names[name][2]} | {r['measurements']:.2g}"
            f" | {r['seconds']:.1f} | {r['memory_mb']:.0f} | {r['bytes_per_measurement']:.0f}"
            f" | {r['used']:.0f} | {r['terms']:.0f} | {r['offset_mas']:.3f} |",
            flush=True,
        )
    if given.json:
        Path(given.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
