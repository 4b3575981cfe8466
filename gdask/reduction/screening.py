"""Which files of a list a recipe takes, and why not the others: from headers alone, before any pixel is read.

A recipe module says what it is for: TAGS that every file has, NOT_FOR those that none has; ALSO and ONLY, by recipe, tags
of other files that the recipe takes as well (darks beside flats) and tags that it needs (frames that another recipe made).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from gdask import params
from gdask.instruments import descriptor, instrument_of, step_defaults, tags
from gdask.io.catalog import read_catalog
from gdask.io.frames import array_headers, primary_header
from gdask.io.read import open_frame
from gdask.model import BadPixels, GdaskError, UsageError
from gdask.reduction.recipe_library import Recipe, libraries, steps_in
from gdask.steps.sky_frames import check_one_target, same_set_up, separation, set_up
from gdask.types import Frame, Frames

#: Recipes begin with raw frames, unless ALSO or ONLY names these.
_NOT_RAW = {
    "PROCESSED": "it is a finished product",
    "PREPARED": "it is no raw frame, and would be calibrated twice",
}
#: What has to be known of every frame, and the keywords that say it.
_NEEDED = {"exposure_time": "EXPTIME", "ut_datetime": "DATE-OBS, UT", "ut_time": "UT, TIME-OBS"}
_NEEDED_OF_IMAGES = _NEEDED | {"filter_name": "FILTER1, FILTER2"}
_NEEDED_OF_SKY = {
    "target_ra": "RA",
    "target_dec": "DEC",
    "wcs_ra": "CRVAL, CRPIX, CD or CTYPE",
    "wcs_dec": "CRVAL, CRPIX, CD or CTYPE",
}


#: Tags that say nothing of what a file is good for.
_NO_KIND = {
    "GEMINI",
    "NORTH",
    "SOUTH",
    "SIDEREAL",
    "NON_SIDEREAL",
    "AZEL_TARGET",
    "RAW",
    "UNPREPARED",
}


#: Parameters that name a file, and what opens it.
_FILES: dict[tuple[str, str], Callable[[str], object]] = {
    ("add_dq", "user_bpm"): open_frame,
    ("add_reference_catalog", "source"): read_catalog,
}


class SetAside(NamedTuple):
    """A frame that was left out, at which step, and why."""

    name: str
    step: str
    reason: str


class Screened(NamedTuple):
    """The frames that a recipe can work on, and those that it cannot."""

    frames: Frames
    set_aside: tuple[SetAside, ...]


def open_all(paths: Iterable[str]) -> Screened:
    """The Frames of files, headers read; files that are not whole FITS files are set aside, and copies of others."""
    frames: list[Frame] = []
    left: list[SetAside] = []
    seen: dict[Hashable, str] = {}
    for path in paths:
        try:
            if os.path.isdir(path):
                raise GdaskError("is a folder, a FITS file was expected")
            frame = open_frame(path)
        except GdaskError as error:
            left.append(SetAside(os.path.basename(path), "open", _without_path(str(error), path)))
            continue
        same = seen.get(frame.attrs["name"]) or seen.get(_content(frame))
        if same:
            left.append(
                SetAside(
                    os.path.basename(path),
                    "open",
                    f"the same exposure as {same}, which is in the list too",
                )
            )
            continue
        seen |= {frame.attrs["name"]: path, _content(frame): path}
        frames.append(frame)
    return Screened(tuple(frames), tuple(left))


def screen(frames: Frames, recipe: Recipe, module: ModuleType) -> Screened:
    """Sort out what the recipe is not for, what its headers do not describe, and what differs from most of the others.

    `module` is where the recipe was found. Raises GdaskError where it is not for the first frame, which chose it.
    """
    wrong = _misfit(frames[0], frames[0], recipe, module)
    if wrong:
        raise GdaskError(f"{frames[0].attrs['path']}: {wrong}")
    kept, left = sift(frames, lambda frame: _misfit(frame, frames[0], recipe, module), "tags")
    for check in (lambda _: _missing, _unlike):
        kept, more = sift(kept, check(kept), "headers")
        left += more
    return Screened(kept, left)


def sift(
    frames: Frames, reason_of: Callable[[Frame], str], step: str
) -> tuple[Frames, tuple[SetAside, ...]]:
    reasons = [reason_of(frame) for frame in frames]
    left = tuple(
        SetAside(f.attrs["name"], step, why) for f, why in zip(frames, reasons, strict=True) if why
    )
    return tuple(f for f, why in zip(frames, reasons, strict=True) if not why), left


def _misfit(frame: Frame, first: Frame, recipe: Recipe, module: ModuleType) -> str:
    """Why the recipe is not for this frame; '' if it is."""
    try:
        mine, instrument = tags(frame), instrument_of(frame).name
    except GdaskError as error:
        return _without_path(str(error), frame.attrs["path"])
    wanted = instrument_of(first).name
    if instrument != wanted:
        return f"it is of {instrument}, the first file is of {wanted}; reduce it apart"
    if not hasattr(module, "TAGS"):
        return ""  # a file of the user's that does not say
    also = getattr(module, "ALSO", {}).get(recipe.__name__, set())
    only = getattr(module, "ONLY", {}).get(recipe.__name__, set())
    has = f"this one is {_words(mine - _NO_KIND)}"
    stage = next((why for tag, why in _NOT_RAW.items() if tag in mine - also - only), "")
    if stage:
        return f"{recipe.__name__} is not for it: {stage} ({has})"
    if not only <= mine:
        return f"{recipe.__name__} takes files tagged {_words(only)}, {has}"
    fits = mine & also - set(_NOT_RAW) or _is_of(module, mine)
    return "" if fits else f"{recipe.__name__} is for {_words(module.TAGS)}, {has}"


def _is_of(module: ModuleType, mine: set[str]) -> bool:
    """Whether a module's recipes are for files with these tags, and no other's more so: a flat is an image, but no target."""
    refused: set[str] = getattr(module, "NOT_FOR", set()) & mine
    return bool(
        module.TAGS <= mine
        and not refused
        and not any(module.TAGS < other.TAGS <= mine for other in libraries())
    )


def _missing(frame: Frame) -> str:
    """What the headers of a frame do not say and a reduction has to know; '' if they say everything."""
    mine = tags(frame)
    needed = _NEEDED if "DARK" in mine else _NEEDED_OF_IMAGES
    needed = needed if "CAL" in mine else needed | _NEEDED_OF_SKY
    for name, keywords in needed.items():
        if _value(frame, name) is None:
            return f"no {name.replace('_', ' ')} from its headers ({keywords} missing or not valid); repair them and run again"
    return ""


def _value(frame: Frame, name: str) -> object:
    try:
        return descriptor(frame, name)
    except (TypeError, ValueError, KeyError, IndexError):  # a keyword with a value of another type
        return None


def _unlike(frames: Frames) -> Callable[[Frame], str]:
    """Compare each frame with most of the others of its kind: number and size of arrays, filter; darks also exposure."""
    usual = {}
    lamps = [frame for frame in frames if "DARK" not in tags(frame)]
    alone = not lamps
    for frame in frames:
        kind = _kind(frame)
        if kind not in usual:
            group = [other for other in frames if _kind(other) == kind]
            usual[kind] = {
                what: _most(_property(other, what, alone) for other in group)
                for what in _PROPERTIES
            }

    def reason(frame: Frame) -> str:
        for what in _PROPERTIES:
            mine, theirs = _property(frame, what, alone), usual[_kind(frame)][what]
            if mine != theirs:
                return f"{what} {mine}, the others have {theirs}; reduce it apart"
        return ""

    return reason


_PROPERTIES = ("number of arrays", "size of arrays", "filter", "exposure")


def _property(frame: Frame, what: str, darks_alone: bool) -> Hashable:
    if what == "number of arrays":
        return frame.sizes["detector"]
    if what == "size of arrays":
        return f"{frame.sizes['x']} x {frame.sizes['y']}"
    if what == "filter":
        return None if "DARK" in tags(frame) else descriptor(frame, "filter_name", pretty=True)
    if "DARK" not in tags(frame) or not darks_alone:
        return None
    return f"{_round(descriptor(frame, 'exposure_time'))} s x {descriptor(frame, 'coadds')}, read mode {descriptor(frame, 'read_mode')}"


def _round(seconds: float) -> str:
    return f"{round(seconds, 1):g}"  # headers round: 60.001 and 60.002 s are one exposure time


def _kind(frame: Frame) -> str:
    return "DARK" if "DARK" in tags(frame) else "other"


def _most(values: Iterable[Hashable]) -> Hashable:
    """The most frequent value, of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def _content(frame: Frame) -> Hashable:
    """A digest of all headers of a frame but its name's: no two exposures have the same."""
    found = hashlib.sha256()
    for number, header in enumerate((primary_header(frame), *array_headers(frame))):
        cards = [
            text
            for keyword, text in header.texts
            if number or keyword not in ("FILENAME", "ORIGNAME", "CHECKSUM", "DATASUM")
        ]
        found.update("\n".join([*cards, "END\n"]).encode())
    return found.digest()


def _without_path(text: str, path: str) -> str:
    for start in (f"{path}: ", f"{os.path.abspath(path)}: "):
        text = text.removeprefix(start)
    return text


def _words(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


def check_files_given(settings: Mapping[str, object], recipe_steps: Iterable[str]) -> None:
    """Open what parameters name, before any work: a mask or a catalogue that cannot be read would stop a late phase.

    Raises UsageError where there is no such file, GdaskError where it is not what it should be.
    """
    for (step, name), opens in _FILES.items():
        path = settings.get(f"{step}:{name}", settings.get(name))
        if step in recipe_steps and path is not None and str(path) not in ("None", "none", ""):
            if not os.path.exists(str(path)):
                raise UsageError(f"-p {step}:{name}={path}: no such file; check name and folder")
            opens(str(path))


def without_bad(frames: Frames, error: BadPixels) -> Screened:
    """The frames without those whose pixels are bad, and without others whose files have changed since they were opened."""
    reasons = dict(error.reasons)
    for frame in frames:
        if _differs(frame.attrs["path"], identity_of(frame)):
            reasons.setdefault(
                frame.attrs["path"],
                "changed or vanished during the run; run again with the file at rest",
            )
    return Screened(*sift(frames, lambda frame: reasons.get(frame.attrs["path"], ""), "pixels"))


def identity_of(frame: Frame) -> tuple[int, int]:
    """Size (bytes) and modification time (ns) of a Frame's file when its headers were read."""
    size, modified = frame.attrs["file_identity"]
    return int(size), int(modified)


def _differs(path: str, identity: tuple[int, int]) -> bool:
    try:
        stat = os.stat(path)
        with open(path, "rb"):
            return (stat.st_size, stat.st_mtime_ns) != identity
    except OSError:
        return True


Layers = Sequence[tuple[str, Mapping[str, object]]]


def field_of_one_target(frame: Frame, recipe: Recipe, layers: Layers) -> float | None:
    """Arcsec within which targets are one, where the recipe sorts targets from skies and the user has not said which."""
    steps = steps_in(recipe)
    if "separate_sky" not in steps:
        return None
    settings = params.resolve(steps["separate_sky"], layers, {})
    if settings["ref_obj"].value or settings["ref_sky"].value:
        return None
    return float(settings["frac_FOV"].value) * float(instrument_of(frame).facts["field_of_view"])  # type: ignore[arg-type]


def one_target(frames: Frames, apart: float) -> Screened:
    """Guided frames whose target is more than `apart` arcsec from that of most of them are set aside.

    Raises GdaskError where no target has more than half of the guided frames.
    """
    where = {
        f.attrs["name"]: _target(f) for f in frames if descriptor(f, "wavefront_sensor") is not None
    }
    near = {
        name: sum(separation(here, other) <= apart for other in where.values())
        for name, here in where.items()
    }
    main = max(near, key=near.__getitem__, default="")
    if main and 2 * near[main] <= len(near):
        check_one_target(frames, apart)

    def reason(frame: Frame) -> str:
        distance = (
            separation(where[main], where[frame.attrs["name"]])
            if frame.attrs["name"] in where
            else 0.0
        )
        return (
            ""
            if distance <= apart
            else (
                f"its target ({descriptor(frame, 'object')}) is {distance / 60:.1f} arcmin from that of the others; reduce it apart"
            )
        )

    return Screened(*sift(frames, reason, "targets"))


def _target(frame: Frame) -> tuple[float, float]:
    return float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))


def with_skies(frames: Frames, recipe: Recipe, module: ModuleType, layers: Layers) -> Screened:
    """Frames on target for which associate_sky will find no sky frame are set aside, and sky frames that serve none.

    The steps themselves decide, which take nothing but headers. For recipes of the user's, which may set other
    parameters, nothing is foreseen: there the steps say it when their turn comes.
    """
    steps = steps_in(recipe)
    if not {"separate_sky", "associate_sky"} <= set(steps) or not module.__name__.startswith(
        "gdask.recipes."
    ):
        return Screened(frames, ())

    def call(name: str, *given: object) -> object:
        facts = step_defaults(instrument_of(frames[0]), name)
        settings = params.resolve(steps[name], [("instrument", facts), *layers], {})
        if settings["skip_primitive"].value:
            raise GdaskError(f"{name} is left out")
        return steps[name](*given, **params.own_values(steps[name], settings))

    try:
        prepared = call("prepare", frames) if "prepare" in steps else frames
        targets, skies = call("separate_sky", prepared)  # type: ignore[misc]
        associated: Frames = call("associate_sky", targets, skies)  # type: ignore[assignment]
    except (
        GdaskError
    ):  # the run stops at this step, or goes on without it, and says so when it comes to it
        return Screened(frames, ())
    lonely = {frame.attrs["name"]: frame.attrs.get("set_aside", "") for frame in associated}
    served = [frame for frame in targets if not lonely[frame.attrs["name"]]]
    wanted = [set_up(frame) for frame in served or targets]
    idle = {
        sky.attrs[
            "name"
        ]: "it is on sky, and no frame on target has its filter, exposure time and read mode"
        for sky in skies
        if sky.attrs["name"] not in lonely
        and not any(same_set_up(mine, one) for mine in [set_up(sky)] for one in wanted)
    }
    return Screened(
        *sift(
            frames,
            lambda frame: lonely.get(frame.attrs["name"], "") or idle.get(frame.attrs["name"], ""),
            "skies",
        )
    )
