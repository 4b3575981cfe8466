"""Simulate campaigns: nights, targets, filters and instruments, with known truth and faults.

What is written:
- raw/YYYYMMDD/: the files of a night, with an md5sum.txt of what was to be downloaded; GSAOI's
  bad-pixel mask is in raw itself, second copies of some files in raw/again;
- truth/campaign.json: nights, targets, filters, options; truth/files.ecsv: one row for each file;
  truth/faults.json: what is wrong with which file;
- truth/INSTRUMENT_FILTER/ and truth/INSTRUMENT_FILTER_TARGET/: the truth about calibrations and
  about the frames of a target in all nights, in the form of a single simulated night.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdask.model import GdaskError
from gdask.simulate import f2, gsaoi
from gdask.simulate.campaign_faults import (
    BRIGHTER,
    WIDER,
    Faults,
    change_blocks,
    change_frames,
    faults_of,
    renamed,
)
from gdask.simulate.campaign_files import damage_and_list, write_tables
from gdask.simulate.campaign_options import (
    FAULTS,
    CampaignOptions,
    campaign_options,
    filters_of,
    instruments_of,
)
from gdask.simulate.campaign_pixels import gmos_frame, trail_of, with_faults
from gdask.simulate.campaign_plan import (
    Field,
    Planned,
    all_blocks,
    f2_of,
    fields,
    gsaoi_of,
    night_date,
    plan_frames,
)
from gdask.simulate.light import AnyOptions, Detector, Night
from gdask.simulate.night import Share, write_frames, write_mef, write_truth
from gdask.simulate.plan import Exposure
from gdask.simulate.scene import Stars
from gdask.simulate.seeds import generator

Progress = Callable[[str], None] | None


class Group(NamedTuple):
    """Frames that share one truth: calibrations of a filter (target -1), or a target's."""

    instrument: str
    filter: str
    target: int


class Campaign(NamedTuple):
    """A campaign before it is written."""

    options: CampaignOptions
    fields: dict[str, list[Field]]  # by instrument
    faults: Faults
    frames: list[Planned]


def simulate_campaign(out: str | Path, *, progress: Progress = None, **options: Any) -> list[Path]:
    """Write raw frames of several nights to out/raw, and truth to out/truth.

    options: the fields of CampaignOptions (nights=2, targets=1, filters="Kshort", ...). progress:
    called with each file's name. Returns the raw files, in order of their names. Raises GdaskError
    for an option that is unknown or out of its limits, and where `out` holds a campaign already.
    """
    campaign = plan_campaign(campaign_options(**options))
    raw, truth = Path(out) / "raw", Path(out) / "truth"
    for folder in (raw, truth):
        if folder.is_dir() and any(folder.iterdir()):
            raise GdaskError(
                f"{folder}: is not empty; name another folder, or remove it to simulate again"
            )
    for night in range(campaign.options.nights):
        _folder(campaign, raw, night).mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    notes = _write_groups(campaign, raw, truth, progress)
    rows, paths = damage_and_list(
        campaign.options,
        campaign.frames,
        raw,
        lambda frame: _folder(campaign, raw, frame.block.night),
    )
    write_tables(truth, _summary(campaign), rows, _faults(campaign, rows, notes))
    return sorted(paths)


def plan_campaign(options: CampaignOptions) -> Campaign:
    """Everything but the pixels."""
    facts = {"gsaoi": gsaoi.load_facts()[0]["filters"], "f2": f2.load_facts()[0]["filters"]}
    blocks = all_blocks(options, facts)
    faults = faults_of(options, blocks)
    frames = plan_frames(options, change_blocks(options, faults, blocks), facts)
    places = {name: fields(options, name) for name in instruments_of(options)}
    return Campaign(options, places, faults, change_frames(options, faults, frames))


def _folder(campaign: Campaign, raw: Path, night: int) -> Path:
    """Where the files of a night go."""
    return raw / f"{night_date(campaign.options, night):%Y%m%d}"


# Pixels -----------------------------------------------------------------------------------------


def _write_groups(
    campaign: Campaign, raw: Path, truth: Path, progress: Progress
) -> dict[str, dict[str, float]]:
    """Write the frames and the truth of each group, GSAOI's mask and a frame of GMOS.

    Returns the trails of satellites, by file.
    """
    groups: dict[Group, list[Planned]] = {}
    for frame in campaign.frames:
        block = frame.block
        if frame.fault == "other":
            path = _folder(campaign, raw, block.night) / frame.exposure.file
            write_mef(path, *gmos_frame(campaign.options.seed, frame.exposure))
        else:
            group = Group(block.instrument, block.filter, block.target)
            groups.setdefault(group, []).append(frame)
    nights: dict[tuple[str, str], Any] = {}  # the last one of an instrument and filter
    trails: dict[str, dict[str, float]] = {}
    for group, frames in groups.items():
        pair = group.instrument, group.filter
        made = nights[pair].detectors if pair in nights else None
        nights[pair] = _write_group(campaign, group, frames, made, (raw, truth), progress)
        trails |= {
            frame.exposure.file: trail_of(nights[pair], frame.exposure)._asdict()
            for frame in frames
            if frame.fault == "trail"
        }
    if "gsaoi" in campaign.fields:
        gsaoi.write_bpm(next(night for pair, night in nights.items() if pair[0] == "gsaoi"), raw)
    return trails


def _write_group(
    campaign: Campaign,
    group: Group,
    frames: list[Planned],
    detectors: list[Detector] | None,
    folders: tuple[Path, Path],
    progress: Progress,
) -> Any:
    """Write the frames of a group and their truth, and return its night."""
    raw, truth = folders
    prepared, camera = _prepared(campaign, group, [frame.exposure for frame in frames], detectors)
    camera = with_faults(
        prepared, camera, {frame.exposure.file: frame.fault for frame in frames if frame.fault}
    )
    places = {frame.exposure.file: frame.block.night for frame in frames}

    def folder(exposure: Exposure) -> Path:
        return _folder(campaign, raw, places[exposure.file])

    counts = write_frames(prepared, camera, folder, progress)
    table_folder = truth / group_name(campaign, group)
    table_folder.mkdir(exist_ok=True)
    write_truth(prepared, camera, counts, table_folder)
    return prepared


def _prepared(
    campaign: Campaign,
    group: Group,
    exposures: list[Exposure],
    detectors: list[Detector] | None,
) -> Any:
    """A night of the group's instrument, and its camera."""
    field = campaign.fields[group.instrument][max(0, group.target)]
    words = (group.instrument, max(0, group.target))
    sky_seed = int(generator(campaign.options.seed, "campaign", *words).integers(2**62))
    share = Share((field.ra, field.dec), sky_seed, exposures, detectors)
    if group.instrument == "gsaoi":
        gsaoi_night = gsaoi.prepare_night(gsaoi_of(campaign.options, group.filter), share)
        gsaoi_night = _without_sky(gsaoi_night, group)
        return gsaoi_night, gsaoi.camera(gsaoi_night)
    f2_night = f2.prepare_night(f2_of(campaign.options, group.filter), share)
    # Dithers on target cannot tell smooth light about a cluster from the sky: there is none.
    f2_night = _without_sky(f2_night, group)._replace(halo=None)
    return f2_night, f2.camera(f2_night)


def _without_sky(night: Night[AnyOptions], group: Group) -> Night[AnyOptions]:
    """The night of calibrations, which see no sky: its catalogue is empty."""
    if group.target >= 0:
        return night
    empty = np.zeros(0)
    stars = {name: Stars(name, [], *[empty] * 4) for name in night.stars}
    return night._replace(stars=stars, galaxies={}, halo=None)


def group_name(campaign: Campaign, group: Group) -> str:
    """Name of the folder of a group's truth."""
    name = f"{group.instrument}_{group.filter}"
    if group.target < 0:
        return name
    return f"{name}_{campaign.fields[group.instrument][group.target].name}"


# Truth ------------------------------------------------------------------------------------------


def _summary(campaign: Campaign) -> dict[str, object]:
    """What was observed when, for truth/campaign.json."""
    options = campaign.options
    return {
        "options": options._asdict(),
        "nights": [f"{night_date(options, n):%Y%m%d}" for n in range(options.nights)],
        "filters": {name: filters_of(options, name) for name in campaign.fields},
        "targets": [field._asdict() for places in campaign.fields.values() for field in places],
        "frames_on_target": options.n_science,
    }


def _faults(
    campaign: Campaign, rows: list[dict[str, Any]], notes: dict[str, dict[str, float]]
) -> dict[str, object]:
    """What is wrong with which file, and with the campaign, for truth/faults.json."""
    options, faults = campaign.options, campaign.faults
    files = {}
    for row in rows:
        if row["fault"]:
            files[row["path"]] = {"fault": row["fault"]} | (
                {"of": row["copy_of"]} if row["copy_of"] else {}
            )
            files[row["path"]] |= notes.get(Path(row["path"]).name.removesuffix(".bz2"), {})
    nights: list[dict[str, object]] = []
    last = f"{night_date(options, options.nights - 1):%Y%m%d}"
    for kind, place in (("noflats", faults.no_flats), ("lampoff", faults.lamp_off)):
        if place:
            night = f"{night_date(options, place[2]):%Y%m%d}"
            nights.append(
                {"fault": kind, "instrument": place[0], "filter": place[1], "night": night}
            )
    if "renamed" in faults.kinds:
        instrument = instruments_of(options)[0]
        nights.append(
            {
                "fault": "renamed",
                "instrument": instrument,
                "target": campaign.fields[instrument][0].name,
                "name": renamed(campaign.fields[instrument][0].name),
                "night": last,
            }
        )
    if "seeing" in faults.kinds:
        nights.append({"fault": "seeing", "night": last, "wider": WIDER, "brighter": BRIGHTER})
    return {
        "kinds": {kind: FAULTS[kind] for kind in faults.kinds},
        "left_out": faults.left_out,
        "files": files,
        "nights": nights,
    }
