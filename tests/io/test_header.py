"""Headers that share cards behave as astropy's, and a change of one does not show in others."""

from __future__ import annotations

import copy
import gzip
import io
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from conftest import Night

import gdask
from gdask.cli.regions import region_lines
from gdask.headers import Header, open_hdus, parse_header, read_headers
from gdask.headers import header as header_module
from gdask.instruments import view
from gdask.io.frames import array_headers, made_once, with_attrs, with_headers
from gdask.model import GdaskError
from gdask.report.tables import tables_of
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


# Cards that are read and written without astropy

TRICKY_CARDS = (
    "KEY     = 'ab  '",
    "KEY     = '  '",
    "KEY     = ''",
    "KEY     = '   x'",
    "KEY     =  T / c",
    "KEY     = 1.",
    "KEY     = -0",
    "KEY     = 007",
    "KEY     = 1.5D+3 /x",
    "KEY     = 6E-05 / no point",
    "KEY     =1",
    "KEY     = .5",
    "KEY     = 'a' b",
    "KEY     = 'it''s'",
    "KEY     = 1 2",
    "K E     = 1",
    "KEY     = 'DP1: 2.0'",
    "KEY     = '12:34:56.7'",
    "KEY     = 1e5",
    "        = 1",
    "        a comment",
    "COMMENT = 'not a value'",
    "HISTORY  text",
    "HIERARCH A B = 1",
    "END     = 1",
    "-_9     = 1.0E5/",
    "KEY     = Tx",
    "KEY     = 'a'/x",
    "KEY     = 99999999999999999999",
    "KEY     =",
    "",
)


def random_value(rng: random.Random) -> Any:
    """Give a value of any kind that headers hold."""
    text = "".join(
        rng.choice("abcXYZ 0123:-_/'.") for _ in range(rng.choice((0, 1, 5, 8, 9, 19, 30, 66, 70)))
    )
    whole = rng.randrange(-(10 ** rng.randrange(1, 20)), 10 ** rng.randrange(1, 20))
    real = rng.uniform(-1, 1) * 10.0 ** rng.randrange(-8, 20)
    rounded = round(rng.uniform(-1000, 1000), rng.randrange(0, 6))
    return rng.choice((text, whole, real, rounded, float(rng.randrange(-5, 5)), rng.random() < 0.5))


def same_entries(found: Any, expected: Any) -> bool:
    return found[:3] == expected[:3] and type(found.value) is type(expected.value)


@pytest.mark.filterwarnings("ignore")
def test_plain_cards_are_read_as_astropy_reads_them(night: Night) -> None:
    rng = random.Random(3)
    texts = {card.ljust(80) for card in TRICKY_CARDS}
    for path in (night.science[0], night.bpm):
        with fits.open(path) as hdus:
            texts |= {str(card) for hdu in hdus for card in hdu.header.cards}
    real = sorted(text for text in texts if len(text) == 80)
    for text in rng.choices(real, k=3000):
        letters = list(text)
        for _ in range(rng.randrange(1, 4)):
            letters[rng.randrange(45)] = rng.choice("ABC0123456789.+-ED'/ :TFinf=()_,")
        texts.add("".join(letters))
    plain = {text: entry for text in texts if (entry := header_module._plain_entry(text))}
    assert len(plain) > 1000
    for text, entry in plain.items():
        expected = header_module._entry_of_card(fits.Card.fromstring(text), text)
        assert same_entries(entry, expected), text
    assert len([text for text in real if text in plain]) > 0.9 * len(real)


@pytest.mark.filterwarnings("ignore")
def test_plain_cards_are_written_and_changed_as_astropy_does() -> None:
    rng = random.Random(4)
    keywords = ("GAIN", "A", "ABCDEFGH", "MJD-OBS", "lower", "TOO LONGKEY", "COMMENT", "_X")
    comments = (None, None, "", "x", "Exposure time (s)", " lead", "y" * 50, "it's / x")
    cards = [
        "GAIN    =                 2.44 / Gain of the array",
        "OBJECT  = 'NGC 5128'           / Name",
        "NREADS  =                    8",
        "FLAG    =                    T /no blank",
        "QUOTED  = 'it''s'",
    ]
    for _ in range(3000):
        keyword, value, comment = rng.choice(keywords), random_value(rng), rng.choice(comments)
        written = header_module._plain_card(keyword, value, comment)
        if written:
            expected = header_module._entry_of_card(fits.Card(keyword, value, comment))
            assert same_entries(
                header_module._new_entry.__wrapped__(keyword, value, comment), expected
            )
        text = rng.choice(cards).ljust(80)
        value = rng.choice((value, 2.44, "NGC 5128", 8, 8.0, True, 1))
        card = fits.Card.fromstring(text)
        card.value = value
        changed = header_module._changed_entry(text, value, None)
        assert same_entries(changed, header_module._entry_of_card(card)), (text, value)


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


@pytest.mark.parametrize("kind", ["HIERARCH", "CONTINUE", "KEY"])
def test_headers_have_a_bound(tmp_path: Path, kind: str) -> None:
    """99,000 cards took 12 s, as CONTINUE 33 s; up to the bound, four times take four times."""
    cards = [
        b"SIMPLE  =                    T".ljust(80),
        b"BITPIX  =                   16".ljust(80),
        b"NAXIS   =                    0".ljust(80),
    ]
    text = {"CONTINUE": "CONTINUE  'x&'", "KEY": "KEY     = 'x'", "HIERARCH": "HIERARCH A = 1"}[
        kind
    ]
    if kind == "CONTINUE":
        cards.append(b"LONG    = 'x&'".ljust(80))

    def seconds_of(count: int) -> float:
        unlike = f"N       = {count}".ljust(80).encode()  # headers are remembered
        content = b"".join([*cards[:3], unlike, *cards[3:], *[text.ljust(80).encode()] * count])
        content += b"END".ljust(80)
        (tmp_path / "x.fits").write_bytes(content.ljust(len(content) + -len(content) % 2880))
        begun = time.process_time()
        read_headers(tmp_path / "x.fits")
        return time.process_time() - begun

    seconds_of(10)
    few, many = (min(seconds_of(count + k) for k in range(3)) for count in (4_800, 19_200))
    assert many < 9 * few  # 16 times, were each card as dear as those before it
    match = "x.fits: header of extension 0 has more than 20000 cards"
    begun = time.process_time()
    with pytest.raises(GdaskError, match=match):
        seconds_of(99_000)
    assert time.process_time() - begun < 3 * max(many, 0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("length", [3, 18, 40, 44, 60, 65, 66, 68])
def test_a_comment_has_the_room_that_the_text_leaves(length: int) -> None:
    """Without a warning to the user, and with the text whole."""
    header = Header.from_astropy(fits.Header()).changed({"BPMIM": ("x" * length, "c" * 60)})
    card = fits.Card.fromstring(str(header.cards[0]))
    assert card.value == "x" * length
    assert card.comment == "c" * max(80 - 13 - max(length + 2, 20), 0)


@pytest.mark.parametrize("name", ["S1.fits", "S1.fits.gz"])
@pytest.mark.parametrize("width", [-720, -1440, -2160, -2880])
def test_units_that_lead_back_are_not_followed(tmp_path: Path, name: str, width: int) -> None:
    """A damaged size leads astropy to the same or to an earlier unit, again and again.

    Our own reader takes what does not begin with XTENSION for the end of the file.
    """
    whole = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((6, 8), "f4"), name="SCI")]).writeto(
        whole
    )
    cards = [
        "", "XTENSION= 'IMAGE   '", f"BITPIX  = {-32:20d}", f"NAXIS   = {2:20d}",
        f"NAXIS1  = {width:20d}", f"NAXIS2  = {1:20d}", f"PCOUNT  = {0:20d}",
        f"GCOUNT  = {1:20d}", "END",
    ]  # fmt: skip
    content = whole.getvalue() + "".join(f"{card:80}" for card in cards).ljust(2880).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(OSError, match="the header of extension [23] is damaged"), open_hdus(path):
        pass
    assert "damaged" in tables_of(path)["trouble"]
    with pytest.raises(GdaskError, match="damaged"):
        list(region_lines(str(path)))
