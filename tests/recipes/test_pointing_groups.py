"""Two groups of pointings, or of position angles, whose small arrays see no common star."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from gdask import Reduce, cal_service
from gdask.io.tables import geometries_of
from gdask.kernels.geometry.projection import tangent_plane, to_sky
from gdask.simulate import simulate_gsaoi


@pytest.mark.parametrize("groups", [{"group_offset": 15.0}, {"group_pa": 90.0}])
def test_groups_stay_on_their_headers_and_the_product_says_so(
    groups: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Chance pairs moved them by 4 to 8 arcsec; headers are good to 0.1 here."""
    monkeypatch.chdir(tmp_path)
    night = {"size": 384, "n_science": 6, "n_sky": 3, "n_flats": 3, "n_std": 0, "bad_wcs": 0}
    simulate_gsaoi(tmp_path, **night, **groups)
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    truth = Table.read("truth/frames.ecsv")
    database = cal_service.set_local_database()
    database.init()
    database.add_cal(str(next(Path("raw").glob("bpm*.fits"))))
    caplog.set_level(logging.INFO)
    for kinds in (("flat_on", "flat_off"), ("science", "sky")):
        reduction = Reduce()
        reduction.files.extend(f"raw/{row['file']}" for row in truth if row["kind"] in kinds)
        if "sky" in kinds:
            reduction.uparms["resampleToCommonFrame:pixel_scale"] = 0.1
            reduction.uparms["skyCorrect:offset_sky"] = False
        reduction.runr()
    table = Table.read(next(Path().glob("*_image.fits")), "ASTROM")
    table = table[table["ARRAY"] == 4]  # on which the telescope's origin falls
    science = truth[truth["kind"] == "science"]
    assert [str(name) for name in table["NAME"]] == [str(name) for name in science["file"]]
    assert table["GROUP"].tolist() in ([1, 2] * 3, [2, 1] * 3)
    assert all(str(tie).endswith("stars with 2 frames") for tie in table["TIE"])
    for geometry, row in zip(geometries_of(table), science, strict=True):
        ra, dec = to_sky(geometry, 195.5 - geometry.x0, 212.2 - geometry.y0)
        miss = tangent_plane(ra, dec, float(row["ra0"]), float(row["dec0"]))
        assert np.hypot(*miss) < 0.3
    (line,) = {r.getMessage() for r in caplog.records if "share no stars with" in r.getMessage()}
    assert all(str(name) in line for name in science["file"]) and "0.25 arcsec" in line
