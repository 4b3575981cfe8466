"""When light was collected, and for how long: descriptors of raw frames, of stacks, of all between.

A stack carries the answers in its primary header (TOTEXP, MJD-BEG, MJD-AVG, MJD-END); those of a
frame follow from start, exposure time and coadds.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from gdask.instruments.rules import parse_time

if TYPE_CHECKING:
    from gdask.instruments.view import Descriptor, View

MJD_0 = dt.datetime(1858, 11, 17)
#: By how much UTEND may be later than start and exposure time say, as a share of the exposure and
#: in seconds: reads of several coadds, set-up. Beyond it is not this exposure's (old F2 headers
#: give the end of the one before).
_LONGER, _READS = 0.5, 120.0


def total_exposure_time(view: View) -> float | None:
    """Seconds of light in all: of all coadds, and of all inputs of a stack.

    `exposure_time` is that of the pixel values: of one coadd where coadds are averaged.
    """
    total = view.number("TOTEXP")
    if total is not None and total > 0:
        return float(total)
    seconds = view("exposure_time")
    if seconds is None:
        return None
    return float(seconds) * (1 if view("is_coadds_summed") else view("coadds"))


def ut_middle(view: View) -> dt.datetime | None:
    """Middle of the exposure, UT; of a stack, the mean of its inputs by exposure time."""
    start, seconds = view("ut_datetime"), total_exposure_time(view)
    if (kept := _from_mjd(view, "MJD-AVG")) is not None:
        return kept
    if start is None or seconds is None:
        return None
    return start + dt.timedelta(seconds=seconds / 2)


def ut_end(view: View) -> dt.datetime | None:
    """End of the exposure, UT; of a stack, the end of its last input.

    It is UTEND where that can be this exposure's, else start and exposure time.
    """
    start, seconds = view("ut_datetime"), total_exposure_time(view)
    if (kept := _from_mjd(view, "MJD-END")) is not None:
        return kept
    if start is None or seconds is None:
        return None
    clock = parse_time(view.text("UTEND"))
    if clock is not None:
        end = dt.datetime.combine(start.date(), clock)
        end += dt.timedelta(days=1) if end < start else dt.timedelta(0)
        if seconds <= (end - start).total_seconds() <= seconds * (1 + _LONGER) + _READS:
            return end
    return start + dt.timedelta(seconds=seconds)


def mjd_of(name: str) -> Descriptor:
    """Descriptor: the time that another descriptor gives, as MJD (days, UTC)."""

    def value_of(view: View) -> float | None:
        when = view(name)
        return None if when is None else (when - MJD_0) / dt.timedelta(days=1)

    return value_of


def _from_mjd(view: View, keyword: str) -> dt.datetime | None:
    mjd = view.number(keyword)
    return MJD_0 + dt.timedelta(days=mjd) if mjd is not None and 1 < mjd < 2e5 else None


DESCRIPTORS: dict[str, Descriptor] = {
    "mjd_start": mjd_of("ut_datetime"),
    "mjd_middle": mjd_of("ut_middle"),
    "mjd_end": mjd_of("ut_end"),
    "total_exposure_time": total_exposure_time,
    "ut_middle": ut_middle,
    "ut_end": ut_end,
}
