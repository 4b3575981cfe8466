"""Where the faults of a simulated campaign are: in which nights and sequences, at which frames.

Faults are spread so that every product can still be made from what is left, as far as the campaign
is large enough: what finds no place is left out if all faults were asked for, and an error if it
was asked for by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from gdask.model import GdaskError
from gdask.simulate.campaign_options import (
    CampaignOptions,
    fault_kinds,
    instruments_of,
)
from gdask.simulate.campaign_plan import Block, Planned
from gdask.simulate.plan import Exposure
from gdask.simulate.seeds import generator

#: Faults of one science frame, which its product has to do without ...
LOST_FRAMES = ("truncated", "unreadable", "missing", "cloud", "exptime")
#: ... and of frames that can still be used, and how many.
FRAMES_OF = {"trail": 1, "duplicate": 2}
FRAMES_LEFT = 3  # clean frames that each sequence on a target keeps
CLOUD = 0.05  # throughput
#: Fault `seeing`: width of the images, and light of the sky, over those of the other nights.
WIDER, BRIGHTER = 1.6, 2.0

TWILIGHT_LIGHT = 1500.0  # e-/s in a mean pixel

Pair = tuple[str, str]  # instrument and filter


class Faults(NamedTuple):
    """What goes wrong in a campaign."""

    kinds: tuple[str, ...]  # those that have found a place
    left_out: dict[str, str]  # kinds that have not, and why
    no_flats: tuple[str, str, int] | None  # instrument, filter, night
    lamp_off: tuple[str, str, int] | None


def faults_of(options: CampaignOptions, blocks: list[Block]) -> Faults:
    """Which of the faults that were asked for have a place; GdaskError where one has none."""
    wanted, left_out = fault_kinds(options), _without_place(options, blocks)
    missing = {kind: why for kind, why in left_out.items() if kind in wanted}
    optional = {"noflats", "lampoff"}  # by name they are made, even if they leave no flat
    for kind, why in missing.items():
        if options.faults != "all" and kind not in optional:
            raise GdaskError(f"simulate campaign: no place for fault {kind}: {why}")
    if options.faults != "all":
        missing = {}
    kinds = tuple(kind for kind in wanted if kind not in missing)
    no_flats, lamp_off = _places_of_flats(options, blocks)
    return Faults(
        kinds,
        missing,
        no_flats if "noflats" in kinds else None,
        lamp_off if "lampoff" in kinds else None,
    )


def _without_place(options: CampaignOptions, blocks: list[Block]) -> dict[str, str]:
    """Kinds of faults that have no place in the campaign, and why."""
    why = {}
    wanted = fault_kinds(options)
    if "f2" not in instruments_of(options):
        why["spectrum"] = "GSAOI takes none; add f2 to the instruments"
    if "gsaoi" not in instruments_of(options) or not options.n_sky:
        why["pointing"] = "there are no sky frames of GSAOI"
    if options.nights < 2:
        why["renamed"] = "the target is observed in one night only"
        why["seeing"] = "there is no other night to compare with"
    sequences = len(_sequences(blocks))
    room = sequences * max(0, options.n_science - FRAMES_LEFT)
    lost = [kind for kind in LOST_FRAMES if kind in wanted]
    for kind in lost[room:]:
        why[kind] = (
            f"the sequences have {options.n_science} frames on target, of which {FRAMES_LEFT} "
            "stay as they are; take more of them, or more nights"
        )
    others = [kind for kind in FRAMES_OF if kind in wanted]
    free = sequences * options.n_science - len(lost[:room])
    while others and sum(FRAMES_OF[kind] for kind in others) > free:
        why[others.pop()] = "there are too few science frames"
    no_flats, lamp_off = _places_of_flats(options, blocks)
    if options.nights < 2:
        why["noflats"] = "no other night has flats"
    if lamp_off is None:
        why["lampoff"] = "flats in the K bands of FLAMINGOS-2 are taken without a lamp"
    elif options.nights < 2 + (lamp_off[:2] == (no_flats or ())[:2] and "noflats" in wanted):
        why["lampoff"] = f"no other night would have good flats of {' '.join(lamp_off[:2])}"
    return why


def _places_of_flats(
    options: CampaignOptions, blocks: list[Block]
) -> tuple[tuple[str, str, int] | None, tuple[str, str, int] | None]:
    """Instrument, filter and night without flats; and those of flats whose lamp was off.

    Of the first filter in the last night, and of the last filter in the first night.
    """
    lit = list(dict.fromkeys((b.instrument, b.filter) for b in blocks if b.kind == "flat_on"))
    flats = list(dict.fromkeys((b.instrument, b.filter) for b in blocks if "flat" in b.kind))
    no_flats = (*flats[0], options.nights - 1) if flats else None
    return no_flats, (*lit[-1], 0) if lit else None


def _sequences(blocks: list[Block]) -> list[Block]:
    """The blocks of science frames."""
    return [block for block in blocks if block.kind == "science"]


# Faults of blocks -------------------------------------------------------------------------------


def change_blocks(options: CampaignOptions, faults: Faults, blocks: list[Block]) -> list[Block]:
    """Take blocks away and add some, as the faults want it."""
    changed = []
    for block in blocks:
        place = (block.instrument, block.filter, block.night)
        if block.kind.startswith("flat") and place == faults.no_flats:
            continue
        if block.kind == "flat_on" and place == faults.lamp_off:
            block = block._replace(fault="lampoff")
        changed.append(block)
    return _with_extras(options, faults, changed)


def _with_extras(options: CampaignOptions, faults: Faults, blocks: list[Block]) -> list[Block]:
    """Add single frames: before and after the science frames of the first and last night."""
    science = _sequences(blocks)
    first = science[0]
    last = next(block for block in science if block.night == options.nights - 1)
    before = {"acquisition": first}
    after = {"lonely": last, "other": last}
    if "f2" in instruments_of(options):
        after["spectrum"] = next(block for block in science if block.instrument == "f2")
    found: list[Block] = []
    for block in blocks:
        found += _singles(faults, before, block)
        found.append(block)
        found += _singles(faults, after, block)
    if "twilight" in faults.kinds:
        found.append(first._replace(kind="twilight", part="twilight", fault="twilight"))
    return found


def _singles(faults: Faults, places: dict[str, Block], block: Block) -> Iterator[Block]:
    """Blocks of a single frame that belong beside a block."""
    for kind, place in places.items():
        if kind in faults.kinds and block == place:
            yield block._replace(kind=kind, fault=kind)


# Faults of frames -------------------------------------------------------------------------------


def change_frames(options: CampaignOptions, faults: Faults, frames: list[Planned]) -> list[Planned]:
    """Choose the science frames that something happens to, and change what is true of frames."""
    chosen = _chosen_frames(options, faults, frames)
    changed: list[Planned] = []
    for frame in frames:
        fault = chosen.get(frame.exposure.file, frame.fault)
        frame = frame._replace(fault=fault)
        claimed = changed[-1].exposure.claimed if changed else frame.exposure.claimed
        frame = frame._replace(exposure=_changed(frame, claimed))
        changed.append(_in_bad_seeing(options, faults, _renamed(options, faults, frame)))
    return changed


def _chosen_frames(
    options: CampaignOptions, faults: Faults, frames: list[Planned]
) -> dict[str, str]:
    """File and fault of the frames on target that something happens to.

    Each sequence in turn, in an order that the seed shuffles, so that none has many.
    """
    rng = generator(options.seed, "campaign", "faults")
    sequences: dict[Block, list[str]] = {}
    for frame in frames:
        if frame.block.kind == "science" and frame.exposure.kind == "science":
            sequences.setdefault(frame.block, []).append(frame.exposure.file)
    free = [list(rng.permutation(files)) for files in sequences.values()]
    order = rng.permutation(len(free))
    counts = dict.fromkeys(LOST_FRAMES, 1) | FRAMES_OF
    kinds = [kind for kind, count in counts.items() for _ in range(count) if kind in faults.kinds]
    chosen: dict[str, str] = {}
    turns = itertools.cycle(order)
    while len(chosen) < len(kinds):
        files = free[next(turns)]
        if files:
            chosen[str(files.pop())] = kinds[len(chosen)]
    if "pointing" in faults.kinds:
        skies = [frame for frame in frames if frame.exposure.kind == "sky"]
        last = [frame for frame in skies if frame.block.night == options.nights - 1]
        chosen[last[0].exposure.file] = "pointing"
    return chosen


def _changed(frame: Planned, claimed: tuple[float, float]) -> Exposure:
    """The exposure as the fault makes it. claimed: what the frame before claims of its pointing."""
    exposure, fault = frame.exposure, frame.fault
    if fault == "cloud":
        return exposure._replace(scale=CLOUD)
    if fault == "pointing":
        return exposure._replace(bad_wcs=True, claimed=claimed)
    if fault == "twilight":
        return exposure._replace(light=TWILIGHT_LIGHT)
    return exposure


def _renamed(options: CampaignOptions, faults: Faults, frame: Planned) -> Planned:
    """Spell the first target of the first instrument otherwise on the last night."""
    block, identity = frame.block, frame.exposure.identity
    place = (block.night, block.target, block.instrument)
    if (
        "renamed" not in faults.kinds
        or identity is None
        or place != (options.nights - 1, 0, instruments_of(options)[0])
    ):
        return frame
    other = identity._replace(object=renamed(identity.object))
    return frame._replace(exposure=frame.exposure._replace(identity=other))


def _in_bad_seeing(options: CampaignOptions, faults: Faults, frame: Planned) -> Planned:
    """Widen the images of the last night, and brighten its sky."""
    exposure, is_last = frame.exposure, frame.block.night == options.nights - 1
    if "seeing" not in faults.kinds or not is_last or frame.block.kind != "science":
        return frame
    psf = tuple(one._replace(fwhm=WIDER * one.fwhm) for one in exposure.psf)
    return frame._replace(exposure=exposure._replace(psf=psf, light=BRIGHTER * exposure.light))


def renamed(name: str) -> str:
    """Another spelling of a target's name."""
    return name.lower().replace("-", " -")
