"""`gdask verify`: good files have no fault, and each fault is named, in raw files and products."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from gdask.cli import main
from gdask.reduction.verify import verify


@pytest.fixture
def raw(night: object, tmp_path: Path) -> Path:
    return Path(shutil.copy(night.science[0], tmp_path))


def what(path: Path) -> list[str]:
    return [f"{fault.where}: {fault.what}" for fault in verify(path).faults]


def test_products_and_raw_files_are_well(flat: Path, image: Path, raw: Path, night: object) -> None:
    assert {
        verify(path).kind: verify(path).faults
        for path in (flat, image, raw, night.bpm, night.dark[0])
    } == {
        "GSAOI gdask product FLAT 4 arrays": (),
        "GSAOI gdask product IMAGE 1 array": (),
        "GSAOI raw IMAGE 4 arrays": (),
        "GSAOI processed BPM 4 arrays": (),
        "GSAOI raw DARK 4 arrays": (),
    }
    packed = raw.with_suffix(".fits.gz")
    packed.write_bytes(gzip.compress(raw.read_bytes(), 1))
    assert what(packed) == []


def test_a_changed_bit_is_found_in_data_and_in_headers(flat: Path) -> None:
    whole = flat.read_bytes()
    with fits.open(flat) as units:
        place = units["VAR", 3].fileinfo()
    for at, words in (
        (place["datLoc"] + 1003, "extension 8: DATASUM is"),
        (place["hdrLoc"] + 80 * 10 + 40, "extension 8: CHECKSUM"),
    ):
        flat.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        (fault,) = (text for text in what(flat) if "SUM" in text)
        assert fault.startswith(words)


def change(path: Path, edit: Callable[[fits.HDUList], object]) -> list[str]:
    """Give the faults after an edit, except those of checksums, which astropy does not update."""
    with fits.open(path, memmap=False) as units:
        for unit in units:
            _ = unit.data
        edit(units)
        units.writeto(path, overwrite=True, output_verify="ignore")
    return [text for text in what(path) if "SUM" not in text]


def setting(
    name: str | int | tuple, keyword: str, value: object
) -> Callable[[fits.HDUList], object]:
    return lambda units: units[name].header.__setitem__(keyword, value)


def pixel(name: tuple[str, int], value: float) -> Callable[[fits.HDUList], object]:
    return lambda units: units[name].data.__setitem__((7, 9), value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda units: units.pop(("VAR", 2)), "VAR: 3 extensions, 4 of SCI"),
        (setting(("DQ", 2), "EXTVER", 1), "DQ,1: there is more than one extension"),
        (setting(("VAR", 1), "BUNIT", "electron"), "VAR,1: BUNIT 'electron'"),
        (setting(("SCI", 1), "BUNIT", "parrots"), "SCI,1: BUNIT 'parrots' is no unit"),
        (setting(("DQ", 1), "BUNIT", "electron"), "DQ,1: BUNIT 'electron': flags have no unit"),
        (lambda units: units.pop("HISTORY"), "HISTORY: is missing"),
        (lambda units: units.pop("PROVENANCE"), "PROVENANCE: is missing"),
        (
            lambda units: units["PROVENANCE"].columns.change_name("md5", "sum"),
            "PROVENANCE: no column md5",
        ),
        (setting(0, "INSTRUME", "HST"), "primary header: is of instrument 'HST'"),
        (setting(0, "EXPTIME", "long"), "primary header: exposure time is unknown"),
        (setting(0, "FILTER1", ""), "primary header: filter name is unknown"),
        (
            lambda units: [units.pop(("SCI", 4)), units.pop(("VAR", 4)), units.pop(("DQ", 4))],
            ": 3 arrays, GSAOI has 4",
        ),
        (
            lambda units: units["PROVENANCE"].data["md5"].__setitem__(0, "?"),
            "PROVENANCE: row 1: md5 is '?'",
        ),
    ],
)
def test_each_fault_of_a_flat_is_named(flat: Path, edit: Callable, words: str) -> None:
    found = change(flat, edit)
    assert any(text.startswith(words) for text in found), found


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (pixel(("SCI", 1), np.nan), "SCI,1: 1 of"),
        (pixel(("VAR", 1), -1.0), "VAR,1: 1 of"),
        (pixel(("DQ", 1), 1024), "DQ,1: 1 of"),
        (
            lambda units: [
                units[1].header.__setitem__(f"{kind}_{axis}", 0.0)
                for kind in ("CD1", "CD2")
                for axis in (1, 2)
            ],
            "array 1: its WCS has no scale",
        ),
        (setting(("SCI", 1), "CTYPE1", "RA---XYZ"), "array 1: its WCS is not valid"),
        (setting(("SCI", 1), "A_ORDER", 2), "array 1: its WCS has SIP coefficients"),
        (setting(("SCI", 1), "BUNIT", ""), "SCI,1: no BUNIT"),
    ],
)
def test_each_fault_of_an_image_is_named(image: Path, edit: Callable, words: str) -> None:
    def good(units: fits.HDUList) -> None:
        units["DQ", 1].data[:20] = 0
        for name in ("SCI", "VAR"):
            units[name, 1].data[:20] = np.arange(20)[:, None]

    assert change(image, good) == []
    found = change(image, edit)
    assert any(text.startswith(words) for text in found), found


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            setting(1, "DATASEC", "[1:100,1:100]"),
            "array 1: DATASEC [1:100,1:100] is not of its 320 x 320 pixels",
        ),
        (setting(0, "RA", 10.0), "array 1: its WCS is"),
        (setting(1, "CD1_1", 1.0), "array 1: its WCS has"),
        (lambda units: units[2].data.__setitem__(slice(None), 7.0), "SCI,2: all pixels are 7"),
        (lambda units: units[2].data.__setitem__(slice(None), np.nan), "SCI,2: "),
        (lambda units: units.pop(4), ": 3 arrays, GSAOI has 4"),
        (lambda units: units[1].header.remove("CRVAL1"), "array 1: no WCS"),
    ],
)
def test_each_fault_of_a_raw_file_is_named(raw: Path, edit: Callable, words: str) -> None:
    found = change(raw, edit)
    assert any(text.startswith(words) for text in found), found


def test_files_that_are_not_whole(raw: Path, tmp_path: Path) -> None:
    content = raw.read_bytes()
    for name, piece, words in (
        ("cut.fits", content[:-5000], "pixels of extension 4 are cut short"),
        ("empty.fits", b"", "is empty"),
        ("more.fits", content + b"x" * 100, "bytes after the last extension"),
        ("text.fits", b"text" * 999, "not a FITS file"),
    ):
        (tmp_path / name).write_bytes(piece)
        (fault,) = verify(tmp_path / name).faults
        assert words in str(fault) and str(fault).startswith(f"{tmp_path / name}: ")


def test_the_verb(image: Path, flat: Path, raw: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", str(image), str(flat)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 files, 0 with faults"
    raw.write_bytes(raw.read_bytes()[:-5000])
    assert main(["verify", str(raw.parent), "-q"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{raw}: pixels of extension 4 are cut short; copy the file again"
    ]
    listed = raw.parent / "all.list"
    listed.write_text(f"{flat}\n{raw}\n")
    assert main(["verify", f"@{listed}"]) == 1
    os.makedirs(raw.parent / "none")
    assert main(["verify", str(raw.parent / "none")]) == 1
    assert main(["verify"]) == 2
    assert "no FITS file in this folder" in capsys.readouterr().err
