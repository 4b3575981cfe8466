"""Headers that share cards behave as astropy's, and a change of one does not show in others."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
from astropy.io import fits
from conftest import Night

import gdask
from gdask.headers import Header, parse_header, read_headers
from gdask.headers import header as header_module
from gdask.instruments import view
from gdask.io.frames import array_headers, made_once, with_attrs, with_headers
from gdask.types import Frame

CHANGES = {
    "GAIN": (1.0, "e-/ADU"),
    "OBJECT": "other",
    "NEW": (3, "a new one"),
    "GONE": None,
    "ABSENT": None,
    "FLAG": True,
    "LEVEL": 1 / 3,
}


def original() -> fits.Header:
    header = fits.Header(
        [
            ("OBJECT", "star", "what"),
            ("GAIN", 2.4, "gain"),
            ("GONE", 1),
            ("FLAG", 1),
            ("NOTHING", None),
        ]
    )
    header["HIERARCH a longer keyword"] = 5
    header["TEXT"] = "long " * 30  # goes on in CONTINUE cards
    header.add_comment("first")
    header.add_comment("second")
    return header


def as_in_file(header: fits.Header) -> Header:
    text = header.tostring(endcard=False, padding=False)
    return Header.from_cards(text[at : at + 80] for at in range(0, len(text), 80))


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_reads_and_changes_as_astropy_does() -> None:
    expected, header = original(), as_in_file(original())
    for _ in range(2):
        assert list(header) == list(expected) and len(header) == len(expected)
        assert header.tostring() == expected.tostring() == header.copy().tostring()
        for keyword in set(expected) - {"COMMENT"}:
            assert header[keyword] == header.get(keyword.lower()) == expected[keyword]
            assert type(header[keyword]) is type(expected[keyword]) and keyword in header
        header = header.changed(CHANGES)
        for keyword, value in CHANGES.items():
            if value is None:
                expected.remove(keyword, ignore_missing=True)
            else:
                expected[keyword] = value
    assert (
        header["LEVEL"] == header.copy()["LEVEL"] == 1 / 3
    )  # and not what 20 characters hold of it
    assert (
        header["COMMENT"] == ["first", "second"]
        and header.get("ABSENT", "none") == "none"
        and "ABSENT" not in header
    )
    with pytest.raises(KeyError, match="ABSENT"):
        header["ABSENT"]


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_cards_are_shared_and_a_change_stays_where_it_is_made() -> None:
    one, other = as_in_file(original()), as_in_file(original())
    before = other.tostring()
    assert all(
        mine is theirs for (_, mine), (_, theirs) in zip(one.texts, other.texts, strict=True)
    )
    changed = one.changed({"GAIN": 7.0})
    assert [
        mine is theirs for (_, mine), (_, theirs) in zip(changed.texts, one.texts, strict=True)
    ].count(False) == 1
    edited = one.copy()
    edited["GAIN"], edited["OBJECT"] = 9.0, "planet"
    theirs = original()
    taken = Header.from_astropy(theirs)
    theirs["GAIN"] = 11.0
    assert (changed["GAIN"], edited["GAIN"], taken["GAIN"]) == (7.0, 9.0, 2.4)
    assert one.tostring() == other.tostring() == before
    assert Header.from_astropy(one) is one


def test_files_that_are_alike_are_read_into_the_same_cards(tmp_path: Path) -> None:
    for name in ("a.fits", "b.fits"):
        fits.PrimaryHDU(header=fits.Header([("INSTRUME", "X"), ("FILENAME", name)])).writeto(
            tmp_path / name
        )
    one, other = (read_headers(tmp_path / name).phu for name in ("a.fits", "b.fits"))
    assert [
        keyword
        for (keyword, text), (_, twin) in zip(one.texts, other.texts, strict=True)
        if text is not twin
    ] == ["FILENAME"]
    assert (one["FILENAME"], other["FILENAME"]) == ("a.fits", "b.fits")


@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_the_text_of_a_header_remembers_what_is_read_from_it() -> None:
    """The remembered header has the values of the text, not the digits that were set."""
    long = -1.2345678901234567e-101  # more digits than a card has room for
    changed = as_in_file(original()).changed(CHANGES | {"LONG": long})
    text = changed.text
    read = parse_header(str(text))
    assert type(str(text)) is str and parse_header(text) is text.header
    assert text.header.texts == read.texts
    assert [text.header[key] for key in read] == [read[key] for key in read]
    assert changed["LONG"] == long != text.header["LONG"] == read["LONG"]
    for copied in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text)):
        assert type(copied) is str and copied == text


def test_a_zero_keeps_its_sign() -> None:
    header = Header.from_astropy(fits.Header([("LEVEL", 1.5)]))
    cards = [header.changed({"LEVEL": value}).texts[0][1] for value in (0.0, -0.0, 0.0)]
    assert "-0.0" in cards[1] and cards[0] == cards[2] != cards[1]


def test_looking_into_a_frame_reads_each_header_once(night: Night) -> None:
    frame = with_headers(gdask.open(night.science[0]), primary={"OBJECT": "other"})
    misses = header_module._parsed.cache_info().misses
    seen = view(frame)
    assert seen("object") == "other" and seen.phu is parse_header(frame.attrs["phu"])
    assert view(with_attrs(frame, note="n")) is seen  # the same headers
    assert view(with_headers(frame, primary={"OBJECT": "third"}))("object") == "third"
    gains = [[header["GAIN"] + 1 for header in array_headers(frame)]]
    changed = with_headers(frame, each={"GAIN": gains[0]})
    assert [header["GAIN"] for header in array_headers(changed)] == gains[0]
    assert view(changed).each("GAIN") == gains[0] != view(frame).each("GAIN")
    assert header_module._parsed.cache_info().misses == misses


def test_what_is_made_once_is_made_again_for_other_headers(night: Night) -> None:
    frame = gdask.open(night.science[0])
    calls: list[str] = []

    def make(one: Frame) -> str:
        calls.append(one.attrs["name"])
        return f"made {len(calls)}"

    def made(one: Frame) -> str:
        return made_once(one, "of a test", make)

    # The second who asks takes it, so that nothing is kept for longer.
    assert [made(frame) for _ in range(3)] == ["made 1", "made 1", "made 2"]
    assert made(with_attrs(frame, name="other.fits")) == "made 3"
    assert made(with_headers(frame, primary={"OBJECT": "x"})) == "made 4"
    assert made(with_headers(frame, each={"GAIN": [1.0] * frame.sizes["detector"]})) == "made 5"
