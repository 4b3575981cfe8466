"""What one file is, from its headers alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from gdask.headers import Headers, open_hdus, read_headers
from gdask.instruments import View, view
from gdask.instruments.view import REQUIRED, number_problem, problem_with
from gdask.model import GdaskError, UsageError, night_of
from gdask.params import closest

#: Endings of compressed files.
COMPRESSED = re.compile(r"\.(gz|bz2|fz)$", re.IGNORECASE)
#: Kinds that a plan uses; all other files are left out, for the reason in `RawFile.why`.
USED_KINDS = ("science", "flat", "dark", "processed_bpm", "processed_flat", "processed_dark")

#: Keywords that say how a file is built, and comments: no correction can be meant.
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|GROUPS|EXTEND|EXTNAME|EXTVER|EXTLEVEL|END|NEXTEND"
    r"|BSCALE|BZERO|BLANK|THEAP|TFIELDS|T(FORM|TYPE|DIM|NULL|SCAL|ZERO)\d+|CHECKSUM|DATASUM"
    r"|Z(IMAGE|TABLE|BITPIX|NAXIS\d*|TILE\d+|CMPTYPE|NAME\d+|VAL\d+)|COMMENT|HISTORY|CONTINUE|"
)


#: What many files of a campaign have alike.
_SHARED = (
    "kind", "why", "instrument", "tags", "night", "object", "observation_class", "program",
    "observation", "lamp", "ra", "dec", "field_of_view",
)  # fmt: skip


class RawFile(NamedTuple):
    """One file: where it is and what it is.

    kind: one of USED_KINDS, 'other' (a file of ours that no recipe is for), 'not ours',
    'unreadable' or 'duplicate'; why: in words, for those that are not used. night: YYYYMMDD.
    lamp: 'on', 'off' or ''. guided: None where the file has no target. row: what the rules of
    association look at (`caldb.describe`), but the time.
    """

    path: str
    size: int
    mtime_ns: int
    name: str
    kind: str
    why: str = ""
    label: str = ""
    instrument: str = ""
    tags: tuple[str, ...] = ()
    night: str = ""
    time: str = ""
    object: str = ""
    observation_class: str = ""
    program: str = ""
    observation: str = ""
    ra: float | None = None
    dec: float | None = None
    guided: bool | None = None
    lamp: str = ""
    field_of_view: float = 0.0
    row: Mapping[str, Any] = MappingProxyType({})

    @property
    def key(self) -> str:
        """What names the exposure, whatever the file is called: its data label and time."""
        return f"{self.label or self.name}@{self.time}"


def sharing(file: RawFile, known: dict[Any, Any]) -> RawFile:
    """Give the file with what other files have too in one place: 4 kB a file would be 1 kB.

    known: values that were met before; those of this file are added.
    """
    row = {name: value for name, value in file.row.items() if name != "ut_datetime"}
    text = json.dumps(row)
    same = {
        name: known.setdefault(value, value)
        for name in _SHARED
        if (value := getattr(file, name)) is not None
    }
    return file._replace(**same, row=known.setdefault(text, row))


def plain_name(path: str) -> str:
    """Give the name of a file without its folder and the ending of a compression."""
    return COMPRESSED.sub("", os.path.basename(path))


def describe(path: str, status: os.stat_result | None = None, cards: Sequence[str] = ()) -> RawFile:
    """Read the headers of a file and say what it is. A file that cannot be read says why.

    cards: corrected ones, as KEYWORD=VALUE.
    """
    status = status or os.stat(path)
    where: dict[str, Any] = {
        "path": path,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "name": plain_name(path),
    }
    try:
        headers = with_cards(read_headers(path), cards)
    except (GdaskError, OSError) as error:
        return RawFile(**where, kind="unreadable", why=_without_path(error, path))
    try:
        about = view(headers)
    except GdaskError as error:
        return RawFile(**where, kind="not ours", why=_without_path(error, path))
    try:
        return RawFile(**where, **_facts(headers, about))
    except (GdaskError, ValueError, TypeError, KeyError, IndexError) as error:
        return RawFile(**where, kind="other", why=f"its header is not understood: {error}")


def with_cards(headers: Headers, cards: Sequence[str]) -> Headers:
    """Give headers with corrected cards, in every header that has the keyword, else the first."""
    for keyword, value in map(parse_card, cards):
        has = [keyword in header for header in headers.ext]
        phu = headers.phu
        if keyword in phu or not any(has):
            phu = phu.changed({keyword: value})
        ext = tuple(
            header.changed({keyword: value}) if one else header
            for header, one in zip(headers.ext, has, strict=True)
        )
        headers = Headers(phu, ext, headers.path)
    return headers


def parse_card(card: str) -> tuple[str, Any]:
    """Give keyword and value of KEYWORD=VALUE; UsageError where FITS does not know such a value."""
    from astropy.io import fits

    keyword, _, value = (part.strip() for part in card.partition("="))
    try:
        parsed = fits.Card.fromstring(f"{keyword.upper():8}= {value}")
        parsed.verify("exception")
        return parsed.keyword, parsed.value
    except (fits.VerifyError, ValueError):
        raise UsageError(
            f"{card}: no keyword and value of FITS; a text needs quotes: {keyword}='{value}'"
        ) from None


def check_card(card: str) -> None:
    """Raise UsageError where a card cannot be a corrected one: structure, or no such number."""
    keyword, value = parse_card(card)
    if _STRUCTURE.fullmatch(keyword):
        raise UsageError(
            f"--header {card}: {keyword} says how the file is built and cannot be corrected"
        )
    if keyword in REQUIRED and (text := problem_with(keyword, value)):
        raise UsageError(f"--header {card}: {text}")


def check_known(card: str, files: Iterable[RawFile], others: Iterable[RawFile]) -> None:
    """Raise UsageError, with the nearest, where neither gdask nor any file knows a card's keyword.

    others: all files of the campaign. One of each kind is looked at: a file may lack a card that
    its fellows have.
    """
    keyword, _ = parse_card(card)
    fellows = {(one.instrument, one.kind): one for one in others if one.instrument}
    known = set(REQUIRED)
    for one in (*files, *fellows.values()):
        with contextlib.suppress(GdaskError, OSError):
            headers = read_headers(one.path)
            known |= {name for header in (headers.phu, *headers.ext) for name in header}
    if keyword not in known:
        near = closest(keyword, sorted(name for name in known if not _STRUCTURE.fullmatch(name)))
        raise UsageError(f"--header {card}: no file here has a keyword {keyword}{near}")


def _without_path(error: Exception, path: str) -> str:
    return str(error).removeprefix(f"{path}: ")


def _facts(headers: Headers, about: View) -> dict[str, Any]:
    from gdask.caldb import describe as describe_row

    time = about("ut_datetime")
    row = describe_row(headers)
    del row["ut_datetime"]  # `time` has it; files that differ in nothing else share one row
    has_target = not {"CAL", "BPM"} & about.tags
    facts = {
        "label": str(about("data_label") or ""),
        "instrument": str(about("instrument")),
        "tags": tuple(sorted(about.tags)),
        "night": night_of(time).strftime("%Y%m%d") if time else "",
        "time": _iso(time) or "",
        "object": str(about("object") or ""),
        "observation_class": str(about("observation_class") or ""),
        "program": str(about("program_id") or ""),
        "observation": str(about("observation_id") or ""),
        "ra": about("target_ra") if has_target else None,
        "dec": about("target_dec") if has_target else None,
        "guided": about("wavefront_sensor") is not None if has_target else None,
        "lamp": "on" if "LAMPON" in about.tags else "off" if "LAMPOFF" in about.tags else "",
        "field_of_view": float(about.facts.get("field_of_view", 0.0)),
        "row": row,
    }
    kind, why = _kind(headers, about, row)
    return facts | {"kind": kind, "why": why}


def _kind(headers: Headers, about: View, row: dict[str, Any]) -> tuple[str, str]:
    """Give the kind of a file of ours, and why it is not used where it is 'other'."""
    tags = about.tags
    if row["caltype"]:
        return (row["caltype"], "") if row["caltype"] in USED_KINDS else ("other", row["caltype"])
    unused = {
        "PROCESSED": "a finished product",
        "PREPARED": "no raw frame: a step was applied to it already",
        "SPECT": "a spectrum; recipes are for images",
        "ACQUISITION": "an acquisition",
        "TWILIGHT": "a twilight flat: there is no recipe for it",
        "THRUSLIT": "an image through a slit or mask",
    }
    if why := next((why for tag, why in unused.items() if tag in tags), ""):
        return "other", why
    if about("observation_class") in ("acq", "acqCal"):
        return "other", "an acquisition"
    if problem := number_problem((headers.phu, *headers.ext)):
        return "other", f"{problem}; correct it with gdask flag FILE --header KEY=VALUE"
    if missing := next((name for name in _needed(tags) if about(name) is None), ""):
        return "other", f"no {missing.replace('_', ' ')} from its header"
    if "DARK" in tags:
        return "dark", ""
    if "FLAT" in tags:
        return "flat", ""
    if "IMAGE" in tags and "CAL" not in tags:
        return "science", ""
    return "other", f"no recipe for files tagged {' '.join(sorted(tags))}"


def _needed(tags: Iterable[str]) -> tuple[str, ...]:
    common = ("ut_datetime", "exposure_time")
    return common if {"DARK", "FLAT"} & set(tags) else (*common, "target_ra", "target_dec")


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def write_corrected(path: str, cards: Iterable[str], copy: str | os.PathLike[str]) -> None:
    """Copy a raw file with corrected cards; the raw file itself is never touched."""
    with open_hdus(path, do_not_scale_image_data=True) as units:
        for keyword, value in map(parse_card, cards):
            numbers = [n for n, unit in enumerate(units) if keyword in unit.header] or [0]
            for number in numbers:
                units[number].header[keyword] = value
        units.writeto(copy, overwrite=True, output_verify="fix+ignore")
