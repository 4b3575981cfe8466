"""Inputs that grow by what they reach: those that run new lines of gdask are changed further.

Headers, lists, expressions and tables give a value or a GdaskError, never another exception. A few
hundred by default, always the same; 100,000 with `make test-slow`, others each time, of which the
number that the failure names makes them again: GDASK_FUZZ_SEED=N.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from test_fuzz import EXT, PHU, bounded, mef

import gdask
from gdask.cli import expand_files
from gdask.dataselect.selection import Values, parse_expression
from gdask.headers import read_headers
from gdask.instruments import DESCRIPTORS, view
from gdask.io.catalog import read_catalog
from gdask.io.tables import read_rows
from gdask.model import GdaskError
from gdask.reduction.replay import account_of

PACKAGE = str(Path(gdask.__file__).parent)
#: Inputs of a kind by default, and with `make test-slow`: 100,000 in all.
FEW = 150
MANY = {"headers": 20_000, "lists": 30_000, "expressions": 40_000, "catalogues": 6_000}
MANY["tables"] = 100_000 - sum(MANY.values())

few_or_many = pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
_ODD = [b"", b"\0", b"\xff", b"-", b"9" * 40, b"1e999", b"nan", b"'", b'"', b"(", b")", b"[" * 50]
_ODD += [
    b"\n",
    b"\r",
    b" ",
    b"\x1b[2J",
    b"../",
    b"@",
    b"#",
    b"~",
    b"=",
    b"&",
    b"*",
    b"\xe2\x80\xae",
]


class Reached:
    """The lines of gdask, or of another file, that calls run."""

    def __init__(self, package: str = PACKAGE) -> None:
        self.package = package
        self.lines: set[tuple[CodeType, int]] = set()
        self.news = 0

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self.package) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        place = frame.f_code, frame.f_lineno
        if place not in self.lines:
            self.lines.add(place)
            self.news += 1
        return self._line

    def by(self, call: Callable[[], object]) -> bool:
        """Run a call; tell whether it has run a line that none has run before."""
        self.news, before = 0, sys.gettrace()
        sys.settrace(self._call)
        try:
            call()
        finally:
            sys.settrace(before)
        return self.news > 0


def changed(rng: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """Change one of the inputs in one to four places; lengths are bounded."""
    content = bytearray(rng.choice(corpus[-40:] if rng.random() < 0.5 else corpus))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(content))
        end = min(len(content), at + rng.choice((1, 1, 4, 20, 80)))
        way = rng.randint(0, 5)
        if way == 0 and content:
            content[at % len(content)] ^= 1 << rng.randint(0, 7)
        elif way == 1:
            del content[at:end]
        elif way == 2:
            content[at:at] = rng.choice(tokens)
        elif way == 3:
            content[at:end] = rng.choice(tokens)
        elif way == 4:
            content[at:at] = content[at:end] * rng.choice((1, 2, 30))
        else:
            other = rng.choice(corpus)
            begin = rng.randint(0, len(other))
            content[at:end] = other[begin : begin + rng.choice((4, 20, 200))]
    return bytes(content[: 1 << 16])


def grow(
    name: str,
    many: bool,
    seeds: Sequence[bytes],
    tokens: Sequence[bytes],
    attempt: Callable[[bytes], object],
) -> None:
    """Try inputs made from others; those that reach further are kept, and changed in their turn."""
    seed = int(os.environ.get("GDASK_FUZZ_SEED", random.randrange(10**9) if many else 1))
    rng, reached, corpus = random.Random(f"{name} {seed}"), Reached(), list(seeds)
    count, words = MANY[name] if many else FEW, [*_ODD, *tokens]
    for number in range(count):
        content = seeds[number] if number < len(seeds) else changed(rng, corpus, words)

        def one(content: bytes = content) -> None:
            with contextlib.suppress(GdaskError):
                attempt(content)

        try:
            with bounded(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                is_new = reached.by(one)
        except Exception as error:
            raise AssertionError(
                f"{name} {number} of GDASK_FUZZ_SEED={seed}: {type(error).__name__} {error}: "
                f"{content[:3000]!r}"
            ) from error
        if is_new:
            corpus.append(content)
    kept = len(corpus) - len(seeds)
    print(f"\n{name}: {count} inputs, {kept} kept, {len(reached.lines)} lines of gdask reached")
    # Where changes reach nothing that the first inputs have not reached, nothing guides.
    assert kept > len(seeds) and len(reached.lines) > 50


@few_or_many
def test_headers_that_grow(many: bool, tmp_path: Path) -> None:
    path = tmp_path / "S1.fits"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        seen = view(read_headers(path))
        _ = seen.tags
        for name in DESCRIPTORS:
            seen(name)

    seeds = [mef([], "GSAOI"), mef([], "F2")]
    cards = [f"{key:<8}= {value!r:>20}".ljust(80)[:80].encode() for key, value in PHU.items()]
    tokens = [*cards, *(key.ljust(8).encode() for key in (*PHU, *EXT)), b"END".ljust(80)]
    tokens += [b"CONTINUE  'x&'".ljust(80), b"HIERARCH A B = 1".ljust(80), b" " * 80, b" " * 2880]
    grow("headers", many, seeds, tokens, attempt)


@few_or_many
def test_lists_that_grow(many: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.fits").touch()

    def attempt(content: bytes) -> None:
        (tmp_path / "x.list").write_bytes(content)
        assert all(isinstance(name, str) for name in expand_files(["@x.list"]))

    seeds = [b"a.fits\n# comment\n", b'"a.fits" # quoted\n@x.list\n', b"\xef\xbb\xbfa*.fits\r\n"]
    tokens = [b"a.fits", b"@x.list", b"@y.list", b"*", b"**/", b"[a-z]", b'"a\\u0000"', b" # "]
    grow("lists", many, seeds, tokens, attempt)


@few_or_many
def test_expressions_that_grow(many: bool, tmp_path: Path) -> None:
    path = tmp_path / "S1.fits"
    path.write_bytes(mef([], "GSAOI"))
    values = Values(view(read_headers(path)))

    def attempt(content: bytes) -> None:
        parse_expression(content.decode("utf-8", "replace"))(values)

    seeds = [
        b"exposure_time==60.",
        b'(observation_class=="science" and object!="9132")',
        b"exposure_time<60 or filter_name in ('Kshort', 'J')",
        b"ut_date>=2017-05-01",
    ]
    tokens = [b" and ", b" or ", b"not ", b"==", b"<=", b"lambda: 0", b"__class__", b"if 1 else 2"]
    tokens += [name.encode() for name in list(DESCRIPTORS)[:60]]
    grow("expressions", many, seeds, tokens, attempt)


@few_or_many
def test_catalogues_that_grow(many: bool, tmp_path: Path) -> None:
    forms = (".csv", ".ecsv", ".xml", ".fits", ".csv.gz")

    def attempt(content: bytes) -> None:
        path = tmp_path / f"c{forms[content[0] % len(forms)] if content else '.csv'}"
        path.write_bytes(content[1:])
        read_catalog(str(path))

    columns = b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: ra, datatype: float64}\n"
    columns += b"# - {name: dec, datatype: float64}\n# schema: astropy-2.0\nra dec\n1.0 2.0\n"
    votable = (
        b'<?xml version="1.0"?><VOTABLE version="1.4"><RESOURCE><TABLE><FIELD name="ra" '
        b'datatype="double"/><FIELD name="dec" datatype="double"/><DATA><TABLEDATA><TR><TD>1</TD>'
        b"<TD>2</TD></TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    seeds = [b"\0ra,dec,pmra\n1.0,2.0,3.0\n", b"\1" + columns, b"\2" + votable]
    seeds.append(b"\3" + table_of_texts([("ra", "1.0"), ("dec", "2.0")], "CATALOG"))
    tokens = [b"ra", b"dec", b"RAJ2000", b"object", b"!!python/object:os.system [x]", b"- {name: "]
    tokens += [b'<STREAM href="file:///etc/passwd"/>', b"<!ENTITY a SYSTEM 'file:///x'>", b"&a;"]
    grow("catalogues", many, seeds, tokens, attempt)


def table_of_texts(rows: Sequence[tuple[str, str]], name: str) -> bytes:
    """Give the bytes of a FITS file with a table of two columns of texts."""
    import io

    import numpy as np
    from astropy.io import fits

    columns = [
        fits.Column(title, "80A", array=np.array([row[k] for row in rows]))
        for k, title in enumerate(("item", "value"))
    ]
    memory = io.BytesIO()
    units = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name=name)]
    fits.HDUList(units).writeto(memory)
    return memory.getvalue()


@few_or_many
def test_tables_that_grow(many: bool, tmp_path: Path) -> None:
    """Products' tables: pickles, code and odd JSON in them are text, or damage."""
    path = tmp_path / "S1_image.fits"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        read_rows(str(path), "REDUCTION")
        account_of(path)

    rows = [
        ("versions", '{"gdask": "1"}'),
        ("recipe", '{"name": "default", "function": "f", "sha256": "0"}'),
        ("parameters", '{"user": {"a": 1}}'),
        ("suffix", "null"),
        ("input", '{"name": "S1.fits", "md5": "0", "size": 1}'),
    ]
    seeds = [table_of_texts(rows, "REDUCTION"), table_of_texts(rows[:2], "REDUCTION")]
    tokens = [b"cposix\nsystem\n(S'touch pwned'\ntR.", b"\x80\x04\x95", b"PJ(4)", b"1PE(80)"]
    tokens += [b"NAXIS2  =  99999999999", b"{}", b"null", b"[" * 300, b'"', b"TFORM1", b"80A"]
    grow("tables", many, seeds, tokens, attempt)


def _behind_three_bytes(content: bytes) -> bool:
    if content[:1] != b"a":
        return False
    if content[1:2] != b"b":
        return False
    if content[2:3] != b"c":
        return False
    return len(content) < 1 << 16


def test_what_reaches_further_is_found() -> None:
    """A line behind three bytes is reached from one input, since each step to it is kept."""
    rng, reached, corpus = random.Random(1), Reached(__file__), [b"xyz"]
    tokens, found = [bytes([letter]) for letter in range(97, 123)], []

    def attempt(content: bytes) -> None:
        found.extend([content] if _behind_three_bytes(content) else [])

    for _ in range(5_000):
        content = changed(rng, corpus, tokens)
        if reached.by(lambda content=content: attempt(content)):
            corpus.append(content)
    assert found and found[0].startswith(b"abc")
