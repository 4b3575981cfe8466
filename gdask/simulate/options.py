"""Options of simulated nights: names, defaults, meaning, limits.

The command line imports this module, so it must load nothing heavy.
"""

from __future__ import annotations

import difflib
from datetime import datetime
from typing import Any, NamedTuple

from gdask.model import GdaskError


class GsaoiOptions(NamedTuple):
    """Options of a simulated GSAOI night; `GSAOI_HELP` says what each means."""

    seed: int = 1
    size: int = 2048
    roi: int = -1
    n_science: int = 9
    n_sky: int = 7
    n_flats: int = 15
    n_std: int = 4
    std_offset: float = 0.0
    n_darks: int = 0
    nights: int = 1
    date: str = "20170505"
    filter: str = "Kshort"
    exptime: float = 60.0
    lnrs: int = 8
    coadds: int = 1
    pa: float = 0.0
    group_offset: float = 0.0
    group_pa: float = 0.0
    field: str = "crowded"
    sky: float = -1.0
    sky_gradient: float = 0.0
    sky_pattern: float = 0.0
    row_noise: float = 0.0
    seeing_drift: float = 0.0
    pointing: float = 0.05
    warp: float = 0.01
    transparency: float = 0.01
    bad_wcs: int = 3
    cr_rate: float = 0.5
    afterglow: float = 0.01
    no_bpm: bool = False
    object_mag: float = 0.0
    object_east: float = 0.0
    object_north: float = 0.0
    track: str = "object"


class F2Options(NamedTuple):
    """Options of a simulated FLAMINGOS-2 night; `F2_HELP` says what each means."""

    seed: int = 1
    size: int = 2048
    n_science: int = 9
    n_sky: int = -1
    n_darks: int = 10
    n_short_darks: int = 7
    n_lamps: int = 4
    date: str = "20131121"
    filter: str = "Y"
    exptime: float = -1.0
    lnrs: int = 1
    coadds: int = 1
    dither: str = "on-target"
    pa: float = 0.0
    group_offset: float = 0.0
    group_pa: float = 0.0
    field: str = "sparse"
    sky: float = -1.0
    seeing: float = 0.6
    sky_gradient: float = 0.0
    sky_pattern: float = 0.0
    row_noise: float = 0.0
    seeing_drift: float = 0.0
    pointing: float = 0.25
    distortion: float = 0.0
    axes: str = "cd"
    transparency: float = 0.01
    probe: str = "edge"
    bad_wcs: int = 0
    cr_rate: float = 0.4
    object_mag: float = 0.0
    object_east: float = 0.0
    object_north: float = 0.0
    track: str = "object"


GSAOI_HELP = {
    "seed": "the same seed gives the same bytes, but for a few last bits on another processor",
    "size": "central SIZE x SIZE pixels of each array (even, 64 to 2048)",
    "roi": (
        "region of interest of the standard's frames, pixels; -1: half of the size, at most "
        "1024; 0: none"
    ),
    "n_science": "science frames on the target, each night",
    "n_sky": "science frames on the offset sky field, unguided, each night",
    "n_flats": "dome flats: so many with the lamp on and as many with it off",
    "n_std": "frames of the standard star 9132",
    "std_offset": "the standard is so far from the middles of the arrays, arcsec",
    "n_darks": "dark frames",
    "nights": "consecutive nights, each with its own calibrations",
    "date": "date in the file names, YYYYMMDD, of the first night",
    "filter": "filter",
    "exptime": "exposure time of a coadd of science frames, s",
    "lnrs": "non-destructive reads of science frames: 2, 8 or 16",
    "coadds": "coadds of science frames (GSAOI averages them)",
    "pa": "position angle, degrees East of North",
    "group_offset": "every second frame on the target is so much further in p, arcsec",
    "group_pa": "every second frame on the target is turned by so much, degrees",
    "field": "what is at the target",
    "sky": "sky, e-/s in a mean pixel; negative: usual for the filter",
    "sky_gradient": (
        "slopes of the sky from the middle of the field to its edge, as a fraction of its level,"
        " rms: they drift from frame to frame and differ on and off target"
    ),
    "sky_pattern": "height of a ring in the sky, as of the pupil, as a fraction of the sky's level",
    "row_noise": "noise of rows with a spectrum of 1/f, e- rms",
    "seeing_drift": "by how much the seeing grows in an hour, as a fraction",
    "pointing": "pointing error of guided frames, arcsec rms; five times that unguided",
    "warp": "distortion of each frame beyond the static one, arcsec rms over the field",
    "transparency": "how the frames' throughput differs, as a fraction, rms",
    "bad_wcs": "science frames whose CRVAL was not updated after an offset, each night",
    "cr_rate": "cosmic rays per second on a full array",
    "afterglow": (
        "charge that a saturated pixel holds back for later frames, as a fraction of the well"
    ),
    "no_bpm": "do not write the bad-pixel mask",
    "object_mag": "magnitude of an object that moves among the stars; 0: none",
    "object_east": "its motion to the East, arcsec per hour",
    "object_north": "its motion to the North, arcsec per hour",
    "track": "what the telescope follows: the object, so that stars trail, or the stars",
}

F2_HELP = GSAOI_HELP | {
    "size": (
        "central SIZE x SIZE pixels of the array (even, 64 to 2048); real frames are always whole"
    ),
    "n_science": "science frames on the target",
    "n_sky": (
        "science frames on the offset sky field, with --dither offset; negative: as many as "
        "on the target"
    ),
    "n_darks": "dark frames with the exposure time of science frames",
    "n_short_darks": "dark frames of 2 s",
    "n_lamps": (
        "GCAL flats with the lamp on, and half as many again with its shutter closed; in K "
        "bands these alone, and as many darks of their exposure time"
    ),
    "date": "date in the names of science frames, YYYYMMDD; the calibrations' dates lie about it",
    "exptime": "exposure time of a coadd of science frames, s; 0 or negative: usual for the filter",
    "lnrs": "non-destructive read pairs of science frames and their darks",
    "coadds": "coadds of science frames and their darks (FLAMINGOS-2 sums them)",
    "dither": (
        "where the sky is measured: on the target's own frames, or on a field seven arcmin away"
    ),
    "seeing": "full width at half maximum of a star, arcsec",
    "pointing": "pointing error of guided frames, arcsec rms",
    "distortion": (
        "radial distortion: by how much the scale 3 arcmin from the centre differs, as a fraction"
    ),
    "axes": (
        "true scale and axes of the array: as the CD matrix of its headers says (cd), or square "
        "and along PA (pa)"
    ),
    "probe": (
        "shadow of the guide probe: none, one that enters at the edge in some dithers, or one "
        "deep in the field"
    ),
    "bad_wcs": "science frames whose CRVAL was not updated after an offset",
}

GSAOI_CHOICES: dict[str, tuple[object, ...]] = {
    "filter": ("Z", "J", "H", "Kprime", "Kshort", "K"),
    "lnrs": (2, 8, 16),
    "field": ("crowded", "sparse", "extended"),
    "track": ("object", "stars"),
}

F2_CHOICES: dict[str, tuple[object, ...]] = {
    "filter": ("Y", "J", "H", "Ks"),
    "lnrs": (1, 4, 6, 8),
    "dither": ("on-target", "offset"),
    "field": ("sparse", "crowded", "extended"),
    "axes": ("cd", "pa"),
    "probe": ("edge", "none", "deep"),
    "track": ("object", "stars"),
}

#: Least and largest value.
GSAOI_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "size": (64, 2048),
    "roi": (-1, 2046),
    "n_science": (0, 5000),
    "n_sky": (0, 5000),
    "n_flats": (0, 1000),
    "n_std": (0, 1000),
    "std_offset": (0.0, 20.0),
    "n_darks": (0, 1000),
    "nights": (1, 366),
    "exptime": (1.0, 3600.0),
    "coadds": (1, 1000),
    "pa": (-360.0, 360.0),
    "group_offset": (-3600.0, 3600.0),
    "group_pa": (-360.0, 360.0),
    "sky": (-1.0, 1e4),
    "sky_gradient": (0.0, 1.0),
    "sky_pattern": (0.0, 1.0),
    "row_noise": (0.0, 1e4),
    "seeing_drift": (-1.0, 10.0),
    "pointing": (0.0, 60.0),
    "warp": (0.0, 1.0),
    "transparency": (0.0, 0.3),
    "bad_wcs": (0, 5000),
    "cr_rate": (0.0, 1e4),
    "afterglow": (0.0, 1.0),
    "object_mag": (0.0, 30.0),
    "object_east": (-3600.0, 3600.0),
    "object_north": (-3600.0, 3600.0),
}

F2_LIMITS = GSAOI_LIMITS | {
    "n_sky": (-1, 5000),
    "n_short_darks": (0, 1000),
    "n_lamps": (0, 1000),
    "exptime": (-1.0, 3600.0),
    "seeing": (0.3, 3.0),
    "distortion": (-0.05, 0.05),
}


class OptionTable(NamedTuple):
    """The options of a simulation."""

    name: str  # of the instrument, or campaign
    defaults: NamedTuple
    help: dict[str, str]
    choices: dict[str, tuple[object, ...]]
    limits: dict[str, tuple[float, float]]


GSAOI = OptionTable("gsaoi", GsaoiOptions(), GSAOI_HELP, GSAOI_CHOICES, GSAOI_LIMITS)
F2 = OptionTable("f2", F2Options(), F2_HELP, F2_CHOICES, F2_LIMITS)


def gsaoi_options(**given: Any) -> GsaoiOptions:
    """Fill in the defaults of GSAOI options, and check them.

    Raises GdaskError that names the option, the value and the limits.
    """
    options = GsaoiOptions(**checked(GSAOI, given))
    if options.roi > 0 and options.roi % 2:
        raise GdaskError(f"simulate gsaoi: roi is {options.roi}, which must be even")
    if options.size == 1024:
        raise GdaskError(
            "simulate gsaoi: size 1024 looks like the instrument's region of interest; "
            "take 1020 or 1028"
        )
    if options.roi >= options.size:
        raise GdaskError(
            f"simulate gsaoi: roi is {options.roi}, expected less than the size, {options.size}"
        )
    roi = min(1024, options.size // 4 * 2) if options.roi < 0 else options.roi
    return options._replace(roi=roi)


def f2_options(**given: Any) -> F2Options:
    """Fill in the defaults of FLAMINGOS-2 options, and check them.

    Raises GdaskError that names the option, the value and the limits.
    """
    options = F2Options(**checked(F2, given))
    if options.dither == "on-target" and options.n_sky > 0:
        raise GdaskError(
            f"simulate f2: n_sky is {options.n_sky} with dither on-target, expected dither offset"
        )
    n_sky = options.n_science if options.n_sky < 0 else options.n_sky
    return options._replace(n_sky=n_sky if options.dither == "offset" else 0)


def checked(table: OptionTable, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a table by name, with its defaults; GdaskError where one cannot be."""
    instrument, defaults = table.name, table.defaults._asdict()
    for name in given:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise GdaskError(f"simulate {instrument}: no option {name!r}{hint}")
    options = defaults | given
    for name, value in options.items():
        _check_value(table, name, value)
    date, size = options["date"], options["size"]
    try:
        datetime.strptime(date, "%Y%m%d")
    except ValueError:
        raise GdaskError(f"simulate {instrument}: date is {date!r}, expected YYYYMMDD") from None
    if size % 2:
        raise GdaskError(f"simulate {instrument}: size is {size}, which must be even")
    return options


def _check_value(table: OptionTable, name: str, value: Any) -> None:
    """Check the type, the choices and the limits of one option."""
    kind = type(getattr(table.defaults, name))
    complaint = f"simulate {table.name}: {name} is {value!r}, expected"
    if not isinstance(value, (int, float) if kind is float else kind):
        raise GdaskError(f"{complaint} {kind.__name__}")
    if name in table.choices and value not in table.choices[name]:
        raise GdaskError(f"{complaint} one of {', '.join(map(str, table.choices[name]))}")
    if name in table.limits:
        low, high = table.limits[name]
        if not low <= value <= high:
            raise GdaskError(f"{complaint} {low:g} to {high:g}")
