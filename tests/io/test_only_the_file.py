"""Nothing that is named as data makes gdask open another file or an address.

Every reader runs under a guard on `open` and on sockets (Python's own audit events).
"""

from __future__ import annotations

import gzip
import os
import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from astropy.io import fits
from astropy.table import Table

import gdask
from gdask import cli, params
from gdask.caldb import config
from gdask.cli import lists
from gdask.headers import read_headers
from gdask.io import catalog_files
from gdask.io.catalog import read_catalog
from gdask.model import GdaskError
from gdask.reduction.replay import account_of
from gdask.reduction.verify import verify

_SEEN: list[str] | None = None
#: Code and its data, which readers import; and what Python asks of the system.
_PLACES = (sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values())
_SYSTEM = (Path(gdask.__file__).parent, "/proc", "/sys", "/dev", "/usr", "/etc/localtime")
_CODE = tuple(os.path.realpath(path) for path in (*_PLACES, *_SYSTEM))


def _watch(event: str, arguments: tuple) -> None:
    if _SEEN is None:
        return
    if (
        event.startswith(("socket.", "urllib.", "http.", "ftplib."))
        and event != "socket.gethostname"
    ):
        _SEEN.append(f"{event} {arguments!r}")
    elif event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(_CODE):
            _SEEN.append(path)
    elif event in ("subprocess.Popen", "os.system", "os.exec", "exec.code"):
        _SEEN.append(event)


sys.addaudithook(_watch)


@contextmanager
def guarded(allowed: object) -> Iterator[None]:
    """Check that nothing is opened inside but this file, and code."""
    global _SEEN
    _SEEN = []
    try:
        yield
    finally:
        seen, _SEEN = _SEEN, None
    assert set(seen) <= {os.path.realpath(str(allowed))}, seen


VOTABLE = """<?xml version="1.0"?>{doctype}
<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>
<FIELD name="ra" datatype="double"/><FIELD name="dec" datatype="double"/>
<DATA>{data}</DATA></TABLE></RESOURCE></VOTABLE>"""
INLINE = "<TABLEDATA><TR><TD>10.0</TD><TD>-30.0</TD></TR></TABLEDATA>"
#: What a VOTable may hold that leads elsewhere; {} is the path of a file beside it.
REFERENCES = {
    "address": ("", '<BINARY><STREAM href="http://127.0.0.1:9/x"/></BINARY>', "http://127.0.0.1"),
    "FITS address": ("", '<FITS><STREAM href="http://127.0.0.1:9/x"/></FITS>', "http://127.0.0.1"),
    "FITS file": ("", '<FITS><STREAM href="file://{}"/></FITS>', "file://"),
    "file": ("", '<BINARY2><STREAM href="{}" encoding="base64"/></BINARY2>', "STREAM"),
    "prefix": ("", '<v:BINARY xmlns:v="x"><v:STREAM href="{}"/></v:BINARY>', "STREAM"),
    "entity": ('<!DOCTYPE V [<!ENTITY x SYSTEM "file://{}">]>', "&x;", "entity"),
    "DTD": ('<!DOCTYPE V SYSTEM "http://127.0.0.1:9/x.dtd">', INLINE + "&y;", "entity y"),
    "laughs": ('<!DOCTYPE V [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>', "&b;", "entity"),
    "include": ("", '<i:include xmlns:i="http://www.w3.org/2001/XInclude" href="{}"/>', "INCLUDE"),
}


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("ending", [".xml", ".vot", ".xml.gz"])
def test_a_votable_leads_nowhere(tmp_path: Path, name: str, ending: str) -> None:
    doctype, data, words = REFERENCES[name]
    secret, path = tmp_path / "secret.fits", tmp_path / f"c{ending}"
    Table({"ra": [1.0], "dec": [2.0]}).write(secret)
    text = VOTABLE.format(doctype=doctype, data=data).replace("{}", str(secret)).encode()
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    with guarded(path), pytest.raises(GdaskError, match=words) as caught:
        read_catalog(str(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def rows() -> Table:
    return Table({"ra": [10.0, 11.0], "dec": [-30.0, -31.0], "note": ["http://127.0.0.1:9/", "@x"]})


def catalogue(name: str, form: str) -> Callable[[Path, object], tuple[Path, Callable]]:
    def made(folder: Path, night: object) -> tuple[Path, Callable]:
        rows().write(folder / name, format=form)
        return folder / name, read_catalog

    return made


def text_file(name: str, text: str, reader: Callable) -> Callable:
    def made(folder: Path, night: object) -> tuple[Path, Callable]:
        (folder / name).write_text(text)
        return folder / name, reader

    return made


def raw_file(reader: Callable) -> Callable:
    def made(folder: Path, night: object) -> tuple[Path, Callable]:
        path = folder / "S1.fits"
        with fits.open(night.science[0]) as hdus:
            hdus[0].header["ORIGNAME"] = "/etc/passwd"
            hdus[0].header["FLATIM"] = "http://127.0.0.1:9/flat.fits"
            hdus.writeto(path)
        return path, reader

    return made


def pixels(path: str) -> object:
    return gdask.open(path)["data"].isel(y=slice(0, 2)).compute(scheduler="synchronous")


READERS = {
    "FITS catalogue": catalogue("c.fits", "fits"),
    "ECSV catalogue": catalogue("c.ecsv", "ascii.ecsv"),
    "CSV catalogue": catalogue("c.csv", "ascii.csv"),
    "VOTable": catalogue("c.xml", "votable"),
    "headers": raw_file(read_headers),
    "Frame": raw_file(gdask.open),
    "pixels": raw_file(pixels),
    "tables": raw_file(lambda path: gdask.tables(gdask.open(path))),
    "verify": raw_file(verify),
    "replay": raw_file(account_of),
    "tags": raw_file(lambda path: cli.main(["showd", path, "-d", "object"])),
    "parameters": text_file("p.toml", 'source = "http://127.0.0.1:9/"\n', params.read_config),
    "list": text_file(
        "l.list",
        "http://127.0.0.1:9/x.fits\n/etc/passwd\n",
        lambda path: lists.expand_files([f"@{path}"]),
    ),
    "databases": text_file(
        "rc",
        "[calibs]\ndatabases = http://127.0.0.1:9/x get\n",
        lambda path: config.open_databases(path),
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_opens_its_file_alone(tmp_path: Path, night: object, reader: str) -> None:
    path, read = READERS[reader](tmp_path, night)
    try:
        read(str(path))  # imports and caches first
    except GdaskError:
        assert reader == "replay"
    with guarded(path):
        try:
            read(str(path))
        except GdaskError:
            assert reader == "replay"


def test_a_doctype_is_not_read_and_does_no_harm(tmp_path: Path) -> None:
    doctype = '<!DOCTYPE VOTABLE SYSTEM "http://127.0.0.1:9/VOTable.dtd">'  # as VizieR's once had
    path = tmp_path / "c.xml"
    path.write_text(VOTABLE.format(doctype=doctype, data=INLINE))
    read_catalog(str(path))
    with guarded(path):
        assert list(read_catalog(str(path))["RAJ2000"]) == [10.0]


def test_the_guard_sees(tmp_path: Path) -> None:
    import socket

    (tmp_path / "x").write_text("x")
    with pytest.raises(AssertionError, match="tmp"), guarded(tmp_path / "y"):
        (tmp_path / "x").read_text()
    with pytest.raises(AssertionError, match="socket"), guarded(tmp_path / "y"):
        socket.socket().close()


def test_catalogues_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_files, "MAX_TEXT_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"ra,dec\n" + b"1.0,2.0\n" * (1 << 20)))
    with pytest.raises(GdaskError, match="bomb.csv.gz: more than 1 MiB unpacked; cut it"):
        read_catalog(str(bomb))
    monkeypatch.setattr(catalog_files, "MAX_LINES", 10)
    (tmp_path / "long.csv").write_text("ra,dec\n" + "1.0,2.0\n" * 20)
    with pytest.raises(GdaskError, match="more than 10 lines"):
        read_catalog(str(tmp_path / "long.csv"))
    (tmp_path / "cut.csv.gz").write_bytes(bomb.read_bytes()[:2000])
    with pytest.raises(GdaskError, match="copy the file again|more than"):
        read_catalog(str(tmp_path / "cut.csv.gz"))
