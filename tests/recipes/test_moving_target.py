"""A target that moves among the stars, from raw frames to both stacks, against the truth."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from gdask import Reduce, cal_service
from gdask.simulate import simulate_gsaoi

#: Motion of the object, arcsec per hour East and North: 1.3 arcsec from the first frame to the
#: last, 0.11 in a frame.
EAST, NORTH = 6.0, -3.0
IMAGE = "S20170505S0095_image{}.fits"


def both_stacks(folder: Path, monkeypatch: pytest.MonkeyPatch, track: str) -> Table:
    """Simulate and reduce a night with follow=both; returns the true table of its target frames.

    Where the telescope tracks the stars, headers know no rate, and the user gives it.
    """
    monkeypatch.chdir(folder)
    night = {"size": 320, "field": "sparse", "n_flats": 3, "n_std": 0, "n_science": 6, "n_sky": 4}
    moving = {"object_mag": 16.0, "object_east": EAST, "object_north": NORTH, "track": track}
    simulate_gsaoi(folder, **night, **moving, bad_wcs=0)
    (folder / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(folder / "dragonsrc"))
    database = cal_service.set_local_database()
    database.init()
    database.add_cal(str(next(Path("raw").glob("bpm*.fits"))))
    truth = Table.read("truth/frames.ecsv")
    for kinds in (("flat_on", "flat_off"), ("science", "sky")):
        reduction = Reduce()
        reduction.files.extend(f"raw/{row['file']}" for row in truth if row["kind"] in kinds)
        if "science" in kinds:
            reduction.uparms["adjustWCSToReference:follow"] = "both"
            if track == "stars":
                reduction.uparms["adjustWCSToReference:rate_east"] = EAST
                reduction.uparms["adjustWCSToReference:rate_north"] = NORTH
        reduction.runr()
    return truth[truth["kind"] == "science"]


def offsets(table: Table, ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Arcsec (n, 2) East and North from each place to the nearest source, and the sources' rows."""
    cosine = np.cos(np.radians(np.mean(dec)))
    apart = np.stack(
        [
            3600 * cosine * (np.asarray(table["RA"])[None] - np.asarray(ra)[:, None]),
            3600 * (np.asarray(table["DEC"])[None] - np.asarray(dec)[:, None]),
        ],
        axis=-1,
    )
    row = np.argmin(np.hypot(*apart.transpose(2, 0, 1)), axis=1)
    return apart[np.arange(len(row)), row], row


@pytest.mark.parametrize("track", ["object", "stars"])
def test_both_stacks_of_a_moving_target_are_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    track: str,
) -> None:
    """Before, one of them could be had; that on the object was not tried on pixels."""
    with caplog.at_level(logging.WARNING, logger="gdask"):
        truth = both_stacks(tmp_path, monkeypatch, track)
    assert "aligned on it, stars are spread over 1.3" in caplog.text
    assert "the stack aligned on the stars is written beside" in caplog.text
    on_object, on_stars = (Table.read(IMAGE.format(end), "OBJCAT") for end in ("", "OnStars"))
    catalog = Table.read("truth/catalog.ecsv")
    bright = catalog[(catalog["field"] == "target") & (np.abs(catalog["mag"] - 17.0) < 2.0)]
    miss, rows = offsets(on_stars, bright["ra"], bright["dec"])
    near = np.hypot(*miss.T) < 0.3
    near &= (on_stars["FLAGS_PSF"][rows] & 31) == 0
    assert near.sum() >= 5
    pointing = np.median(miss[near], axis=0)  # of all frames together, by the headers
    assert np.hypot(*pointing) < 0.15
    assert np.median(np.hypot(*(miss[near] - pointing).T)) < 0.02
    places = [np.array([np.mean(truth[f"moving_{axis}"])]) for axis in ("ra", "dec")]
    # Isophotal places: where no star of the stack looks like the object, the fit says MISFIT (32).
    isophotal = Table(on_object["X_WORLD", "Y_WORLD"], names=("RA", "DEC"))
    miss, rows = offsets(isophotal, *places)
    assert np.hypot(*(miss[0] - pointing)) < 0.03
    # Where the telescope follows the stars, the object trails by 0.11 arcsec in each frame.
    assert on_object["FWHM_IMAGE"][rows[0]] < (6.0 if track == "object" else 9.0)
    assert on_object["N_FRAMES"][rows[0]] == 6
    assert np.hypot(*offsets(on_object, bright["ra"], bright["dec"])[0].T).min() > 0.02
    for end, what in (("", "object"), ("OnStars", "stars")):
        header = fits.getheader(IMAGE.format(end))
        assert (header["FOLLOWS"], header["RATEEAST"], header["RATENRTH"]) == (what, EAST, NORTH)
