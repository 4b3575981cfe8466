"""`Header`: the read-only header of a file or a Frame, and its form as text, which attributes of a Frame can hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple

from astropy.io import fits

from gdask.model import coordinate

CARD = 80  # characters of a card (FITS standard 4.0, section 3.3)
COMMENTARY = ("COMMENT", "HISTORY", "")


class Entry(NamedTuple):
    """A card as it is in the file (80 characters, a multiple where it goes on), its keyword, and its value: None where it is
    undefined or cannot be parsed. As astropy's object it would take four times the memory."""

    text: str
    keyword: str
    value: Any


class Header(Mapping[str, Any]):
    """Values by keyword, in the order of the file; of a keyword that is repeated the first, of COMMENT and HISTORY a list.

    `copy()` gives an astropy Header that may be edited; `changed` another Header. `text` is the header as
    one string, which attributes of a Frame can hold; `parse_header` gives it back.
    """

    __slots__ = ("_entries", "_places")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = tuple(entries)
        self._places = _places(tuple(entry.keyword for entry in self._entries))

    @classmethod
    def read(cls, cards: Iterable[str]) -> Header:
        """Of the cards of a file, valid ones of 80 characters; those of CONTINUE belong to the one before."""
        whole: list[str] = []
        for card in cards:
            if card.startswith("CONTINUE") and whole:
                whole[-1] += card
            else:
                whole.append(card)
        return cls(_parsed(card) for card in whole)

    @classmethod
    def of(cls, header: Header | fits.Header) -> Header:
        """Of an astropy Header, which may be edited later without harm; itself if it is one of these."""
        return (
            header if isinstance(header, cls) else cls(_entry(copy(card)) for card in header.cards)
        )

    def changed(self, keywords: Mapping[str, Any]) -> Header:
        """With keywords set, to a value or (value, comment); None removes. New ones go before comments at the end."""
        entries = list(self._entries)
        for keyword, given in keywords.items():
            at = next(
                (place for place, entry in enumerate(entries) if entry.keyword == keyword), None
            )
            value, comment = given if isinstance(given, tuple) else (given, None)
            if at is not None:
                entries[at : at + 1] = (
                    [] if given is None else [_changed(entries[at].text, value, comment)]
                )
            elif given is not None:
                end = next(
                    (
                        place
                        for place in range(len(entries), 0, -1)
                        if entries[place - 1].keyword not in COMMENTARY
                    ),
                    0,
                )
                entries.insert(end, _made(keyword, value, comment))
        return type(self)(entries)

    def copy(self) -> fits.Header:
        """An astropy Header, to be edited."""
        return fits.Header(self.cards)

    @property
    def cards(self) -> list[fits.Card]:
        """astropy's cards."""
        return [_card(entry) for entry in self._entries]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(keyword, card as it is in a file) of each card."""
        return [(entry.keyword, entry.text) for entry in self._entries]

    @property
    def text(self) -> str:
        """The cards as lines, without the blanks at their ends."""
        return "\n".join(entry.text.rstrip() for entry in self._entries)

    def tostring(self) -> str:
        """Give the header as it would be in a file."""
        return str(self.copy().tostring())

    def get(self, keyword: str, default: Any = None) -> Any:
        at = self._place(keyword)
        return default if at is None else self._entries[at].value

    def __getitem__(self, keyword: str) -> Any:
        at = self._place(keyword)
        if at is None:
            raise KeyError(f"no keyword {keyword}")
        found = self._entries[at]
        return (
            [entry.value for entry in self._entries if entry.keyword == found.keyword]
            if found.keyword in COMMENTARY
            else found.value
        )

    def __contains__(self, keyword: object) -> bool:
        return isinstance(keyword, str) and self._place(keyword) is not None

    def __iter__(self) -> Iterator[str]:
        return (entry.keyword for entry in self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return repr(self.copy())

    def _place(self, keyword: str) -> int | None:
        at = self._places.get(keyword)
        return (
            self._places.get(keyword.strip().upper().removeprefix("HIERARCH "))
            if at is None
            else at
        )


class Headers(NamedTuple):
    """The headers of one multi-extension file: the primary one and one for each image extension, in file order."""

    phu: Header
    ext: tuple[Header, ...]
    path: str = ""


@lru_cache(
    maxsize=4096
)  # those of some hundred frames: steps look into the same header again and again
def parse_header(text: str) -> Header:
    """Give the Header whose `text` this is."""
    lines = text.split("\n") if text else []
    return Header(_parsed(line.ljust(max(-(-len(line) // CARD), 1) * CARD)) for line in lines)


def frame_headers(frame: Any) -> Headers:
    """Give the headers of a Frame: its attribute `phu` and its coordinate `header`."""
    ext = tuple(parse_header(text) for text in coordinate(frame, "header").ravel().tolist())
    return Headers(parse_header(frame.attrs["phu"]), ext, str(frame.attrs.get("path", "")))


@lru_cache(maxsize=256)
def _places(keywords: tuple[str, ...]) -> dict[str, int]:
    """Where each keyword is first: one table for all headers with the same keywords."""
    return {keyword.upper(): place for place, keyword in reversed(list(enumerate(keywords)))}


@lru_cache(maxsize=8192)  # some headers' worth: what the files of a night have in common stays
def _parsed(text: str) -> Entry:
    return _entry(fits.Card.fromstring(text), text)


@lru_cache(maxsize=1024, typed=True)  # the stamps of a step are the same for all its frames
def _made(keyword: str, value: Any, comment: str | None) -> Entry:
    return _entry(fits.Card(keyword, value, comment))


def _changed(text: str, value: Any, comment: str | None) -> Entry:
    card = fits.Card.fromstring(text)
    if isinstance(value, str) and comment is not None:
        return _made(card.keyword, value, comment)
    card.value = value
    if comment is not None:
        card.comment = comment
    return _entry(card)


def _card(entry: Entry) -> fits.Card:
    card = fits.Card.fromstring(entry.text)
    if isinstance(entry.value, float) and card.value != entry.value:
        card.value = entry.value  # 20 characters do not hold all of it
    return card


def _entry(card: fits.Card, text: str | None = None) -> Entry:
    keyword = sys.intern(card.keyword)
    try:
        value = card.value
    except (
        fits.VerifyError,
        ValueError,
        AttributeError,
    ):  # a card that cannot be parsed is no value
        value = None
    return Entry(
        text or str(card), keyword, None if isinstance(value, fits.card.Undefined) else value
    )
