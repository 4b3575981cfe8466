"""`Header`, the read-only header of a file or a Frame, and its form as text for Frames."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from gdask.model import clean, coordinate, late

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

CARD_LENGTH = 80  # characters of a card (FITS standard 4.0, section 3.3)
COMMENTARY_KEYWORDS = ("COMMENT", "HISTORY", "")
#: Cards as nearly all are: keyword, '= ', string without quotes, whole or real number or logical,
#: and a comment. Whoever writes another form is read by astropy.
_PLAIN = re.compile(
    r"(?=.{80}$)(?=[A-Z0-9_-]+ *= )[A-Z0-9_ -]{8}= *"
    r"(?:'(?P<string>[ -&(-~]*)'|(?P<whole>[+-]?\d{1,18})"
    r"|(?P<real>[+-]?\d+(?:\.\d*(?:[ED][+-]?\d{1,3})?|[ED][+-]?\d{1,3}))|(?P<logical>[TF]))"
    r" *(?:/ *(?P<comment>[ -~]*))?",
    re.ASCII,
)
_KEYWORD = re.compile(r"[A-Z0-9_-]{1,8}")
#: Numbers that fit a card's columns as Python shows them.
_PLAIN_FLOAT = re.compile(r"(?=.{1,20}$)-?\d+\.\d+")
_COMMENTARY = ("COMMENT ", "HISTORY ", " " * 8)
_SPECIAL = ("COMMENT", "HISTORY", "CONTINUE", "END", "HIERARCH", "")


class Entry(NamedTuple):
    """One card of a header.

    `text` is the card as it is in the file: 80 characters, or a multiple where CONTINUE cards
    follow. `value` is None where it is undefined or cannot be parsed. `is_read` tells whether the
    value is the one that `text` says: one that was set may have more digits. astropy's object would
    take four times the memory.
    """

    text: str
    keyword: str
    value: Any
    is_read: bool


class HeaderText(str):
    """The text of a header that remembers the `Header` which `parse_header` gives for it.

    A Frame holds it. Steps look into each header many times; a cache by text holds some hundred
    frames, and of a thousand each look would read every card again. `memo` keeps what was derived
    from it, with the objects that have to be the same. Copies of it (pickled, in a file) are plain
    text.
    """

    __slots__ = ("header", "memo")

    header: Header
    memo: dict[str, tuple[Any, ...]]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Header(Mapping[str, Any]):
    """Values by keyword, in the order of the file.

    Of a keyword that is repeated the first value holds; COMMENT and HISTORY have a list of values.
    `copy()` gives an astropy Header that may be edited; `changed` gives another Header. `text` is
    the header as one string, which attributes of a Frame can hold; `parse_header` reads it.
    """

    __slots__ = ("_entries", "_places")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = tuple(entries)
        self._places = _places_by_keyword(tuple([entry.keyword for entry in self._entries]))

    @classmethod
    def from_cards(cls, cards: Iterable[str]) -> Header:
        """Make a Header of the valid cards of a file, 80 characters each.

        A CONTINUE card belongs to the card before it.
        """
        whole: list[list[str]] = []
        for card in cards:
            if card.startswith("CONTINUE") and whole:
                whole[-1].append(card)
            else:
                whole.append([card])
        return cls(_entry_of_text("".join(parts)) for parts in whole)

    @classmethod
    def from_astropy(cls, header: Header | fits.Header) -> Header:
        """Make a Header of an astropy Header, which may be edited later; a Header is given back."""
        return (
            header
            if isinstance(header, cls)
            else cls(_entry_of_card(copy(card)) for card in header.cards)
        )

    def changed(self, keywords: Mapping[str, Any]) -> Header:
        """Give the Header with keywords set to a value or (value, comment); None removes one.

        New keywords go before the comments at the end.
        """
        entries = list(self._entries)
        names = [entry.keyword for entry in entries]
        for keyword, given in keywords.items():
            place = names.index(keyword) if keyword in names else None
            value, comment = given if isinstance(given, tuple) else (given, None)
            value = _storable(value)
            comment = _fitting(comment, value)
            if place is not None:
                changed = (
                    [] if given is None else [_changed_entry(entries[place].text, value, comment)]
                )
                entries[place : place + 1] = changed
                names[place : place + 1] = [entry.keyword for entry in changed]
            elif given is not None:
                end = next(
                    (
                        number
                        for number in range(len(entries), 0, -1)
                        if names[number - 1] not in COMMENTARY_KEYWORDS
                    ),
                    0,
                )
                entries.insert(end, _new_entry(keyword, value, comment))
                names.insert(end, entries[end].keyword)
        return type(self)(entries)

    def copy(self) -> fits.Header:
        """Give an astropy Header, which may be edited."""
        return fits.Header(self.cards)

    @property
    def cards(self) -> list[fits.Card]:
        """The cards as astropy's objects."""
        return [_astropy_card(entry) for entry in self._entries]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(keyword, card as it is in a file) of each card."""
        return [(entry.keyword, entry.text) for entry in self._entries]

    @property
    def text(self) -> HeaderText:
        """The cards as lines, without the blanks at their ends.

        It remembers the Header that is read from it, whose values have the digits of the text.
        """
        text = HeaderText("\n".join([entry.text.rstrip() for entry in self._entries]))
        text.header, text.memo = self, {}
        if not all(entry.is_read for entry in self._entries):
            text.header = type(self)(
                entry if entry.is_read else _entry_of_text(entry.text) for entry in self._entries
            )
        return text

    def tostring(self) -> str:
        """Give the header as it would be in a file."""
        return str(self.copy().tostring())

    def get(self, keyword: str, default: Any = None) -> Any:
        """Give the value of the first card with this keyword, else the default."""
        place = self._place(keyword)
        return default if place is None else self._entries[place].value

    def __getitem__(self, keyword: str) -> Any:
        place = self._place(keyword)
        if place is None:
            raise KeyError(f"no keyword {keyword}")
        found = self._entries[place]
        return (
            [entry.value for entry in self._entries if entry.keyword == found.keyword]
            if found.keyword in COMMENTARY_KEYWORDS
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
        """Give the number of the first card with this keyword, in any case; None without one."""
        place = self._places.get(keyword)
        if place is None:
            place = self._places.get(keyword.strip().upper().removeprefix("HIERARCH "))
        return place


class Headers(NamedTuple):
    """Headers of one multi-extension file: the primary one, and those of images in file order."""

    phu: Header
    ext: tuple[Header, ...]
    path: str = ""


def parse_header(text: str) -> Header:
    """Give the Header whose `text` this is."""
    return text.header if isinstance(text, HeaderText) else _parsed(text)


@lru_cache(maxsize=4096)  # headers of some hundred frames that came from elsewhere
def _parsed(text: str) -> Header:
    lines = text.split("\n") if text else []
    return Header(
        _entry_of_text(line.ljust(max(-(-len(line) // CARD_LENGTH), 1) * CARD_LENGTH))
        for line in lines
    )


def frame_headers(frame: Any) -> Headers:
    """Give the headers of a Frame: its attribute `phu` and its coordinate `header`.

    A Frame whose headers were not changed in between has one object of them.
    """
    phu, path = frame.attrs["phu"], str(frame.attrs.get("path", ""))
    texts = coordinate(frame, "header")
    memo = phu.memo if isinstance(phu, HeaderText) else {}
    known = memo.get("headers")
    if known and known[0] is texts and known[1].path == path:
        return known[1]
    headers = Headers(
        parse_header(phu), tuple(parse_header(text) for text in texts.ravel().tolist()), path
    )
    memo["headers"] = texts, headers
    return headers


@lru_cache(maxsize=256)
def _places_by_keyword(keywords: tuple[str, ...]) -> dict[str, int]:
    """Give the number of the first card of each keyword.

    All headers with the same keywords share one table.
    """
    return {keyword.upper(): place for place, keyword in reversed(list(enumerate(keywords)))}


@lru_cache(maxsize=8192)  # cards of some headers: those that the files of a night share stay
def _entry_of_text(text: str) -> Entry:
    return _plain_entry(text) or _entry_of_card(fits.Card.fromstring(text), text)


def _plain_entry(text: str) -> Entry | None:
    """Read a card of the common forms, to what astropy makes of it; None for any other card.

    It is six times as fast, and commands that read plain headers do without astropy (0.3 s).
    """
    if text.startswith(_COMMENTARY) and len(text) == CARD_LENGTH:
        return Entry(text, sys.intern(text[:8].rstrip()), text[8:].rstrip(), True)
    found = _PLAIN.fullmatch(text)
    if found is None or text[:8].rstrip() in _SPECIAL:
        return None
    string, whole, real, logical = found.group("string", "whole", "real", "logical")
    value: Any
    if string is not None:
        if ": " in string:  # it may be a record, of which astropy makes a number
            return None
        value = string.rstrip()
    elif whole is not None:
        value = int(whole)
    elif real is not None:
        value = float(real.replace("D", "E"))
    else:
        value = logical == "T"
    return Entry(text, sys.intern(text[:8].rstrip()), value, True)


@lru_cache(maxsize=1024, typed=True)  # a step writes the same cards into all its frames
def _new_entry(keyword: str, value: Any, comment: str | None) -> Entry:
    text = _plain_card(keyword, value, comment)
    made = _plain_entry(text) if text else None
    return made or _entry_of_card(fits.Card(keyword, value, comment))


def _plain_card(keyword: str, value: Any, comment: str | None) -> str:
    """Give the card of a plain value as astropy writes it; '' for any other, and for a long one."""
    shown = ""
    if keyword in _SPECIAL or not _KEYWORD.fullmatch(keyword):
        return ""
    if isinstance(value, str) and value and "'" not in value and value == value.rstrip():
        quoted = f"'{value:8}'"
        shown = f"{quoted:20}"
    elif type(value) in (bool, int):
        shown = f"{'FT'[value] if isinstance(value, bool) else value:>20}"
    elif type(value) is float and _PLAIN_FLOAT.fullmatch(str(value)):
        shown = f"{value!s:>20}"
    text = f"{keyword:8}= {shown}{f' / {comment}' if comment else ''}"
    return text.ljust(CARD_LENGTH) if shown and len(text) <= CARD_LENGTH else ""


def _fitting(comment: str | None, value: object) -> str | None:
    """Cut a comment to what a card of 80 characters has room for beside a text.

    A text that is too long for one card has several, and the comment as many as it needs.
    """
    if not comment or not isinstance(value, str) or len(value) > 70:
        return comment
    # keyword and "= " take 10, the text with its quotes at least 20, " / " takes 3
    quoted = max(len(value.replace("'", "''")) + 2, 20)
    return comment[: max(80 - 10 - quoted - 3, 0)]


def _storable(value: Any) -> Any:
    """Give a value as a card can hold it: a text in ASCII, with escapes for all else.

    Names of files, which become values, may have any letters.
    """
    return (
        clean(value).encode("ascii", "backslashreplace").decode() if type(value) is str else value
    )


def _changed_entry(text: str, value: Any, comment: str | None) -> Entry:
    # 0.0 and -0.0 are the same to a cache, but not as text.
    change = _change_of_entry if value else _change_of_entry.__wrapped__
    return change(text, value, comment)


@lru_cache(maxsize=4096, typed=True)  # most frames have the same card and get the same value
def _change_of_entry(text: str, value: Any, comment: str | None) -> Entry:
    before = _plain_entry(text)
    if before is not None and before.keyword not in _SPECIAL and comment is None:
        if type(value) is type(before.value) and value == before.value:
            return before
        found = _PLAIN.fullmatch(text)
        kept = found.group("comment") if found else None
        if value != before.value and _plain_card(before.keyword, value, kept):
            make = _new_entry if value else _new_entry.__wrapped__  # a cache; see above
            return make(before.keyword, value, (kept or "").rstrip() or None)
    card = fits.Card.fromstring(text)
    if isinstance(value, str) and comment is not None:
        return _new_entry(card.keyword, value, comment)
    card.value = value
    if comment is not None:
        card.comment = comment
    return _entry_of_card(card)


def _astropy_card(entry: Entry) -> fits.Card:
    card = fits.Card.fromstring(entry.text)
    if isinstance(entry.value, float) and card.value != entry.value:
        card.value = entry.value  # the 20 characters of the text do not hold all digits
    return card


def _entry_of_card(card: fits.Card, text: str | None = None) -> Entry:
    keyword = sys.intern(card.keyword)
    try:
        value = card.value
    except (fits.VerifyError, ValueError, AttributeError):  # the card cannot be parsed
        value = None
    value = None if isinstance(value, fits.card.Undefined) else value
    return Entry(text or str(card), keyword, value, text is not None)
