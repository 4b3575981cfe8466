"""The plan of a simulated campaign: what is taken in which night, when, and under which name.

A night has four parts. In the afternoon and in the morning calibrations are taken, between them
targets, one after another, each with all instruments and filters; the third science frame of a
night is exposed over midnight UT. Files are numbered through a night in order of time, whatever the
instrument, as Gemini's are, and carry the date of the night's morning: a night's names turn at 18 h
UT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from gdask.model import GdaskError
from gdask.simulate import f2_plan, gsaoi_plan
from gdask.simulate.campaign_options import CampaignOptions, filters_of, instruments_of
from gdask.simulate.gemini_headers import LONGITUDE, sidereal_time
from gdask.simulate.geometry import FULL_SIZE
from gdask.simulate.options import F2Options, GsaoiOptions, f2_options, gsaoi_options
from gdask.simulate.plan import (
    MJD_0,
    SECONDS_PER_DAY,
    Exposure,
    Identity,
    Sequence,
    calibrations,
    date_of,
)

#: Parts of a night: first and last hour, UT after midnight of the date in the names.
PARTS = {
    "afternoon": (-4.5, -1.0),
    "twilight": (-0.9, -0.4),
    "night": (0.0, 9.5),
    "morning": (10.0, 17.5),
}
FIRST_NUMBER = 11  # of a night's files
FRAMES_BEFORE_MIDNIGHT = 2.5  # science frames: the third is half over at midnight UT
CHANGE_TIME = 60.0  # s between the last frame of a block and the first of the next
#: Exposure times (s) of single frames that faults add; a lonely one's over that of the others.
EXTRA_EXPTIMES = {"acquisition": 5.0, "twilight": 10.0, "spectrum": 120.0, "other": 30.0}
LONELY_FACTOR = 2.0
EXTRA_TIME = 180.0  # s, at most, that a single frame before the science frames takes
NIGHTS_PER_LAMP_OFF = 2  # every so many nights lamp-off flats of FLAMINGOS-2 are taken

# Targets: right ascension and declination, degrees. The first transits an hour after midnight UT of
# the first night; FLAMINGOS-2 observes a field beside GSAOI's with the same name.
FIRST_HOUR_ANGLE, RA_STEP = 15.0, 11.0
DECLINATIONS = (-35.2, -22.9, -43.1, -14.6, -52.3, -29.8)
F2_BESIDE = 0.35
F2_SIZES = 2  # sides of one of GSAOI's four windows in the side of FLAMINGOS-2's: as many pixels
FIRST_PROGRAM = {"gsaoi": 29, "f2": 61}  # number of the first target's programme
FIRST_OBSERVATION = 21  # of a target, one for each filter
EXTRA_OBSERVATION, EXTRAS_PER_NIGHT = 90, 200  # of single frames that go with a target


class Field(NamedTuple):
    """A target of one instrument."""

    instrument: str
    number: int  # from 0
    name: str
    ra: float  # degrees
    dec: float  # degrees
    program: str


class Block(NamedTuple):
    """Frames of one kind that are taken in a row."""

    night: int  # from 0
    part: str  # of the night
    instrument: str
    filter: str  # by the instrument's name
    kind: str  # science, flat_on, flat_off, dark, or what a fault adds
    target: int = -1  # -1: none
    exptime: float = 0.0  # s, of darks
    fault: str = ""  # of all its frames


class Planned(NamedTuple):
    """A frame of a campaign."""

    block: Block
    exposure: Exposure
    fault: str


def night_date(options: CampaignOptions, night: int) -> datetime:
    """The date in the file names of a night (from 0)."""
    return date_of(options.date) + timedelta(days=night * options.days_apart)


def fields(options: CampaignOptions, instrument: str) -> list[Field]:
    """The targets of an instrument."""
    date = date_of(options.date)
    start = sidereal_time((date - MJD_0).days, LONGITUDE)
    semester = f"GS-{date.year - (date.month == 1)}{'A' if 2 <= date.month <= 7 else 'B'}"
    found = []
    for number in range(options.targets):
        ra = (start + FIRST_HOUR_ANGLE + RA_STEP * number) % 360.0
        dec = DECLINATIONS[number % len(DECLINATIONS)]
        minutes = round(abs(dec) * 60.0)
        name = f"J{int(ra / 15):02d}{int(ra * 4 % 60):02d}-{minutes // 60:02d}{minutes % 60:02d}"
        north = F2_BESIDE * (instrument == "f2")
        program = f"{semester}-Q-{FIRST_PROGRAM[instrument] + number}"
        found.append(Field(instrument, number, name, round(ra, 4), round(dec + north, 4), program))
    return found


# Options and facts of the instruments ----------------------------------------------------------


def gsaoi_of(options: CampaignOptions, filter_name: str) -> GsaoiOptions:
    """Options of GSAOI's frames in a filter."""
    return gsaoi_options(
        seed=options.seed,
        size=options.size,
        roi=0,
        n_science=options.n_science,
        n_sky=options.n_sky,
        n_flats=options.n_flats,
        n_std=0,
        filter=filter_name,
        bad_wcs=0,
        date=options.date,
    )


def f2_of(options: CampaignOptions, filter_name: str) -> F2Options:
    """Options of FLAMINGOS-2's frames in a filter."""
    return f2_options(
        seed=options.seed,
        size=min(F2_SIZES * options.size, FULL_SIZE),
        n_science=options.n_science,
        filter=filter_name,
        field="crowded",
        date=options.date,
    )


# Blocks -----------------------------------------------------------------------------------------


def all_blocks(options: CampaignOptions, facts: dict[str, Any]) -> list[Block]:
    """Every block of a campaign without faults, in order. facts: of filters, by instrument."""
    return [
        block for night in range(options.nights) for block in _night_blocks(options, facts, night)
    ]


def _night_blocks(options: CampaignOptions, facts: dict[str, Any], night: int) -> Iterator[Block]:
    """The blocks of a night.

    GSAOI's flats of every second filter are taken in the morning, the others in the afternoon.
    """
    instruments = instruments_of(options)
    domeflats = [
        Block(night, ("afternoon", "morning")[i % 2], "gsaoi", name, kind)
        for i, name in enumerate(filters_of(options, "gsaoi") if "gsaoi" in instruments else ())
        for kind in ("flat_on", "flat_off")
    ]
    yield from (block for block in domeflats if block.part == "afternoon")
    for target in range(options.targets):
        for instrument in instruments:
            for name in filters_of(options, instrument):
                yield Block(night, "night", instrument, name, "science", target)
    if "f2" in instruments:
        yield from _f2_calibrations(options, facts["f2"], night)
    yield from (block for block in domeflats if block.part == "morning")


def _f2_calibrations(
    options: CampaignOptions, facts: dict[str, Any], night: int
) -> Iterator[Block]:
    """GCAL flats and darks: of science frames, short ones, and those that flats in K need."""
    darks: dict[float, str] = {}
    for name in filters_of(options, "f2"):
        flat = facts[name]["flat"]
        if flat["lamp"]:
            yield Block(night, "morning", "f2", name, "flat_on")
        if not flat["lamp"] or night % NIGHTS_PER_LAMP_OFF == 0:
            yield Block(night, "morning", "f2", name, "flat_off")
        darks.setdefault(facts[name]["exptime"], name)
        darks.setdefault(f2_plan.SHORT_DARK_EXPTIME, name)
        if not flat["lamp"]:
            darks.setdefault(flat["exptime"], name)
    for exptime, name in darks.items():
        yield Block(night, "morning", "f2", name, "dark", exptime=exptime)


# Frames -----------------------------------------------------------------------------------------


def plan_frames(
    options: CampaignOptions, blocks: Iterable[Block], facts: dict[str, Any]
) -> list[Planned]:
    """Every frame of the blocks, with its time, name and identity, in order of time.

    GdaskError where a part of a night has no time for its frames.
    """
    by_night: dict[int, list[Block]] = {}
    for block in blocks:
        by_night.setdefault(block.night, []).append(block)
    return [
        frame
        for night, members in sorted(by_night.items())
        for frame in _night_frames(options, night, members, facts)
    ]


def _night_frames(
    options: CampaignOptions, night: int, blocks: list[Block], facts: dict[str, Any]
) -> Iterator[Planned]:
    """The frames of a night, part by part."""
    date, number, observation = night_date(options, night), FIRST_NUMBER, 0
    for part, (first_hour, last_hour) in PARTS.items():
        members = [block for block in blocks if block.part == part]
        seconds, start = _first_starts(options, members, facts) if part == "night" else (0.0, {})
        for i, block in enumerate(members):
            observation += 1
            seconds = max(seconds, start.get(i, seconds))
            place = Sequence(date, number, first_hour, round(seconds, 1), night)
            frames = block_frames(options, block, place, observation, facts)
            yield from (Planned(block, frame, block.fault) for frame in frames)
            number += len(frames)
            last = frames[-1]
            begun = (last.mjd - (date - MJD_0).days) * SECONDS_PER_DAY - first_hour * 3600.0
            seconds = begun + last.exptime * last.coadds + CHANGE_TIME
        if seconds > (last_hour - first_hour) * 3600.0:
            raise GdaskError(
                f"simulate campaign: the frames of a {part} take {seconds / 3600:.1f} h, "
                f"expected at most {last_hour - first_hour:.1f} h; take fewer targets, filters or "
                "frames"
            )


def _first_starts(
    options: CampaignOptions, blocks: list[Block], facts: dict[str, Any]
) -> tuple[float, dict[int, float]]:
    """When the first block starts, and when the first science block, by its index.

    Seconds after midnight UT: its third frame is exposed over midnight.
    """
    kinds = [block.kind for block in blocks]
    if "science" not in kinds:
        return 0.0, {}
    first = kinds.index("science")
    block = blocks[first]
    if block.instrument == "gsaoi":
        step = gsaoi_plan.science_step(gsaoi_of(options, block.filter))
    else:
        step = facts["f2"][block.filter]["exptime"] + f2_plan.OVERHEAD
    start = -FRAMES_BEFORE_MIDNIGHT * step
    return start - EXTRA_TIME * first, {first: start}


def block_frames(
    options: CampaignOptions,
    block: Block,
    place: Sequence,
    observation: int,
    facts: dict[str, Any],
) -> list[Exposure]:
    """The frames of a block. observation: number of a calibration's among those of the night."""
    if block.kind in ("flat_on", "flat_off", "dark"):
        frames = _calibration_frames(options, block, place, facts)
        who = Identity("", f"GS-CAL{place.date:%Y%m%d}", observation)
        return [frame._replace(identity=who) for frame in frames]
    field = fields(options, block.instrument)[max(0, block.target)]
    if block.kind == "science":
        place = place._replace(taken=block.night * frames_on_target(options, block.instrument))
        number = FIRST_OBSERVATION + filters_of(options, block.instrument).index(block.filter)
        frames = _science_frames(options, block, place, field, facts)
        return [
            frame._replace(identity=Identity(field.name, field.program, number)) for frame in frames
        ]
    single = options._replace(n_science=1, n_sky=0)  # what a fault adds
    (frame,) = _science_frames(single, block, place, field, facts)
    number = EXTRA_OBSERVATION + EXTRAS_PER_NIGHT * block.night + observation
    who = Identity(field.name, field.program, number)
    if block.kind == "twilight":
        who = Identity("Twilight", f"GS-CAL{place.date:%Y%m%d}", number)
    exptime = EXTRA_EXPTIMES.get(block.kind, LONELY_FACTOR * frame.exptime)
    return [frame._replace(identity=who, exptime=exptime)]


def frames_on_target(options: CampaignOptions, instrument: str) -> int:
    """Frames of a target, its sky included, in a filter and a night."""
    return options.n_science + options.n_sky * (instrument == "gsaoi")


def _science_frames(
    options: CampaignOptions, block: Block, place: Sequence, field: Field, facts: dict[str, Any]
) -> list[Exposure]:
    """Frames on a target and its sky."""
    target, of_filter = (field.ra, field.dec), facts[block.instrument][block.filter]
    if block.instrument == "gsaoi":
        return list(gsaoi_plan.science(gsaoi_of(options, block.filter), of_filter, place, target))
    return list(f2_plan.science(f2_of(options, block.filter), of_filter, place, target))


def _calibration_frames(
    options: CampaignOptions, block: Block, place: Sequence, facts: dict[str, Any]
) -> list[Exposure]:
    """Flats or darks. A lamp that was off (fault lampoff) gives no light; the header says on."""
    lamp = block.kind == "flat_on" and block.fault != "lampoff"
    of_filter = facts[block.instrument][block.filter]
    if block.instrument == "gsaoi":
        frames = gsaoi_plan.flats(gsaoi_of(options, block.filter), of_filter, place, lamp)
        return [frame._replace(kind=block.kind) for frame in frames]
    flat, dark = of_filter["flat"], block.kind == "dark"
    exptime = block.exptime if dark else flat["exptime"]
    frames = calibrations(
        options.seed,
        block.kind,
        place,
        options.n_darks if dark else options.n_flats,
        step=exptime + f2_plan.OVERHEAD,
        exptime=exptime,
        coadds=1,
        lnrs=1,
        light=0.0 if dark else flat["closed"] + flat["lamp"] * lamp,
    )
    return list(frames)
