"""The calibration store: association rules, databases, configuration and the caldb verb."""

import datetime as dt
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import gdask
from gdask import instruments
from gdask.cal_service import only_database, set_local_database
from gdask.caldb import (
    Database,
    associate,
    cache,
    cache_path,
    caltype_name,
    database_at,
    describe,
    explain,
    needed_types,
    open_databases,
    rank_calibrations,
    rules_for,
    store,
)
from gdask.caldb.association import judge_calibration, rules_from_table
from gdask.caldb.database import DESCRIPTORS, SCHEMA_VERSION, _engine, add, init, remove, rows
from gdask.cli.caldb import main
from gdask.headers import Headers, read_headers
from gdask.model import GdaskError

NIGHT = dt.datetime(2017, 5, 5, 2, 30)
FULL = [[2048, 4096, 0, 2048], [0, 2048, 0, 2048], [0, 2048, 2048, 4096], [2048, 4096, 2048, 4096]]
CENTRE = [[x + 512, x + 1536, y + 512, y + 1536] for x, _, y, _ in FULL]
ARRAYS = ["H2RG-032-074", "H2RG-032-064", "H2RG-032-071", "H2RG-032-061"]


def gsaoi_row(name="S1_flat.fits", days=0.0, **changes):
    """A row of the store: a full-frame GSAOI calibration, `days` after the science frame."""
    row = dict.fromkeys(DESCRIPTORS) | {
        "path": f"/nowhere/{name}",
        "name": name,
        "instrument": "GSAOI",
        "caltype": "processed_flat",
        "size": 1,
        "mtime_ns": 1,
        "md5": None,
        "ut_datetime": NIGHT + dt.timedelta(days=days),
        "filter_name": "Kshort",
        "read_mode": "FOWLER",
        "read_speed_setting": "Faint Objects",
        "exposure_time": 60.0,
        "coadds": 1,
        "detector_x_bin": 1,
        "detector_y_bin": 1,
        "array_name": ARRAYS,
        "detector_section": FULL,
        "shape": [[2048, 2048]] * 4,
    }
    return row | changes


def best(frame, candidates, rules):
    return rank_calibrations(frame, [(0, "cal.db", row) for row in candidates], rules)


def failures(frame, row, rules):
    return {
        verdict.rule: verdict.text
        for verdict in judge_calibration(frame, row, rules)
        if not verdict.passed
    }


# --- rules


GSAOI, F2 = (rules_for(Headers(fits.Header({"INSTRUME": name}), ())) for name in ("GSAOI", "F2"))
FLAT, DARK, BPM = (
    GSAOI[caltype] for caltype in ("processed_flat", "processed_dark", "processed_bpm")
)


def test_flat_nearest_in_time_wins():
    ranking = best(gsaoi_row(), [gsaoi_row("a", 9), gsaoi_row("b", -3), gsaoi_row("c", 4)], FLAT)
    assert [candidate.name for candidate in ranking] == ["b", "c", "a"]
    assert not any(candidate.failed for candidate in ranking)


def test_flat_failures_name_values_and_limits():
    failed = failures(gsaoi_row(), gsaoi_row(days=41.2, filter_name="J"), FLAT)
    assert failed == {
        "filter": "filter: Kshort wanted, J found",
        "time": "time: 41.2 d apart, limit 30 d",
    }
    assert not failures(gsaoi_row(), gsaoi_row(days=-30.0), FLAT)
    assert "time" in failures(gsaoi_row(), gsaoi_row(days=30.001), FLAT)


def test_the_flat_may_have_another_read_mode_and_exposure_time():
    assert not failures(
        gsaoi_row(), gsaoi_row(read_speed_setting="Bright Objects", exposure_time=8.0), FLAT
    )


def test_fewest_failures_come_first_when_nothing_fits():
    ranking = best(
        gsaoi_row(),
        [
            gsaoi_row("near", 1, filter_name="J", array_name=list("abcd")),
            gsaoi_row("far", 29, filter_name="J"),
        ],
        FLAT,
    )
    assert [candidate.name for candidate in ranking] == ["far", "near"]


def test_equally_near_the_later_one_then_the_name():
    ranking = best(gsaoi_row(), [gsaoi_row("b", 2), gsaoi_row("x", -2), gsaoi_row("a", 2)], FLAT)
    assert [candidate.name for candidate in ranking] == ["a", "b", "x"]


def test_a_full_frame_calibration_serves_a_region_of_interest_but_not_the_reverse():
    roi = gsaoi_row(detector_section=CENTRE, shape=[[1024, 1024]] * 4)
    assert not failures(roi, gsaoi_row(), FLAT)
    assert not failures(roi, roi, FLAT)
    assert (
        "H2RG-032-074: [2048, 4096, 0, 2048] wanted" in failures(gsaoi_row(), roi, FLAT)["arrays"]
    )


def test_arrays_are_matched_by_name_not_by_order():
    turned = {key: gsaoi_row()[key][::-1] for key in ("array_name", "detector_section", "shape")}
    assert not failures(gsaoi_row(), gsaoi_row(**turned), FLAT)
    one = {key: gsaoi_row()[key][:1] for key in ("array_name", "detector_section", "shape")}
    assert "H2RG-032-064 wanted" in failures(gsaoi_row(), gsaoi_row(**one), FLAT)["arrays"]
    assert not failures(gsaoi_row(**one), gsaoi_row(), FLAT)


def test_sections_that_lie_are_caught_by_the_shape():
    # F2 headers say 2048 x 2048 whatever the array is
    cut = gsaoi_row(shape=[[512, 512]] * 4)
    assert (
        "[2048, 2048] pixels wanted, [512, 512] found" in failures(gsaoi_row(), cut, FLAT)["arrays"]
    )
    assert not failures(cut, cut, FLAT)


def test_bpm_serves_from_its_date_on_and_the_latest_wins():
    future = gsaoi_row("future", ut_datetime=dt.datetime(2017, 5, 6))
    today = gsaoi_row("today", ut_datetime=dt.datetime(2017, 5, 5, 23))
    ranking = best(gsaoi_row(), [gsaoi_row("old", -1600), future, gsaoi_row("newer", -20)], BPM)
    assert [candidate.name for candidate in ranking] == ["newer", "old", "future"]
    assert ranking[-1].failed[0].text == "valid from: 2017-05-06, the frame is of 2017-05-05"
    assert not failures(gsaoi_row(), today, BPM)
    assert "detector x bin" in failures(gsaoi_row(), gsaoi_row(days=-1, detector_x_bin=2), BPM)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"exposure_time": 60.02}, "exposure time"),
        ({"coadds": 3}, "coadds"),
        ({"read_speed_setting": "Bright Objects"}, "read speed setting"),
        ({"ut_datetime": NIGHT + dt.timedelta(days=91)}, "time"),
        ({"exposure_time": None}, "exposure time"),
        ({"ut_datetime": None}, "time"),
    ],
)
def test_dark_must_match(change, rule):
    assert list(failures(gsaoi_row(), gsaoi_row(**change), DARK)) == [rule]


def test_near_equal_exposure_times_are_one_and_the_verdict_says_so():
    texts = [
        verdict.text
        for verdict in judge_calibration(
            gsaoi_row(exposure_time=60.001), gsaoi_row(exposure_time=60.002), DARK
        )
    ]
    assert "exposure time: 60.002 taken as equal to 60.001" in texts


def test_f2_flat_prefers_but_does_not_require_the_read_mode():
    rules = F2["processed_flat"]
    f2 = {
        "disperser": "Open",
        "lyot_stop": "f/16_G5830",
        "focal_plane_mask": "Open",
        "read_mode": "1",
    }
    other = f2 | {"read_mode": "8"}
    ranking = best(
        gsaoi_row(**f2), [gsaoi_row("near", 1, **other), gsaoi_row("far", 50, **f2)], rules
    )
    assert [candidate.name for candidate in ranking] == ["far", "near"]
    assert not ranking[1].failed
    assert "focal plane mask" in failures(
        gsaoi_row(**f2), gsaoi_row(**f2 | {"focal_plane_mask": "2pix-slit"}), rules
    )


def test_needed_types():
    assert set(needed_types({"GSAOI", "IMAGE", "RAW"}, GSAOI)) == {
        "processed_bpm",
        "processed_flat",
    }
    assert set(needed_types({"GSAOI", "CAL", "FLAT", "IMAGE"}, GSAOI)) == {"processed_bpm"}
    assert set(needed_types({"F2", "IMAGE"}, F2)) == {
        "processed_bpm",
        "processed_flat",
        "processed_dark",
    }
    assert set(needed_types({"F2", "CAL", "DARK"}, F2)) == {"processed_bpm"}
    assert not needed_types({"GSAOI", "BPM", "CAL", "PROCESSED"}, GSAOI)
    assert not needed_types({"NEWCAM", "IMAGE"}, {})


def test_rules_from_a_table():
    assert rules_from_table({"equal": ["camera"], "max_days": 7}).equal == ("camera",)
    with pytest.raises(GdaskError, match="unknown 'max_day'; expected"):
        rules_from_table({"max_day": 7})


def test_type_names():
    assert caltype_name("flat") == caltype_name("processed_flat") == "processed_flat"
    with pytest.raises(GdaskError, match="did you mean 'processed_dark'"):
        caltype_name("processed_dakr")


# --- configuration


def configure(tmp_path, monkeypatch, text):
    path = tmp_path / "dragonsrc"
    path.write_text(text)
    monkeypatch.setenv("DRAGONSRC", str(path))


@pytest.fixture(autouse=True)
def clean_folder(tmp_path, monkeypatch):
    """Every test works in its own folder, with no configuration."""
    monkeypatch.delenv("DRAGONSRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_no_configuration_means_a_file_in_the_working_folder(tmp_path):
    assert open_databases() == (
        Database("cal_manager.db", f"sqlite:///{tmp_path}/cal_manager.db", True, True),
    )
    assert not list(tmp_path.iterdir())


def test_configuration_lines(tmp_path, monkeypatch):
    (tmp_path / "home" / "night").mkdir(parents=True)
    configure(
        tmp_path,
        monkeypatch,
        "[calibs]\ndatabases = ~/night get store\n  'b c.db'\n\n  x/c.db store\n"
        "  https://archive.gemini.edu get\n  archive.gemini.edu get\n  "
        "postgresql://me:s%40c@host:5433/cals get\n",
    )
    night, second, third, *remote, server = open_databases()
    assert night == (
        "~/night/cal_manager.db",
        f"sqlite:///{tmp_path}/home/night/cal_manager.db",
        True,
        True,
    )
    assert (second.name, second.get, second.store) == ("b c.db", True, False)
    assert (third.name, third.get, third.store) == ("x/c.db", False, True)
    assert [database.url for database in remote] == ["", ""]
    assert server == (
        "postgresql://me@host:5433/cals",
        "postgresql+psycopg://me:s%40c@host:5433/cals",
        True,
        False,
    )
    assert "s%40c" not in repr(server)
    with pytest.raises(GdaskError, match="exactly one is needed"):
        only_database(open_databases())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[calibs]\ndatabases = x.db fetch\n", "unknown word 'fetch'"),
        ("databases = x.db\n", "expected .calibs."),
        ("[calibs]\ndatabases = 'x.db get\n", "quote the path"),
        ("[calibs]\ndatabases = mysql://h/x\n", "unknown kind"),
    ],
)
def test_bad_configuration_is_explained(tmp_path, monkeypatch, text, message):
    configure(tmp_path, monkeypatch, text)
    with pytest.raises(GdaskError, match=message):
        open_databases()


def test_named_configuration_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "absent"))
    with pytest.raises(
        GdaskError, match=r"absent: no such configuration file, though \$DRAGONSRC names it"
    ):
        open_databases()


# --- files: small MEFs with the keywords that real ones have


HISTORY_OF_REDUCTION = {"PREPARE": "2017-06-01T00:00:00", "GEM-TLM": "2017-06-01T00:00:00"}
KINDS = {
    "science": {"OBJECT": "9132", "OBSCLASS": "science"},
    "flat": {"OBJECT": "Domeflat", "OBSCLASS": "dayCal", "PROCFLAT": "2017-06-01T00:00:00"}
    | HISTORY_OF_REDUCTION,
    "bpm": {
        "OBJECT": "BPM",
        "OBSTYPE": "BPM",
        "OBSCLASS": "dayCal",
        "BPMASK": "2012-11-04T00:00:00",
    }
    | HISTORY_OF_REDUCTION,
}


def write_gsaoi(
    path, kind="flat", when="2017-05-04T19:30:00", filter_name="Kshort", sections=FULL, seed=0
):
    """A GSAOI file of 8 x 8 noise per array; the sections say what is asked."""
    date, time = when.split("T")
    primary = fits.PrimaryHDU()
    primary.header.update(
        {
            "INSTRUME": "GSAOI",
            "OBSTYPE": "OBJECT",
            "OBSERVAT": "Gemini-South",
            "TELESCOP": "Gemini-South",
            "FILTER1": f"{filter_name}_G1105",
            "FILTER2": "Clear",
            "DATE-OBS": date,
            "UT": time,
            "TIME-OBS": time,
            "UTSTART": time,
            "UTEND": time,
            "EXPTIME": 60.0,
            "COADDS": 1,
            "LNRS": 8,
            "READMODE": "FOWLER",
            "GEMPRGID": "GS-2017A-Q-29",
            "OBSID": "GS-2017A-Q-29-1",
            "DATALAB": "GS-2017A-Q-29-1-001",
            "FRAME": "FK5",
        }
        | KINDS[kind]
    )
    noise = np.random.default_rng(seed).normal(1, 0.1, (4, 8, 8)).astype("f4")
    units = [
        fits.ImageHDU(
            plane,
            fits.Header(
                {
                    "EXTNAME": "SCI",
                    "EXTVER": number + 1,
                    "ARRAYID": name,
                    "CCDSUM": "1 1",
                    "DETSEC": f"[{x1 + 1}:{x2},{y1 + 1}:{y2}]",
                    "CCDSEC": f"[{x1 % 2048 + 1}:{x2 - x1 + x1 % 2048},1:2048]",
                }
            ),
        )
        for number, (plane, name, (x1, x2, y1, y2)) in enumerate(zip(noise, ARRAYS, sections))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([primary, *units]).writeto(path, overwrite=True)
    return path


@pytest.fixture
def night(tmp_path):
    """A science frame, flats of two filters, two masks; nothing is registered yet."""
    return {
        "science": write_gsaoi(
            tmp_path / "raw/S20170505S0095.fits", "science", "2017-05-05T02:30:00"
        ),
        "flat": write_gsaoi(tmp_path / "S20170505S0030_flat.fits", seed=1),
        "old flat": write_gsaoi(
            tmp_path / "S20170401S0001_flat.fits", when="2017-03-25T19:30:00", seed=2
        ),
        "J flat": write_gsaoi(tmp_path / "S20170505S0040_flat.fits", filter_name="J", seed=3),
        "bpm": write_gsaoi(
            tmp_path / "raw/bpm_20121104.fits", "bpm", "2012-11-04T00:00:00", seed=4
        ),
        "later bpm": write_gsaoi(
            tmp_path / "raw/bpm_20180101.fits", "bpm", "2018-01-01T00:00:00", seed=5
        ),
    }


def register(night, *names):
    for name in names or [name for name in night if name != "science"]:
        add(open_databases()[0], night[name])


def test_describe(night):
    row = describe(night["flat"])
    assert row["caltype"] == "processed_flat"
    assert row["filter_name"] == "Kshort"
    assert row["ut_datetime"] == dt.datetime(2017, 5, 4, 19, 30)
    assert row["detector_section"] == FULL
    assert row["array_name"] == ARRAYS
    assert row["shape"] == [[8, 8]] * 4
    assert describe(night["bpm"])["caltype"] == "processed_bpm"
    assert describe(night["science"])["caltype"] is None


def test_associate(night):
    register(night)
    flat = associate(night["science"], "processed_flat", open_databases())
    assert flat.chosen == str(night["flat"])
    assert [Path(candidate.path) for candidate in flat.candidates] == [
        night[n] for n in ("flat", "J flat", "old flat")
    ]
    assert associate(read_headers(night["science"]), "bpm", open_databases()).chosen == str(
        night["bpm"]
    )
    assert "valid from: 2018-01-01, the frame is of 2017-05-05" in explain(
        associate(night["science"], "bpm", open_databases())
    )


def test_associate_asks_each_database_once_where_answers_are_shared(night, monkeypatch):
    from gdask.caldb import database

    register(night)
    asked = []
    rows, problem = database.rows, database.file_problem
    monkeypatch.setattr(database, "rows", lambda *given: asked.append("rows") or rows(*given))
    monkeypatch.setattr(database, "file_problem", lambda row: asked.append("file") or problem(row))
    alone = associate(night["science"], "flat", open_databases())
    count, answers = len(asked), {}
    asked.clear()
    for _ in range(3):
        assert associate(night["science"], "flat", open_databases(), answers=answers) == alone
    assert alone.chosen and len(asked) == count


def test_associate_takes_a_frame(night):
    register(night)
    frame = gdask.open(night["science"])
    assert associate(frame, "flat", open_databases()) == associate(
        night["science"], "flat", open_databases()
    )


def test_why_not(night):
    register(night, "old flat", "J flat")
    answer = associate(night["science"], "flat", open_databases())
    assert answer.chosen is None
    text = explain(answer)
    assert text.splitlines()[0] == (
        "processed_flat for S20170505S0095.fits: none of the 2 registered for GSAOI fits "
        "(cal_manager.db); nearest first:"
    )
    assert "filter: Kshort wanted, J found" in text
    assert "time: 40.3 d apart, limit 30 d" in text
    assert "none is registered for GSAOI in cal_manager.db" in explain(
        associate(night["science"], "dark", open_databases())
    )


def test_gone_and_changed_files_are_passed_over(night):
    second = write_gsaoi(
        night["flat"].with_name("S2_flat.fits"), when="2017-05-03T19:30:00", seed=6
    )
    third = write_gsaoi(night["flat"].with_name("S3_flat.fits"), when="2017-05-02T19:30:00", seed=7)
    register(night | {"second": second, "third": third}, "flat", "second", "third")
    night["flat"].unlink()
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    os.utime(second, ns=(1, 1))
    os.utime(third, ns=(2, 2))  # touched but the same
    answer = associate(night["science"], "flat", open_databases())
    assert answer.chosen == str(third)
    texts = explain(answer)
    assert "file: gone from disk" in texts
    assert "file: changed on disk: another checksum" in texts


def test_equally_good_flats_are_told_and_copies_are_one(night):
    twin = write_gsaoi(night["flat"].with_name("S20170505S0030_z_flat.fits"), seed=8)
    copy = cache(night["flat"], "flat")
    register(night | {"twin": twin, "copy": copy}, "flat", "twin", "copy")
    answer = associate(night["science"], "flat", open_databases())
    assert answer.chosen == str(night["flat"])  # by name
    assert answer.ties == (str(twin),)
    assert "Equally good: S20170505S0030_z_flat.fits" in explain(answer)


def test_the_first_database_that_has_one_wins(night):
    first, second = database_at("a.db"), database_at("b.db")
    add(first, night["old flat"])
    add(second, night["flat"])
    add(
        first,
        write_gsaoi(night["flat"].with_name("far_flat.fits"), when="2017-04-20T19:30:00", seed=9),
    )
    assert associate(night["science"], "flat", (first, second)).chosen.endswith("far_flat.fits")
    assert associate(night["science"], "flat", (first._replace(get=False), second)).chosen == str(
        night["flat"]
    )


def test_an_instrument_brings_its_own_rules(night, monkeypatch):
    register(night)
    instrument = instruments.instrument_of(night["science"])
    monkeypatch.setitem(
        instrument.facts, "calibrations", {"processed_flat": {"equal": ["coadds"], "max_days": 90}}
    )
    answer = associate(night["science"], "flat", open_databases())
    assert not any(candidate.failed for candidate in answer.candidates)


# --- databases


def test_any_file_name(night, tmp_path):
    odd = database_at(tmp_path / "a?b#c %41" / "x;y.db")
    add(odd, night["flat"])
    assert (tmp_path / "a?b#c %41" / "x;y.db").is_file()
    assert [row["name"] for row in rows(odd)] == [night["flat"].name]


def test_entries(night):
    database = open_databases()[0]
    register(night)
    register(night)  # again: renewed, not doubled
    assert [row["name"] for row in rows(database)] == sorted(
        p.name for n, p in night.items() if n != "science"
    )
    row = rows(database, "processed_flat", "GSAOI")[1]
    assert row == describe(night["flat"]) | {
        key: row[key] for key in ("path", "name", "size", "mtime_ns", "md5", "added")
    }
    assert remove(database, f"elsewhere/{night['flat'].name}") == 1
    assert remove(database, night["flat"].name) == 0
    assert night["flat"].exists()
    init(database)
    assert len(rows(database)) == 4
    init(database, wipe=True)
    assert rows(database) == []


def test_raw_frames_are_refused(night):
    with pytest.raises(
        GdaskError, match=r"S20170505S0095.fits: neither a processed calibration .* nor a BPM"
    ):
        add(open_databases()[0], night["science"])
    assert not Path("cal_manager.db").exists()


def test_reading_makes_no_database(night):
    assert rows(open_databases()[0]) == []
    associate(night["science"], "flat", open_databases())
    assert not Path("cal_manager.db").exists()


def test_names_are_data(night):
    nasty = write_gsaoi(
        night["flat"].with_name("x'; DROP TABLE gdask_calibrations; --_flat.fits"), seed=10
    )
    register(night | {"nasty": nasty}, "flat", "nasty")
    assert remove(open_databases()[0], nasty.name) == 1
    assert len(rows(open_databases()[0])) == 1


WRITER = """
import sys, time
from gdask.caldb import database_at
from gdask.caldb.database import add
time.sleep(max(0, float(sys.argv[1]) - time.time()))
for path in sys.argv[2:]:
    add(database_at("shared.db"), path)
"""


def test_writers_at_the_same_time(night):
    paths = [write_gsaoi(night["flat"].with_name(f"S{n}_flat.fits"), seed=n) for n in range(12)]
    start = str(time.time() + 1.5)  # so that all have loaded by then
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, start, *paths[one::4]]) for one in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(rows(database_at("shared.db"))) == 12
    with sqlite3.connect("shared.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("SELECT version FROM gdask_schema").fetchall() == [
            (SCHEMA_VERSION,)
        ]
    connection.close()


def test_a_locked_database_is_told(night, monkeypatch):
    register(night, "bpm")
    monkeypatch.setattr("gdask.caldb.database.BUSY_SECONDS", 0.1)
    _engine.cache_clear()
    holder = sqlite3.connect("cal_manager.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(GdaskError, match="cal_manager.db: kept locked by another process"):
        register(night, "flat")
    assert len(rows(open_databases()[0])) == 1  # reading goes on
    holder.close()
    _engine.cache_clear()


def test_damaged_databases_are_explained(night):
    database = open_databases()[0]
    Path("cal_manager.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 16)
    with pytest.raises(GdaskError, match="cal_manager.db: damaged or not a calibration database"):
        rows(database)
    init(database, wipe=True)
    register(night, "flat")
    size = Path("cal_manager.db").stat().st_size
    with open("cal_manager.db", "r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(GdaskError, match="cal_manager.db: damaged or not a calibration database"):
        rows(database)
    init(database, wipe=True)
    assert rows(database) == []


def test_wiping_spares_files_that_are_no_database(night):
    before = night["flat"].read_bytes()
    with pytest.raises(GdaskError, match="not a calibration database, so it is not wiped"):
        init(database_at(night["flat"]), wipe=True)
    assert night["flat"].read_bytes() == before


def test_older_newer_and_foreign_databases(night):
    register(night, "flat")
    with sqlite3.connect("cal_manager.db") as connection:
        connection.execute("ALTER TABLE gdask_calibrations DROP COLUMN camera")
        connection.execute("UPDATE gdask_schema SET version = 0")
        connection.execute("CREATE TABLE diskfile (id INTEGER)")  # as in the field's own database
        connection.execute("INSERT INTO diskfile VALUES (7)")
    assert rows(open_databases()[0])[0]["camera"] is None  # brought up to date
    register(night, "bpm")
    assert len(rows(open_databases()[0])) == 2
    init(open_databases()[0], wipe=True)
    assert connection.execute("SELECT id FROM diskfile").fetchall() == [(7,)]
    connection.execute(f"UPDATE gdask_schema SET version = {SCHEMA_VERSION + 1}")
    connection.commit()
    connection.close()
    with pytest.raises(GdaskError, match="made by a newer gdask"):
        rows(open_databases()[0])


# --- products, Python, command line


def test_store_copies_and_registers_where_asked(night, tmp_path):
    keep, other = database_at("keep.db"), database_at("other.db", store=False)
    copy = store(night["flat"].name, (keep, other))
    assert copy == cache_path("S20170505S0030_flat.fits", "flat")
    assert copy == Path("calibrations/processed_flat/S20170505S0030_flat.fits")
    assert copy.read_bytes() == night["flat"].read_bytes()
    assert [row["path"] for row in rows(keep)] == [str(tmp_path / copy)]
    assert not Path("other.db").exists()
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    with pytest.raises(GdaskError, match="not a processed calibration"):
        store(night["science"], (keep,))


def test_the_cache_is_renewed_with_the_file(night):
    first = cache(night["flat"], "flat").read_bytes()
    write_gsaoi(night["flat"], seed=11)
    assert cache(night["flat"], "flat").read_bytes() == night["flat"].read_bytes() != first
    with pytest.raises(GdaskError, match="could not be copied"):
        cache("absent.fits", "flat")


def test_the_service_from_python(night):
    caldb = set_local_database()
    caldb.init()
    caldb.add_cal(night["bpm"])
    assert caldb.add_directory(".") == [str(night[n].name) for n in ("old flat", "flat", "J flat")]
    caldb.remove_cal("raw/bpm_20121104.fits")
    assert [entry.name for entry in caldb.list_files()] == [
        night[n].name for n in ("old flat", "flat", "J flat")
    ]
    with pytest.raises(GdaskError, match="not in cal_manager.db"):
        caldb.remove_cal("X.fits")
    caldb.init(wipe=True)
    assert caldb.list_files() == []
    assert "cal_manager.db" in caldb.config


def test_the_verb(night, capsys):
    def run(*words):
        code = main(words)
        out = capsys.readouterr()
        return code, out.out, out.err

    assert run("init") == (0, "cal_manager.db: ready\n", "")
    assert run("config")[:1] == (0,)
    code, out, err = run(
        "add", *(str(night[name]) for name in ("bpm", "flat", "science", "J flat"))
    )
    assert (code, out.count("added to cal_manager.db"), err.count("\n")) == (1, 3, 1)
    assert "caldb: " in err and "S20170505S0095.fits" in err
    assert run("list")[1].count("processed_flat") == 2
    assert run("remove", "X.fits")[0] == 1
    assert run("remove", night["J flat"].name)[0] == 0
    code, out, _ = run("why", str(night["science"]))
    assert (code, out.count("processed_bpm for"), out.count("processed_flat for")) == (0, 1, 1)
    assert run("why", str(night["science"]), "dark")[0] == 1
    assert "did you mean" in run("why", str(night["science"]), "fltt")[2]
    assert run("init")[1] == "cal_manager.db: exists, contents kept; 'caldb init -w' forgets them\n"
    assert run("init", "-w")[0] == 0
    assert "no files" in run("list")[1]
    assert run("add", "-k", ".")[0] == 0
    assert run("add", "absent.fits")[0] == 1
    assert run()[0] == 2
    assert run("lits")[0] == 2
    assert run("--help")[0] == 0


def twins(tmp_path, night):
    """Two registered files of one name, in two folders."""
    folders = [tmp_path / name for name in ("first", "second")]
    paths = []
    for folder in folders:
        folder.mkdir()
        paths.append(folder / night["flat"].name)
        paths[-1].write_bytes(night["flat"].read_bytes())
        assert main(["add", str(paths[-1])]) == 0
    return paths


def test_remove_asks_which_of_two_with_one_name(tmp_path, night, capsys):
    paths = twins(tmp_path, night)
    capsys.readouterr()
    assert main(["remove", paths[0].name]) == 1
    said = capsys.readouterr().err
    assert "2 entries have this name" in said and all(str(path) in said for path in paths)
    assert len(rows(open_databases()[0])) == 2
    assert main(["remove", f"first/{paths[0].name}"]) == 0
    assert [row["path"] for row in rows(open_databases()[0])] == [str(paths[1])]
    assert main(["remove", paths[0].name]) == 0 and not rows(open_databases()[0])


def test_messages_name_the_database_after_a_change_of_folder(tmp_path, night, monkeypatch):
    from gdask import cal_service

    database = cal_service.set_local_database("here.db")
    assert database.name == "here.db"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert database.name == str(tmp_path / "here.db")
    with pytest.raises(GdaskError, match=f"not in {tmp_path}/here.db"):
        database.remove_cal("x.fits")
    database.add_cal(night["flat"])
    assert (tmp_path / "here.db").exists() and not list(Path().iterdir())


@pytest.mark.parametrize("words", [["list"], ["config"], ["list", "-d", "x.db"]])
def test_a_closed_pipe_ends_quietly(tmp_path, words):
    program = "import sys, time; from gdask.cli.caldb import main; time.sleep(0.3);"
    command = [sys.executable, "-c", f"{program} sys.exit(main({words!r}))"]
    read_end, write_end = os.pipe()
    os.close(read_end)  # as after `| true`
    done = subprocess.run(
        command, check=False, stdout=write_end, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")
