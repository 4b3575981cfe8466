"""What a simulated night can be asked for: names, defaults, meaning, limits. Light: the command line imports it."""

from __future__ import annotations

import difflib
from datetime import datetime
from typing import NamedTuple

from gdask.model import GdaskError


class GsaoiOptions(NamedTuple):
    """A simulated GSAOI night; `HELP` says what each means."""

    seed: int = 1
    size: int = 2048
    roi: int = -1
    n_science: int = 9
    n_sky: int = 7
    n_flats: int = 15
    n_std: int = 4
    n_darks: int = 0
    nights: int = 1
    date: str = "20170505"
    filter: str = "Kshort"
    exptime: float = 60.0
    lnrs: int = 8
    coadds: int = 1
    pa: float = 0.0
    field: str = "crowded"
    sky: float = -1.0
    pointing: float = 0.05
    warp: float = 0.01
    bad_wcs: int = 3
    cr_rate: float = 0.5
    afterglow: float = 0.01
    no_bpm: bool = False


HELP = {
    "seed": "the same seed gives the same bytes",
    "size": "central SIZE x SIZE pixels of each array (even, 64 to 2048)",
    "roi": "region of interest of the standard's frames, pixels; -1: half of the size, at most 1024; 0: none",
    "n_science": "science frames on the target, each night",
    "n_sky": "science frames on the offset sky field, unguided, each night",
    "n_flats": "dome flats: so many with the lamp on and as many with it off",
    "n_std": "frames of the standard star 9132",
    "n_darks": "dark frames",
    "nights": "consecutive nights, each with its own calibrations",
    "date": "date in the file names, YYYYMMDD, of the first night",
    "filter": "filter",
    "exptime": "exposure time of a coadd of science frames, s",
    "lnrs": "non-destructive reads of science frames: 2, 8 or 16",
    "coadds": "coadds of science frames (GSAOI averages them)",
    "pa": "position angle, degrees East of North",
    "field": "what is at the target",
    "sky": "sky, e-/s in a mean pixel; negative: usual for the filter",
    "pointing": "pointing error of guided frames, arcsec rms; five times that unguided",
    "warp": "distortion of each frame beyond the static one, arcsec rms over the field",
    "bad_wcs": "science frames whose CRVAL was not updated after an offset, each night",
    "cr_rate": "cosmic rays per second on a full array",
    "afterglow": "charge that a saturated pixel holds back for later frames, as a fraction of the well",
    "no_bpm": "do not write the bad-pixel mask",
}

CHOICES: dict[str, tuple[object, ...]] = {
    "filter": ("Z", "J", "H", "Kprime", "Kshort", "K"),
    "lnrs": (2, 8, 16),
    "field": ("crowded", "sparse", "extended"),
}

LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1), "size": (64, 2048), "roi": (-1, 2046), "n_science": (0, 5000), "n_sky": (0, 5000),
    "n_flats": (0, 1000), "n_std": (0, 1000), "n_darks": (0, 1000), "nights": (1, 366), "exptime": (1.0, 3600.0),
    "coadds": (1, 1000), "pa": (-360.0, 360.0), "sky": (-1.0, 1e4), "pointing": (0.0, 60.0), "warp": (0.0, 1.0),
    "bad_wcs": (0, 5000), "cr_rate": (0.0, 1e4), "afterglow": (0.0, 1.0),
}


def gsaoi_options(**given: object) -> GsaoiOptions:
    """Options with defaults filled in, checked. Raises GdaskError that names the option, the value and the limits."""
    for name in given:
        if name not in GsaoiOptions._fields:
            near = difflib.get_close_matches(name, GsaoiOptions._fields, 1)
            raise GdaskError(f"simulate gsaoi: no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    options = GsaoiOptions(**given)  # type: ignore[arg-type]
    for name, value in options._asdict().items():
        _check(name, value)
    return _checked_together(options)


def _check(name: str, value: object) -> None:
    kind = type(getattr(GsaoiOptions(), name))
    fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not fits:
        raise GdaskError(f"simulate gsaoi: {name} is {value!r}, expected {kind.__name__}")
    if name in CHOICES and value not in CHOICES[name]:
        raise GdaskError(f"simulate gsaoi: {name} is {value!r}, expected one of {', '.join(map(str, CHOICES[name]))}")
    low, high = LIMITS.get(name, (None, None))
    if low is not None and not low <= value <= high:    # type: ignore[operator]
        raise GdaskError(f"simulate gsaoi: {name} is {value!r}, expected {low:g} to {high:g}")


def _checked_together(options: GsaoiOptions) -> GsaoiOptions:
    try:
        datetime.strptime(options.date, "%Y%m%d")
    except ValueError:
        raise GdaskError(f"simulate gsaoi: date is {options.date!r}, expected YYYYMMDD") from None
    if options.size % 2 or (options.roi > 0 and options.roi % 2):
        raise GdaskError(f"simulate gsaoi: size {options.size} and roi {options.roi} must be even")
    if options.roi >= options.size:
        raise GdaskError(f"simulate gsaoi: roi is {options.roi}, expected less than the size, {options.size}")
    return options._replace(roi=min(1024, options.size // 4 * 2) if options.roi < 0 else options.roi)
