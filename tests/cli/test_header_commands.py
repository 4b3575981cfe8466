"""typewalk, dataselect, showd and gdask on the command line."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

from gdask import cli
from gdask.cli import dataselect, showd, typewalk
from gdask.cli.lists import expand_files
from gdask.model import GdaskError

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples"
LONG = "a_name_that_is_longer_than_the_column.fits"
NIGHT = {  # name: OBJECT, OBSCLASS, EXPTIME, FILTER1
    "raw/S20170504S0114.fits": ("9132", "partnerCal", 30.0, "Kshort_G1105"),
    "raw/S20170505S0030.fits": ("Domeflat", "dayCal", 8.0, "Kshort_G1105"),
    "raw/S20170505S0060.fits": ("Domeflat OFF", "dayCal", 8.0, "H_G1103"),
    "raw/deep/S20170505S0095.fits": ("NGC, 5128", "science", 60.0, "Kshort_G1105"),
    f"raw/deep/{LONG}": ("NGC 5128", "science", 60.0, "Kshort_G1105"),
}


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with raw files of a night, headers without pixels; a terminal as standard input."""
    monkeypatch.chdir(tmp_path)
    Path("raw/deep").mkdir(parents=True)
    for name, (target, kind, seconds, filter_name) in NIGHT.items():
        phu = fits.PrimaryHDU()
        phu.header.update(
            {
                "INSTRUME": "GSAOI",
                "OBSERVAT": "Gemini-South",
                "OBJECT": target,
                "OBSCLASS": kind,
                "OBSTYPE": "OBJECT",
                "EXPTIME": seconds,
                "FILTER1": filter_name,
                "FILTER2": "Clear",
                "DATE-OBS": "2017-05-05",
                "UT": "02:24:00.5",
            }
        )
        fits.HDUList([phu, fits.ImageHDU()]).writeto(name)
    Path("raw/notes.txt").write_text("not for typewalk")
    stdin = io.StringIO()
    stdin.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", stdin)
    return tmp_path


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


# typewalk


def test_typewalk(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typewalk.main(["-d", "raw"]) == 0
    assert (
        capsys.readouterr().out
        == f"""
directory:  raw
     S20170504S0114.fits ............... (GEMINI) (GSAOI) (IMAGE) (RAW) (SOUTH) (UNPREPARED)
     S20170505S0030.fits ............... (CAL) (DOMEFLAT) (FLAT) (GEMINI) (GSAOI) (IMAGE) \
(LAMPON) (RAW) (SOUTH) (UNPREPARED)
     S20170505S0060.fits ............... (CAL) (DOMEFLAT) (FLAT) (GEMINI) (GSAOI) (IMAGE) \
(LAMPOFF) (RAW) (SOUTH) (UNPREPARED)

directory:  raw/deep
     S20170505S0095.fits ............... (GEMINI) (GSAOI) (IMAGE) (RAW) (SOUTH) (UNPREPARED)
     {LONG}
     ................................... (GEMINI) (GSAOI) (IMAGE) (RAW) (SOUTH) (UNPREPARED)
"""
    )


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["-n"], ["S20170504S0114", "S20170505S0030", "S20170505S0060"]),
        (["--tags", "FLAT", "LAMPON"], ["S20170505S0030"]),
        (["--tags", "lampon,flat"], ["S20170505S0030"]),
        (["--tags", "LAMPON", "LAMPOFF", "--or"], ["S20170505S0030", "S20170505S0060"]),
        (["--xtags", "CAL", "-n"], ["S20170504S0114"]),
        (["-f", r".*0[36]0\.fits"], ["S20170505S0030", "S20170505S0060"]),
    ],
)
def test_typewalk_options(night: Path, options: list[str], names: list[str]) -> None:
    assert typewalk.main(["-d", "raw", "-o", "found.list", "-b", "10", *options]) == 0
    assert [Path(name).stem for name in expand_files(["@found.list"])] == names


def test_typewalk_names_what_it_cannot_read(
    night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("raw/bad.fits").write_bytes(b"x" * 5000)
    fits.PrimaryHDU(header=fits.Header({"INSTRUME": "NIRI"})).writeto("raw/other.fits")
    assert typewalk.main(["-d", "raw", "-n"]) == 1
    found = capsys.readouterr()
    assert "raw/bad.fits: not a FITS file" in found.err and "S20170504S0114" in found.out
    assert found.err.endswith("typewalk: 1 file cannot be read: raw/bad.fits\n")
    assert "raw/other.fits: is of instrument 'NIRI'; gdask knows F2, GSAOI" in found.err
    assert "notes" not in found.out + found.err
    Path("raw/bad.fits").unlink()
    assert typewalk.main(["-d", "raw", "-n"]) == 0  # of another instrument, and not damaged
    assert "other.fits" in capsys.readouterr().err
    assert typewalk.main(["-d", "nowhere"]) == 2
    assert capsys.readouterr().err == "typewalk: nowhere: no such folder\n"
    assert typewalk.main(["-f", "("]) == 2


# dataselect and showd


def test_dataselect(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        dataselect.main(
            ["--tags", "FLAT", "--expr", "filter_name=='Kshort'", "raw/*.fits", "-o", "flats.list"]
        )
        == 0
    )
    assert capsys.readouterr().out == ""
    assert Path("flats.list").read_text().splitlines() == [
        "# Includes tags: FLAT",
        "# Excludes tags: none",
        "# Descriptor expression: filter_name=='Kshort'",
        "raw/S20170505S0030.fits",
    ]
    assert (
        dataselect.main(
            ["raw/*.fits", "@flats.list", "--xtags", "LAMPON,LAMPOFF", "-o", "std.list", "-v"]
        )
        == 0
    )
    assert capsys.readouterr().out == "raw/S20170504S0114.fits\n"
    assert dataselect.main(["raw/*.fits", "--expr", "exposure_time==8.01", "--strict"]) == 0
    assert capsys.readouterr().err == "dataselect: no file matches\n"
    assert dataselect.main(["raw/*.fits", "-t", "FALT"]) == 2
    assert "tag FALT: unknown; did you mean FLAT?" in capsys.readouterr().err
    assert dataselect.main(["raw/*.fits", "-t", "TWILIGHT"]) == 0
    assert "none has the tag TWILIGHT" in capsys.readouterr().err


def test_dataselect_into_showd(
    night: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dataselect.main(["raw/*.fits", "--expr", 'observation_class=="dayCal"']) == 0
    pipe(monkeypatch, capsys.readouterr().out)
    assert showd.main(["-d", "object,filter_name", "-d", "ut_time"]) == 0
    rule = "-" * 70
    assert (
        capsys.readouterr().out
        == f"""\
{rule}
filename                        object   filter_name           ut_time
{rule}
raw/S20170505S0030.fits       Domeflat        Kshort   02:24:00.500000
raw/S20170505S0060.fits   Domeflat OFF             H   02:24:00.500000
"""
    )


def test_showd_csv_and_long(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        showd.main(
            ["raw/deep/S*.fits", "-d", "object,filter_name,exposure_time", "--csv", "--long"]
        )
        == 0
    )
    assert capsys.readouterr().out == (
        "filename,object,filter_name,exposure_time\n"
        'raw/deep/S20170505S0095.fits,"NGC, 5128",Kshort_G1105&Clear,60.0\n'
    )


def test_mistakes_get_a_message_and_a_code(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert showd.main(["raw/*.fits", "-d", "filtername"]) == 2
    assert (
        capsys.readouterr().err
        == "showd: no descriptor 'filtername'; the closest is 'filter_name'\n"
    )
    assert showd.main(["raw/*.fits"]) == 2
    assert showd.main(["-d", "object"]) == 2  # a terminal, no files
    assert dataselect.main([]) == 2
    capsys.readouterr()
    assert showd.main(["raw/S20170504S0114.fits", "gone.fits", "-d", "object"]) == 1
    found = capsys.readouterr()
    assert found.err == "showd: skipped: gone.fits: no such file; check the name and the folder\n"
    assert "9132" in found.out
    assert dataselect.main(["raw/*.fits", "--expr", "object=9132"]) == 2
    assert capsys.readouterr().err == (
        "dataselect: expression not understood: use == to compare\n  object=9132\n        ^\n"
    )
    assert dataselect.main(["none*.fits"]) == 2
    assert dataselect.main(["raw/*.fits", "-o", "no/such/folder.list"]) == 1


def test_lists(night: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lists").mkdir()
    Path("lists/a.list").write_text("# first\n\nx.fits  # a comment\n@b.list\nraw/S*30.fits\n")
    Path("lists/b.list").write_text("y#1.fits\n")
    assert expand_files(["@lists/a.list", "z.fits"]) == [
        "x.fits",
        "y#1.fits",
        "raw/S20170505S0030.fits",
        "z.fits",
    ]
    Path("loop.list").write_text("@loop.list\n")
    with pytest.raises(GdaskError, match="contains itself"):
        expand_files(["@loop.list"])
    Path("lists/b.list").write_text("@c.list\n")
    with pytest.raises(GdaskError, match=r"@c.list: .*named in lists/b.list"):
        expand_files(["@lists/a.list"])
    pipe(monkeypatch, "p.fits\n# no\nq.fits\n")
    assert expand_files(["a.fits", "-", "b.fits"], stdin=True) == [
        "a.fits",
        "p.fits",
        "q.fits",
        "b.fits",
    ]
    pipe(monkeypatch, "p.fits\n")
    assert expand_files(["a.fits"], stdin=True) == ["a.fits"]


# gdask


def test_gdask(night: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gdask 0.")
    assert cli.main(["typewalk", "-d", "raw"]) == 0
    assert "S20170504S0114" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["typewlak"]) == 2
    assert "did you mean typewalk?" in capsys.readouterr().err


def test_commands_end_quietly_and_load_little(night: Path) -> None:
    """A closed pipe is no error, and none of the heavy packages is imported."""
    code = (
        "import sys; from gdask.cli import main; import gdask.cli.showd, gdask.cli.dataselect; "
        "code = main(['typewalk', '-d', 'raw']); "
        "heavy = {'dask', 'xarray', 'numba', 'scipy', 'sqlalchemy', 'matplotlib'} & "
        "set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        assert started.stdout is not None and started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0


# Listings of the field's own commands


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no sample data at hand")
@pytest.mark.parametrize("instrument", ["gsaoi", "f2"])
def test_samples(
    instrument: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SAMPLES / instrument)

    def rows(text: str) -> list[list[str]]:
        """The words of each line, without leaders, rules and the compression's suffix."""
        words = (line.replace(".fits.gz", ".fits").split() for line in text.splitlines())
        return [kept for line in words if (kept := [word for word in line if word.strip(".-")])]

    assert typewalk.main(["-d", "raw"]) == 0
    ours = rows(capsys.readouterr().out)
    assert ours == [
        row for row in rows(Path("peer/typewalk.txt").read_text()) if row[0] not in ("None", "Done")
    ]
    names = "filter_name,exposure_time,object,observation_class,ut_datetime"
    assert showd.main(["raw/*", "-d", names]) == 0
    ours = rows(capsys.readouterr().out)
    assert ours == rows(Path("peer/showd.txt").read_text())
    assert len(ours) > 25


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["simulate", "-h"], ["typewalk", "--help"], ["reduce", "-h"]],
)
def test_help_into_a_closed_pipe_ends_quietly(arguments: list[str]) -> None:
    """`gdask --help | true` ended with a traceback."""
    code = f"from gdask.cli import main; raise SystemExit(main({arguments}))"
    late = f"import time; time.sleep(0.3); {code}"
    with subprocess.Popen(
        [sys.executable, "-c", late], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as started:
        assert started.stdout is not None and started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == b""
    assert started.returncode == 0
