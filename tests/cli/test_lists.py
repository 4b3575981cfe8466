"""@LISTs as people and other programs write them: names, or one line with the fault; no hang."""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from gdask import cli
from gdask.cli import expand_files
from gdask.model import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.fits\nb.fits\n", ["a.fits", "b.fits"]),
        (b"a.fits\r\nb.fits\r\n", ["a.fits", "b.fits"]),
        (b"\xef\xbb\xbfa.fits\nb.fits", ["a.fits", "b.fits"]),
        (
            b"# Includes tags: FLAT\n\n   \n  a.fits   # the first\n\tb.fits\n#c.fits\n",
            ["a.fits", "b.fits"],
        ),
        (b"a#1.fits\n", ["a#1.fits"]),
        ("n\u00e9buleuse.fits\n".encode(), ["n\u00e9buleuse.fits"]),
        (b"with blank.fits\n", ["with blank.fits"]),
        (b"", []),
    ],
)
def test_names_in_lists_of_any_editor(content: bytes, names: list[str]) -> None:
    Path("x.list").write_bytes(content)
    assert expand_files(["@x.list"]) == names


def test_five_thousand_names(capsys: pytest.CaptureFixture) -> None:
    """Read at once; what is missing is one line, not 5000."""
    Path("x.list").write_text(
        "".join(f"raw/S20170505S{number:04d}.fits\n" for number in range(5000))
    )
    begin = time.monotonic()
    assert len(expand_files(["@x.list"])) == 5000 and time.monotonic() - begin < 5
    assert cli.main(["reduce", "@x.list"]) == 2
    said = capsys.readouterr().err
    assert (
        "raw/S20170505S0000.fits: no such file; 4999 more are missing too; check names and folder"
        in said
        and said.count("\n") == 1
    )


def test_lists_in_lists() -> None:
    Path("sub").mkdir()
    Path("all.list").write_text("@sub/night.list\nz.fits\n")
    Path("sub/night.list").write_text("@more.list\ny.fits\n")
    Path("sub/more.list").write_text("x.fits\n")
    assert expand_files(["@all.list"]) == ["x.fits", "y.fits", "z.fits"]


def chain(length: int, links: int = 1) -> None:
    for number in range(length):
        Path(f"{number}.list").write_text(f"@{number + 1}.list\n" * links)
    Path(f"{length}.list").write_text("# nothing\n")


@pytest.mark.parametrize(
    ("make", "given", "words"),
    [
        (
            lambda: Path("a.list").write_text("@a.list\n"),
            "@a.list",
            "the list contains itself (a.list -> a.list)",
        ),
        (
            lambda: [Path(f"{n}.list").write_text(f"@{m}.list\n") for n, m in ("ab", "ba")],
            "@a.list",
            "the list contains itself",
        ),
        (
            lambda: [os.symlink("a.list", "b.list"), Path("a.list").write_text("@b.list\n")],
            "@a.list",
            "the list contains itself",
        ),
        (lambda: chain(300), "@0.list", "lists inside each other"),
        (lambda: chain(12, 9), "@0.list", "lists inside each other, or 1000 in all"),
        (lambda: os.mkdir("folder"), "@folder", "@folder: the list cannot be read: Is a directory"),
        (lambda: os.mkfifo("pipe"), "@pipe", "@pipe: the list cannot be read: not a regular file"),
        (lambda: None, "@/dev/zero", "@/dev/zero: the list cannot be read: not a regular file"),
        (lambda: None, "@", "@: the list cannot be read"),
        (
            lambda: Path("z.list").write_bytes(b"a\0b.fits\n"),
            "@z.list",
            "'a\\x00b.fits' (named in z.list): not a name of a file",
        ),
        (
            lambda: Path("u.list").write_bytes("a.fits\n".encode("utf-16")),
            "@u.list",
            "not a text file",
        ),
        (
            lambda: Path("p.list").write_text("none*.fits\n"),
            "@p.list",
            "no file matches none*.fits (named in p.list)",
        ),
        (
            lambda: Path("m.list").write_text("@gone.list\n"),
            "@m.list",
            "@gone.list: the list cannot be read (named in m.list): No such file",
        ),
        (
            lambda: [Path("big.list").touch(), os.truncate("big.list", 1 << 30)],
            "@big.list",
            "@big.list: the list cannot be read: longer than 16 MB",
        ),
    ],
)
def test_lists_that_are_none(
    make: object, given: str, words: str, capsys: pytest.CaptureFixture
) -> None:
    make()
    begin = time.monotonic()
    with pytest.raises(UsageError) as error:
        expand_files([given])
    assert words in str(error.value) and "\n" not in str(error.value)
    assert cli.main(["reduce", given]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and time.monotonic() - begin < 5


def test_a_list_from_the_shell() -> None:
    """`reduce @<(dataselect ...)`: a pipe that the shell made is read."""
    read, write = os.pipe()
    os.write(write, b"a.fits\n")
    os.close(write)
    assert expand_files([f"@/dev/fd/{read}"]) == ["a.fits"]
    os.close(read)


@pytest.mark.parametrize("verb", ["typewalk", "dataselect", "showd", "verify", "reduce", "replay"])
def test_a_name_with_a_zero_byte(verb: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main([verb, "a\0b.fits", *(["-d", "object"] if verb == "showd" else [])]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


ODD = [
    "plain.fits",
    "with blank.fits",
    "a #b.fits",
    " outer ",
    "@secret",
    "x\n@secret",
    "cr\r.fits",
    "#c.fits",
    '"quoted"',
    '"half.fits',
    "tab\t.fits",
    "\x1b[2J.fits",
    "next\x85line\u2028.fits",
    "S[1]*.fits",
    "back\\slash.fits",
    os.fsdecode(b"latin\xe9.fits"),
    "é.fits",
]


@pytest.mark.parametrize("name", ODD)
def test_names_come_back_from_lists_and_pipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(name).touch()
    Path("secret").write_text("stolen.fits\n")
    cli.write_list("x.list", ["Tags: a\n@secret"], ["first.fits", name])
    assert expand_files(["@x.list"]) == ["first.fits", name]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{cli.list_line(name)}\n"))
    assert expand_files([], stdin=True) == [name]


def test_a_comment_after_quotes_and_quotes_that_are_none() -> None:
    Path("x.list").write_text('"a #b.fits"  # mine\n"open.fits\n"a" b.fits\n')
    assert expand_files(["@x.list"]) == ["a #b.fits", '"open.fits', '"a" b.fits']


def test_dataselect_writes_names_that_come_back(night: object) -> None:
    names = ["a #b.fits", "x\n@secret.fits"]
    for name in names:
        shutil.copy(night.science[0], name)
    assert cli.main(["dataselect", *names, "-o", "x.list"]) == 0
    assert cli.main(["typewalk", "-o", "y.list"]) == 0
    assert expand_files(["@x.list"]) == names
    assert expand_files(["@y.list"]) == [f"./{name}" for name in names]


def test_a_list_that_cannot_be_written_is_named_and_not_left_half(
    night: object, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(night.science[0], "a.fits")
    Path("old.list").write_text("old.fits\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # as on a full disk
    try:
        code = cli.main(["dataselect", "a.fits", "-o", "old.list"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert code == 1 and "old.list: the list cannot be written" in capsys.readouterr().err
    assert Path("old.list").read_text() == "old.fits\n" and not list(Path().glob("*.part"))
