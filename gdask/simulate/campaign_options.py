"""Options of simulated campaigns, and the kinds of faults that they can have.

The command line imports this module, so it must load nothing heavy.
"""

from __future__ import annotations

import difflib
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from gdask.model import GdaskError
from gdask.simulate.options import F2, GSAOI, OptionTable, checked

INSTRUMENTS = {"gsaoi": GSAOI, "f2": F2}
#: What a filter is called by an instrument, where that is not what the other one calls it.
FILTER_NAMES = {"gsaoi": {"Ks": "Kshort"}, "f2": {"Kshort": "Ks"}}

#: Kinds of faults: what is wrong, and what a careful observer would do about it.
FAULTS = {
    "truncated": "a download broke off: a science file ends in the middle (md5sum.txt knows)",
    "unreadable": "a web server's error message under the name of a science file: not FITS",
    "missing": "a science file that md5sum.txt lists is not there",
    "duplicate": "two science frames a second time, in raw/again: one under another name, one "
    "compressed",
    "other": "a frame of another instrument, GMOS-S, among the others",
    "acquisition": "an acquisition image (OBSCLASS acq) of a target, before its science frames",
    "noflats": "a night without flats of one instrument and filter: another night's must do",
    "lampoff": "flats of one night, instrument and filter whose lamp was off although the headers "
    "say on: all of them",
    "cloud": "a science frame through a cloud: throughput 0.05",
    "exptime": "a science frame whose header says EXPTIME -9999",
    "trail": "a satellite's trail across a science frame",
    "lonely": "a single frame of a target with twice the exposure time of the others",
    "twilight": "a twilight flat",
    "spectrum": "a long-slit spectrum of a target (FLAMINGOS-2)",
    "renamed": "a target that is spelled otherwise on the last night: position and programme are "
    "the same",
    "seeing": "on the last night images on the target are 1.6 times as wide, and the sky is "
    "twice as bright",
    "pointing": "the WCS of GSAOI's first sky frame of a night is that of the frame before; reduce "
    "stops there unless told to mend it, so this fault is not among all",
}
#: Kinds that keep a product from being made with the default parameters: only by name.
BY_NAME_ONLY = ("pointing",)


class CampaignOptions(NamedTuple):
    """Options of a simulated campaign; `CAMPAIGN_HELP` says what each means."""

    seed: int = 1
    size: int = 320
    nights: int = 2
    days_apart: int = 1
    targets: int = 1
    filters: str = "Kshort"
    instruments: str = "gsaoi,f2"
    n_science: int = 5
    n_sky: int = 3
    n_flats: int = 3
    n_darks: int = 3
    date: str = "20170505"
    faults: str = "none"
    compress: str = "some"


CAMPAIGN_HELP = {
    "seed": "the same seed gives the same bytes, but for a few last bits on another processor",
    "size": "central SIZE x SIZE pixels of each of GSAOI's arrays, twice SIZE for FLAMINGOS-2's "
    "(even, 64 to 2048)",
    "nights": "nights; all targets are observed in all filters in each of them",
    "days_apart": "days from one night to the next",
    "targets": "targets of each instrument, degrees apart, each with a programme of its own",
    "filters": "filters, with commas between them: Kshort,J (Kshort and Ks are one name)",
    "instruments": "gsaoi, f2 or both: gsaoi,f2",
    "n_science": "science frames on each target, per instrument, filter and night",
    "n_sky": "GSAOI: frames on an offset sky field, for each target, filter and night",
    "n_flats": "flats with the lamp on, and as many with it off, per instrument, filter and night "
    "(FLAMINGOS-2: lamp-off flats of J, H and Y only every second night)",
    "n_darks": "FLAMINGOS-2: darks of each exposure time, each night",
    "date": "date in the file names, YYYYMMDD, of the first night",
    "faults": "what goes wrong: none, all, or kinds with commas between them (--list-faults)",
    "compress": "which files are compressed (.fits.bz2) as in downloads from the archive",
}

CAMPAIGN = OptionTable(
    "campaign",
    CampaignOptions(),
    CAMPAIGN_HELP,
    {"compress": ("none", "some", "all")},
    {
        "seed": (0, 2**63 - 1),
        "size": (64, 2048),
        "nights": (1, 366),
        "days_apart": (1, 60),
        "targets": (1, 12),
        "n_science": (1, 500),
        "n_sky": (0, 500),
        "n_flats": (1, 100),
        "n_darks": (1, 100),
    },
)
#: From here on F2's headers name another pixel as the one that the telescope points at.
F2_NEW_POINTING = datetime(2017, 1, 1)


def campaign_options(**given: Any) -> CampaignOptions:
    """Fill in the defaults of a campaign's options, and check them.

    Raises GdaskError that names the option, the value and what was expected.
    """
    options = CampaignOptions(**checked(CAMPAIGN, given))
    if options.size == 1024:
        raise GdaskError(
            "simulate campaign: size 1024 looks like the instrument's region of interest; "
            "take 1020 or 1028"
        )
    instruments = instruments_of(options)
    for instrument in instruments:
        filters_of(options, instrument)
    fault_kinds(options)
    first = datetime.strptime(options.date, "%Y%m%d")
    last = first + timedelta(days=options.days_apart * (options.nights - 1))
    if "f2" in instruments and first < F2_NEW_POINTING <= last:
        raise GdaskError(
            f"simulate campaign: nights from {first:%Y%m%d} to {last:%Y%m%d}, expected all before "
            "or all from 20170101, when FLAMINGOS-2's pointing moved on its array"
        )
    return options


def instruments_of(options: CampaignOptions) -> tuple[str, ...]:
    """The instruments of a campaign, as they were given."""
    return _names("instruments", options.instruments, list(INSTRUMENTS))


def filters_of(options: CampaignOptions, instrument: str) -> tuple[str, ...]:
    """The filters of a campaign, by the names that an instrument gives them."""
    other = FILTER_NAMES[instrument]
    known = [str(name) for name in INSTRUMENTS[instrument].choices["filter"]]
    names = ",".join(other.get(name.strip(), name) for name in options.filters.split(","))
    return _names(f"filters of {instrument}", names, known)


def fault_kinds(options: CampaignOptions) -> tuple[str, ...]:
    """The kinds of faults that were asked for; all of them but those BY_NAME_ONLY."""
    if options.faults in ("all", "none"):
        every = tuple(kind for kind in FAULTS if kind not in BY_NAME_ONLY)
        return every if options.faults == "all" else ()
    return _names("faults", options.faults, list(FAULTS))


def _names(option: str, text: str, known: list[str]) -> tuple[str, ...]:
    """Names with commas between them, each once; GdaskError for one that is not known."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise GdaskError(
                f"simulate campaign: {option}: {name!r}, expected one or more of "
                f"{','.join(known)}{hint}"
            )
    return names
