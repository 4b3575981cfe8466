"""Positions by epoch against the truth: three simulated nights of moving stars, reduced as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from scipy.spatial import cKDTree

from gdask.kernels.geometry.projection import tangent_plane
from gdask.simulate import gsaoi
from gdask.simulate.night import write_exposure, write_truth
from gdask.simulate.options import gsaoi_options

IMAGE = "S20170505S0095_image.fits"
NIGHTS = 3


def moving_nights(out: Path, motion: float, **options: object) -> np.ndarray:
    """Write nights whose stars move by `motion` mas per night and axis (one sigma).

    Returns the motions East and North (n, 2), mas.
    """
    night = gsaoi.prepare_night(
        gsaoi_options(nights=NIGHTS, n_std=0, bad_wcs=0, n_darks=0, **options)
    )
    stars = night.stars["target"]
    motions = np.random.default_rng(5).normal(0, motion, (len(stars.ra), 2))
    (out / "raw").mkdir()
    (out / "truth").mkdir()
    counts, first = [], min(exposure.mjd for exposure in night.exposures)
    for exposure in night.exposures:
        east, north = round(exposure.mjd - first) * motions.T / 3.6e6
        moved = stars._replace(
            ra=stars.ra + east / np.cos(np.radians(stars.dec)), dec=stars.dec + north
        )
        now = night._replace(stars=night.stars | {"target": moved})
        counts.append(write_exposure(now, gsaoi.camera(now), exposure, out / "raw"))
    gsaoi.write_bpm(night, out / "raw")
    write_truth(night, gsaoi.camera(night), counts, out / "truth")
    return motions


def reduced_as_one(folder: Path) -> None:
    from gdask import Reduce, cal_service

    frames = Table.read(folder / "truth/frames.ecsv")
    database = cal_service.set_local_database()
    database.init()
    database.add_cal(str(next(folder.glob("raw/bpm*"))))
    for kinds, number in [
        *((("flat_on", "flat_off"), k) for k in range(NIGHTS)),
        (("science", "sky"), None),
    ]:
        reduction = Reduce()
        reduction.files.extend(
            sorted(
                f"raw/{row['file']}"
                for row in frames
                if row["kind"] in kinds and number in (None, row["night"])
            )
        )
        if number is None:
            reduction.uparms["skyCorrect:offset_sky"] = False
        reduction.runr()


def errors_of_positions(
    image: Path, truth: Path, motions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Errors (mas) of clean isolated stars after a quadratic per epoch, and their stated errors.

    Then the star and epoch of each row.
    """
    objects, epochs = Table.read(image, hdu="OBJCAT"), Table.read(image, hdu="EPOCHS")
    catalog = Table.read(truth / "catalog.ecsv")
    catalog = catalog[catalog["field"] == "target"]
    centre = float(np.median(catalog["ra"])), float(np.median(catalog["dec"]))
    true, found = (
        1000 * np.column_stack(tangent_plane(t["ra"], t["dec"], *centre))
        for t in (catalog, Table(epochs["RA", "DEC"], names=("ra", "dec")))
    )
    flux = np.asarray(catalog["flux"], float)
    clean = np.isin(epochs["STAR"], objects["STAR"][(objects["FLAGS_PSF"] & ~64) == 0])
    bright = {row["STAR"]: row["FLUX_PSF"] for row in objects}
    brightness = np.array([bright.get(star, 0.0) for star in epochs["STAR"]])
    top = np.argsort(-brightness)[:60]
    number = np.asarray(epochs["EPOCH"]) - 1
    # Of the whole catalogue the brightest lie outside the image, and three pairs agree by chance.
    inside = ((true > found.min(axis=0) - 1000) & (true < found.max(axis=0) + 1000)).all(axis=1)
    brightest = np.argsort(-np.where(inside, flux, 0.0))[:400]
    shifts = ((true + motions)[brightest][:, None] - found[top]).reshape(-1, 2)
    shifts = shifts[np.hypot(*shifts.T) < 1000]
    agreeing = [(np.hypot(*(shifts - v).T) < 15).sum() for v in shifts]
    assert max(agreeing) > 20
    shift = shifts[int(np.argmax(agreeing))]
    placed = found + np.median(shifts[np.hypot(*(shifts - shift).T) < 15], axis=0)
    # Without a catalogue the image keeps the turn and scale of its headers: mas at its corners.
    terms = np.column_stack([np.ones(len(found)), found / 1e4])
    for radius in (60.0, 40.0, 20.0):
        distance, index = cKDTree(true[brightest]).query(placed)
        near = distance < radius
        off = (true + motions * (NIGHTS - 1) / 2)[brightest][index[near]] - found[near]
        placed = found + terms @ np.linalg.lstsq(terms[near], off, rcond=None)[0]
    out = []
    for k in range(NIGHTS):
        tree = cKDTree(true + k * motions)
        rows = np.flatnonzero((number == k) & clean)
        distance, index = tree.query(placed[rows])
        around = np.array([flux[tree.query_ball_point(tree.data[i], 120.0)].sum() for i in index])
        use = (distance < 15) & (around < 1.03 * flux[index])
        rows, index = rows[use], index[use]
        off, (x, y) = found[rows] - tree.data[index], found[rows].T / 1e4
        error = np.column_stack([epochs["RA_ERR"][rows], epochs["DEC_ERR"][rows]])
        terms = np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y])
        for axis in range(2):
            weight = 1 / error[:, axis]
            off[:, axis] -= (
                terms
                @ np.linalg.lstsq(terms * weight[:, None], off[:, axis] * weight, rcond=None)[0]
            )
        out.append((off, error, index, np.full(len(index), k)))
    errors, stated, stars, numbers = (np.concatenate(parts) for parts in zip(*out, strict=True))
    return errors, stated, stars, numbers


@pytest.mark.slow
def test_three_nights_of_moving_stars_reduced_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    motions = moving_nights(
        tmp_path, 3.0, size=320, field="crowded", n_flats=3, n_science=4, n_sky=4, cr_rate=2.0
    )
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    monkeypatch.chdir(tmp_path)
    reduced_as_one(tmp_path)
    off, error, star, epoch = errors_of_positions(tmp_path / IMAGE, tmp_path / "truth", motions)
    assert {int(k) for k in epoch} == {0, 1, 2} and len(off) > 150
    pulls = (off / error).ravel()
    assert 0.7 < np.median(np.abs(pulls)) / 0.6745 < 1.15 and (np.abs(pulls) > 6).mean() < 0.02
    rows = {(s, k): i for i, (s, k) in enumerate(zip(star, epoch, strict=True))}
    seen_twice = [(rows[s, 0], rows[s, 2], s) for s, k in rows if k == 0 and (s, 2) in rows]
    first, last, stars = (np.array(v) for v in zip(*seen_twice, strict=True))
    spread = np.hypot(error[first], error[last]) / 2
    assert len(stars) > 40 and (np.abs((off[last] - off[first]) / 2) < 6 * spread).mean() > 0.97
    assert np.median(spread) < 3.0  # mas per night: less than the motions
