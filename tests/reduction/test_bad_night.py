"""The GSAOI tutorial in a folder with faulty files mixed in.

The products are those of the good frames alone, and each other file is accounted for.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from conftest import Night
from test_faults import cut, edited, keywords, rows, scribble

from gdask import Reduce, cli
from gdask.model import GdaskError
from gdask.simulate import simulate_f2

#: Files that no command can take: what is done to a copy of a frame, and what each command says of
#: it.
UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "S20170505S0901.fits": (
        cut(-20000),
        "pixels of extension 4 are cut short; copy the file again",
    ),
    "S20170505S0902.fits": (
        cut(3000),
        "header of extension 0 is cut short (no END card); copy the file again",
    ),
    "S20170505S0903.fits": (cut(0), "the file is empty, a FITS file was expected; copy it again"),
    "S20170505S0904.fits": (
        lambda path: path.write_text("<html>503 Service Unavailable</html>\n" * 99),
        "not a FITS file",
    ),
    "S20170505S0905.fits": (
        lambda path: (path.unlink(), path.symlink_to("gone.fits")),
        "no such file; check the name and the folder",
    ),
}
if os.geteuid():  # root may read everything
    UNREADABLE["S20170505S0906.fits"] = (
        lambda path: path.chmod(0),
        "cannot be read (Permission denied)",
    )

#: Frames that a list of science frames takes in: by headers, by pixels.
UNUSABLE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "S20170505S0912.fits": (
        keywords(FILTER1="J_G1103"),
        "headers",
        "filter J, the others have Kshort; reduce it apart",
    ),
    "S20170505S0913.fits": (
        keywords(EXPTIME=10.0),
        "skies",
        "no sky frame at least 1 arcsec away with the same filter and exposure time (Kshort, 10 s)",
    ),
    "S20170505S0914.fits": (
        keywords(EXPTIME=None),
        "headers",
        (
            "no exposure time from its headers (EXPTIME missing or not valid); "
            "repair them and run again"
        ),
    ),
    "S20170505S0915.fits": (
        lambda path: (edited(path), scribble(str(path), float("nan"), 1, 2, 3, 4)),
        "pixels",
        "no usable pixels: 100 % NaN or no data",
    ),
    "S20170505S0916.fits": (
        lambda path: None,
        "open",
        "the same exposure as raw/{}, which is in the list too",
    ),
    "S20170505S0917.fits": (
        lambda path: edited(path, each=lambda hdus: hdus[:4]),
        "headers",
        "number of arrays 3, the others have 4; reduce it apart",
    ),
    "S20170505S0918.fits": (
        lambda path: edited(path, each=lambda hdus: rows(hdus, 200)),
        "headers",
        "size of arrays 320 x 200, the others have 320 x 320; reduce it apart",
    ),
    "S20170505S0919.fits": (
        keywords(RA=100.0, DEC=-30.0),
        "targets",
        "its target (NGC5128) is 4645.1 arcmin from that of the others; reduce it apart",
    ),
}
F2 = "S20170505S0911.fits"


@pytest.fixture
def here(workspace: Path, night: object) -> Path:
    """Make raw/ with the night's flats, science frames and mask, and a faulty copy for each fault.

    The copies are of one science frame.
    """
    (workspace / "raw").unlink()
    (workspace / "raw").mkdir()
    for path in (*night.flat_on, *night.flat_off, *night.sequence, night.bpm):
        os.link(path, workspace / "raw" / Path(path).name)
    faults = UNREADABLE | {name: (damage, words) for name, (damage, _, words) in UNUSABLE.items()}
    for name, (damage, _) in faults.items():
        damage(Path(shutil.copy(night.science[1], workspace / "raw" / name)))
    simulate_f2(workspace / "f2", size=64, n_science=3, n_darks=2, n_short_darks=2, n_lamps=2)
    shutil.copy(
        next(
            path
            for path in sorted((workspace / "f2/raw").iterdir())
            if fits.getheader(path)["OBSCLASS"] == "science"
        ),
        workspace / "raw" / F2,
    )
    return workspace


def table(text: str) -> dict[str, tuple[str, str]]:
    """Read the table at the end of a run: file -> (where it was left out, why)."""
    head, _, body = text.partition(" left out:\n")
    found = {
        name: (step, why)
        for name, step, why in re.findall(r"^    (\S+\.fits) +(\w+) +(.*)$", body, re.MULTILINE)
    }
    assert int(head.rpartition("\n")[2]) == len(found)
    return found


def pixels(path: Path) -> dict[str, bytes]:
    with fits.open(path) as hdus:
        return {
            f"{hdu.name} {hdu.ver}": hdu.data.tobytes()
            for hdu in hdus
            if hdu.name in ("SCI", "VAR", "DQ")
        }


def test_the_tutorial_with_many_faults_in_its_folder(
    here: Path,
    night: object,
    reduced: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def typed(*line: str) -> tuple[int, str, str]:
        caplog.clear()
        code = cli.main(list(line))
        out, err = capsys.readouterr()
        return code, out, err + caplog.text

    files = sorted(str(path) for path in Path("raw").iterdir())
    unreadable = {name: f"{name}: {words}" for name, (_, words) in UNREADABLE.items()}

    # Commands that look at headers show what can be read, and a line for each file that cannot;
    # their exit code is 1.
    for line in (
        ["typewalk", "-d", "raw"],
        ["showd", *files, "-d", "filter_name"],
        [
            "dataselect",
            "--tags",
            "FLAT",
            "--expr",
            "filter_name=='Kshort'",
            *files,
            "-o",
            "flats_Kshort.list",
        ],
        [
            "dataselect",
            "--expr",
            '(observation_class=="science" and exposure_time==60.)',
            *files,
            "-o",
            "sixty.list",
        ],
        ["dataselect", "--expr", 'observation_class=="science"', *files, "-o", "science.list"],
    ):
        code, out, printed = typed(*line)
        assert code == 1, (line, printed)
        assert all(words in out + printed for words in unreadable.values()), (line, printed)
        assert printed.count("\n") <= len(unreadable) + 1 and "Traceback" not in printed
    listed = {
        name: [
            Path(line).name
            for line in Path(f"{name}.list").read_text().splitlines()
            if line[0] != "#"
        ]
        for name in ("sixty", "science")
    }
    assert set(listed["science"]) == {Path(path).name for path in night.sequence} | set(
        UNUSABLE
    ) | {F2}
    assert set(listed["science"]) - set(listed["sixty"]) == {
        "S20170505S0913.fits",
        "S20170505S0914.fits",
        F2,
    }

    # Calibrations: the mask and the flat, with nothing left out.
    assert typed("caldb", "init")[0] == 0
    code, _, printed = typed("caldb", "add", night.bpm, "raw/S20170505S0903.fits")
    assert code == 1 and unreadable["S20170505S0903.fits"] in printed
    assert typed("reduce", "-q", "@flats_Kshort.list")[:2] == (
        0,
        f"{next(reduced.glob('*_flat.fits')).name}\n",
    )

    # The check lists bad pointings of the others.
    code, out, printed = typed("reduce", "@science.list", "-r", "checkWCS")
    bad = [name for name in listed["science"] if f"{name} points" in out]
    assert code == 1 and len(bad) == 4 and "S20170505S0919.fits" in bad
    assert set(table(printed)) == set(UNUSABLE) - {
        "S20170505S0913.fits",
        "S20170505S0915.fits",
        "S20170505S0919.fits",
    } | {F2}

    # The stack: the same pixels as without the faults.
    code, out, printed = typed(
        "reduce", "-q", "@science.list", "-p", "skyCorrect:offset_sky=False", "prepare:bad_wcs=fix"
    )
    (image,) = reduced.glob("*_image.fits")
    assert code == 1 and out.splitlines()[-1] == image.name and "Traceback" not in printed
    expected = {
        name: (step, words.format(Path(night.science[1]).name))
        for name, (_, step, words) in UNUSABLE.items()
    }
    expected[F2] = ("tags", "it is of F2, the first file is of GSAOI; reduce it apart")
    assert table(printed) == expected
    assert pixels(here / image.name) == pixels(image)
    assert not list(here.glob("**/*.part")) and not (here / ".gdask").exists()
    assert typed("verify", image.name)[0] == 0


def test_a_flat_of_a_lamp_that_was_off_is_refused_with_its_level(
    night: Night, workspace: Path
) -> None:
    """Noise divided by a negative level looks like a flat: it is not written, nor registered."""
    for path in night.flat_on:
        with fits.open(path) as units:
            for unit in units[1:]:
                unit.data = np.zeros_like(unit.data)
            units.writeto(workspace / Path(path).name)
    reduction = Reduce()
    reduction.files.extend([*(Path(path).name for path in night.flat_on), *night.flat_off])
    with pytest.raises(
        GdaskError, match=r"_flat\.fits: not written: the lamp gave no light, .*-\d"
    ):
        reduction.runr()
    assert not list(workspace.glob("*_flat.fits"))
    assert not list((workspace / "calibrations").rglob("*_flat.fits"))
