"""Names and values from outside: escapes, other encodings, symbolic links."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from astropy.io import fits

from gdask import cli, logutils
from gdask.cal_service import fits_files
from gdask.model import UsageError, clean, clean_lines, folders_below
from gdask.reduction.reduce import Reduce
from gdask.reduction.replay import Account, find_files

#: What would move the cursor, colour, start a line, turn the text; and harmless letters.
NASTY = "a\x1b[31mred\x1b]0;title\x07\r\x08\n2026 WARNING forged\x9b2J\u202eevil\u2028x\x00"
HARMLESS = "é_naïve_日本 [x] \\ ~ #"


def is_safe(text: str) -> bool:
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_clean_gives_one_line_and_leaves_letters() -> None:
    shown = clean(NASTY)
    assert is_safe(shown) and "\n" not in shown and "\\x1b[31mred" in shown and "\\n2026" in shown
    assert clean(HARMLESS) == HARMLESS and clean("\udcff.fits") == "\\udcff.fits"
    assert clean_lines("a\nWARNING: b\n  c") == "a\n    WARNING: b\n  c"


def test_the_log_cannot_be_forged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logutils.config(str(tmp_path / "reduce.log"))
    logging.getLogger("gdask").warning("%s set aside", NASTY)
    logging.getLogger("gdask").info("plain")
    kept, shown = (tmp_path / "reduce.log").read_text(), capsys.readouterr().out
    for text in (kept, shown):
        assert is_safe(text) and "plain" in text
        assert not [line for line in text.splitlines() if line.startswith("2026 WARNING")]
    assert [line[:2] for line in kept.splitlines()] == ["20", "  ", "20"]


@pytest.fixture
def nasty_file(night: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A raw file whose name holds escapes and a new line, alone in the working folder."""
    name = "S1\x1b[2J\nreduce: all is well\u202e.fits"
    shutil.copy(night.science[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize(
    "words",
    [
        ["typewalk"],
        ["showd", "FILE", "-d", "object"],
        ["verify", "FILE"],
        ["caldb", "add", "FILE"],
        ["caldb", "why", "FILE"],
        ["reduce", "FILE", "--logfile", "x.log"],
        ["reduce", "FILE.gone"],
        ["replay", "FILE"],
        ["showrecipes", "FILE"],
        ["showd", "FILE.gone", "-d", "object"],
        ["dataselect", "@FILE"],
    ],
)
def test_names_with_escapes_are_cleaned(
    nasty_file: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([word.replace("FILE", nasty_file) for word in words])
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert is_safe(text)
        assert not [line for line in text.splitlines() if line.startswith("reduce: all is well")]
    log = Path("x.log").read_text() if Path("x.log").exists() else ""
    assert is_safe(log)


def test_values_with_escapes_are_cleaned(
    night: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "S1.fits"
    shutil.copy(night.science[0], path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"NGC5128-halo", b"NG\x1b[31m8-halo", 1))
    for words in (["showd", str(path), "-d", "object"], ["verify", str(path)]):
        cli.main(words)
        said = capsys.readouterr()
        assert is_safe(said.out) and is_safe(said.err)


# Other encodings --------------------------------------------------------------------------------

ASCII = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_commands_under_an_ascii_file_system_encoding(night: object, tmp_path: Path) -> None:
    folder = tmp_path / "né_日本"
    folder.mkdir()
    shutil.copy(night.science[0], folder / "ü.fits")
    shutil.copy(night.bpm, folder / "bpmé.fits")

    def gdask(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "gdask.cli." + words[0], *words[1:]]
        done = subprocess.run(
            command, check=False, cwd=folder, env=os.environ | ASCII, capture_output=True
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    assert gdask("dataselect", "ü.fits", "-o", "ü.list")[0] == 0
    assert gdask("showd", "@ü.list", "-d", "object")[1].count("ü.fits") == 1
    assert gdask("caldb", "add", str(folder / "bpmé.fits"))[0] == 0
    assert str(folder) in gdask("caldb", "list")[1]
    flats = ("à_1.fits", "ß.fits")
    for name, path in zip(flats, (night.flat_on[0], night.flat_off[0]), strict=True):
        shutil.copy(path, folder / name)
    code, said, error = gdask("reduce", *flats)
    assert (code, said.splitlines()[-1], error) == (0, "à_flat.fits", "")
    with fits.open(folder / "à_flat.fits", checksum=True) as hdus:
        assert hdus[0].header["IMCMB001"] == "\\xe0_1.fits"


def test_a_name_that_is_no_text_is_refused(
    night: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"S1\xff.fits")
    shutil.copy(night.science[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    reduction = Reduce()
    reduction.files.append(name)
    with pytest.raises(UsageError, match="not valid UTF-8 text.*rename"):
        reduction.runr()
    assert cli.main(["caldb", "add", name]) in (1, 2)


# Symbolic links ---------------------------------------------------------------------------------


def test_folders_behind_links_are_walked_once(tmp_path: Path) -> None:
    top, other = tmp_path / "top", tmp_path / "other"
    for folder in (top / "a", other / "deep"):
        folder.mkdir(parents=True)
        (folder / "x.fits").touch()
    (top / "raw").symlink_to(other)
    (top / "again").symlink_to(top / "a")
    (top / "a" / "up").symlink_to(top)
    (top / "around").symlink_to(tmp_path)
    (other / "back").symlink_to(top)
    found = [os.path.join(where, name) for where, names in folders_below(top) for name in names]
    assert found == [f"{top}/a/x.fits", f"{top}/raw/deep/x.fits"]
    assert [str(path) for path in fits_files(top, walk=True)] == found


def test_typewalk_and_replay_see_what_links_lead_to(
    night: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "raw").symlink_to(Path(night.science[0]).parent)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["typewalk"]) == 0
    assert Path(night.science[0]).name in capsys.readouterr().out
    from gdask.caldb.database import md5_of

    path = night.science[0]
    file = {"role": "input", "name": Path(path).name, "size": 1, "md5": md5_of(path)}
    account = Account("p.fits", {}, {}, None, {}, (file,), (), ())
    (found,) = find_files(account, ["."]).values()
    assert os.path.samefile(found, path)


def test_replay_writes_through_no_link(tmp_path: Path) -> None:
    from gdask.model import GdaskError
    from gdask.reduction.replay import _working_folder

    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("replay.rc", "replay.db"):
        folder = tmp_path / f"keep-{name}"
        folder.mkdir()
        (folder / name).symlink_to(victim)
        with pytest.raises(GdaskError, match="symbolic link"), _working_folder(str(folder)):
            pass
    assert victim.read_text() == "mine"
