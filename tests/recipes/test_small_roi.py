"""A standard in a small region of interest: one bright star, on another array in each frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from gdask import Reduce, cal_service
from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import tangent_plane, to_sky
from gdask.simulate import simulate_gsaoi
from gdask.simulate.geometry import Pose, sky_to_pixel
from gdask.simulate.gsaoi import chips_of, load_facts
from gdask.simulate.gsaoi_plan import STANDARD


def test_one_bright_star_near_the_edge_aligns_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wings reach over all edges of 256 pixels; the way from the true pixel to the sky agrees.

    Two frames in which the star is alone know nothing of their own turn and distortion; at the
    star they agree to 3 mas.
    """
    monkeypatch.chdir(tmp_path)
    night = {"size": 320, "roi": 256, "n_science": 0, "n_sky": 0, "n_flats": 3, "n_std": 4}
    simulate_gsaoi(tmp_path, **night, std_offset=1.6, bad_wcs=0)
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    truth = Table.read("truth/frames.ecsv")
    database = cal_service.set_local_database()
    database.init()
    database.add_cal(str(next(Path("raw").glob("bpm*.fits"))))
    for kinds in (("flat_on", "flat_off"), ("std",)):
        reduction = Reduce()
        reduction.files.extend(f"raw/{row['file']}" for row in truth if row["kind"] in kinds)
        if kinds == ("std",):
            reduction.uparms["resampleToCommonFrame:pixel_scale"] = 0.1
        reduction.runr()
    table = Table.read(next(Path().glob("*_image.fits")), "ASTROM")
    placed = {str(row["NAME"]): str(row["PLACED"]) for row in table}
    assert len(placed) == 4 and all(how.startswith("shift by") for how in placed.values())
    chips, places = chips_of(load_facts()[1]), []
    ra, dec = (np.array([value]) for value in STANDARD)
    for row in truth[truth["kind"] == "std"]:
        pose = Pose(
            row["ra0"],
            row["dec0"],
            row["pa"],
            row["plate_scale"],
            np.array(json.loads(row["warp"])),
        )
        own = table[table["NAME"] == row["file"]]
        for chip, geometry in zip(chips, geometries_of(own), strict=True):
            x, y = sky_to_pixel(chip, pose, ra, dec)
            x, y = x - geometry.x0, y - geometry.y0  # 0-based pixels of the frame
            if 0 < x[0] < 255 and 0 < y[0] < 255:
                places.append(np.concatenate(tangent_plane(*to_sky(geometry, x, y), *STANDARD)))
    assert len(places) == 4
    assert np.hypot(*(places - np.mean(places, axis=0)).T).max() < 0.003
