"""Screening: which files of a list a recipe takes, and why it does not take the others.

All but the last is decided from headers alone, before any pixel is read. A recipe module says what
it is for: TAGS that every file has, NOT_FOR those that none has; ALSO and ONLY, by recipe, tags of
other files that the recipe takes as well (darks beside flats) and tags that it needs (frames that
another recipe made).

In the order of a reduction: `open_all` files; `check_files_given` as parameters; `screen` by tags
and headers; `one_target` for all frames; `with_skies` for each target; and, where pixels turned out
to be bad, `without_bad`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from gdask import params
from gdask.instruments import descriptor, instrument_of, step_defaults, tags
from gdask.instruments.view import number_problem
from gdask.io.catalog import read_catalog
from gdask.io.frames import array_headers, primary_header, with_attrs
from gdask.io.read import open_frame
from gdask.model import BadPixels, GdaskError, UsageError
from gdask.reduction.recipe_library import Recipe, libraries, steps_in
from gdask.steps.frames import section_problem
from gdask.steps.sky_frames import (
    check_one_target,
    find_named,
    same_set_up,
    separation,
    set_up,
)
from gdask.types import Frame, Frames

#: Why a recipe, which begins with raw frames, does not take files with these tags, unless ALSO or
#: ONLY names them.
_NOT_RAW = {
    "PROCESSED": "it is a finished product",
    "PREPARED": "it is no raw frame, and would be calibrated twice",
}
#: Descriptors that have to be known of every frame, and the keywords that they come from.
_NEEDED = {"exposure_time": "EXPTIME", "ut_datetime": "DATE-OBS, UT", "ut_time": "UT, TIME-OBS"}
_NEEDED_OF_IMAGES = _NEEDED | {"filter_name": "FILTER1, FILTER2"}
_NEEDED_OF_SKY = {
    "target_ra": "RA",
    "target_dec": "DEC",
    "wcs_ra": "CRVAL, CRPIX, CD or CTYPE",
    "wcs_dec": "CRVAL, CRPIX, CD or CTYPE",
}
#: Tags that do not tell what a file is good for.
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
#: What frames of one kind are compared by, in this order.
_PROPERTIES = ("number of arrays", "size of arrays", "filter", "exposure")
#: Parameters (step, name) that name a file, and the function that opens it.
_FILE_PARAMETERS: dict[tuple[str, str], Callable[[str], object]] = {
    ("add_dq", "user_bpm"): open_frame,
    ("add_reference_catalog", "source"): read_catalog,
}

#: Layers of parameters from low to high: (name, settings).
Layers = Sequence[tuple[str, Mapping[str, object]]]


class SetAside(NamedTuple):
    """A frame that was left out, at which step, and why."""

    name: str
    step: str
    reason: str


class Screened(NamedTuple):
    """The frames that a recipe can work on, and those that it cannot."""

    frames: Frames
    set_aside: tuple[SetAside, ...]


def _sift(
    frames: Frames, reason_of: Callable[[Frame], str], step: str
) -> tuple[Frames, tuple[SetAside, ...]]:
    """Divide frames into those without a reason to be left out, and the others with theirs."""
    reasons = [reason_of(frame) for frame in frames]
    pairs = list(zip(frames, reasons, strict=True))
    left_out = tuple(SetAside(frame.attrs["name"], step, why) for frame, why in pairs if why)
    return tuple(frame for frame, why in pairs if not why), left_out


# Opening files --------------------------------------------------------------------------------


def open_all(paths: Iterable[str]) -> Screened:
    """Open files as Frames, reading headers.

    Set aside are files that are not whole FITS files, and copies of others in the list.
    """
    frames: list[Frame] = []
    left_out: list[SetAside] = []
    seen: dict[Hashable, str] = {}
    for path in paths:
        try:
            if os.path.isdir(path):
                raise GdaskError("is a folder, a FITS file was expected")
            frame = open_frame(path)
        except GdaskError as error:
            reason = _without_path(str(error), path)
            left_out.append(SetAside(os.path.basename(path), "open", reason))
            continue
        content = _header_digest(frame)
        same = seen.get(frame.attrs["name"]) or seen.get(content)
        if same:
            reason = f"the same exposure as {same}, which is in the list too"
            left_out.append(SetAside(os.path.basename(path), "open", reason))
            continue
        seen |= {frame.attrs["name"]: path, content: path}
        frames.append(frame)
    return Screened(tuple(frames), tuple(left_out))


def _header_digest(frame: Frame) -> Hashable:
    """Give a digest of the headers of a frame but for its file name; each exposure has another."""
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
    for prefix in (f"{path}: ", f"{os.path.abspath(path)}: "):
        text = text.removeprefix(prefix)
    return text


# Files given as parameters --------------------------------------------------------------------


def check_files_given(settings: Mapping[str, object], recipe_steps: Iterable[str]) -> None:
    """Open the files that parameters name, before any work.

    A mask or a catalogue that cannot be read would stop a late phase. Raises UsageError where there
    is no such file, GdaskError where it is not what it should be.
    """
    for (step, name), open_file in _FILE_PARAMETERS.items():
        path = settings.get(f"{step}:{name}", settings.get(name))
        if step in recipe_steps and path is not None and str(path) not in ("None", "none", ""):
            if not os.path.exists(str(path)):
                raise UsageError(f"-p {step}:{name}={path}: no such file; check name and folder")
            open_file(str(path))


# Tags and headers -----------------------------------------------------------------------------


def screen(frames: Frames, recipe: Recipe, module: ModuleType) -> Screened:
    """Set aside frames that the recipe does not take, by their tags and headers.

    They are those that it is not for, that lack a needed keyword, or that differ from most of the
    others. `module` is where the recipe was found. Raises GdaskError where the recipe is not for
    the first frame, which chose it.
    """
    reason = _misfit(frames[0], frames[0], recipe, module)
    if reason:
        raise GdaskError(f"{frames[0].attrs['path']}: {reason}")
    fitting, misfits = _sift(
        frames, lambda frame: _misfit(frame, frames[0], recipe, module), "tags"
    )
    described, undescribed = _sift(fitting, _missing_keyword, "headers")
    alike, different = _sift(described, _difference_from_most(described), "headers")
    placed, misplaced = _sift(alike, section_problem, "headers")
    return Screened(placed, (*misfits, *undescribed, *different, *misplaced))


def _misfit(frame: Frame, first: Frame, recipe: Recipe, module: ModuleType) -> str:
    """Give the reason why the recipe does not take this frame; '' if it does."""
    try:
        own_tags, instrument = tags(frame), instrument_of(frame).name
    except GdaskError as error:
        return _without_path(str(error), frame.attrs["path"])
    wanted = instrument_of(first).name
    if instrument != wanted:
        return f"it is of {instrument}, the first file is of {wanted}; reduce it apart"
    if not hasattr(module, "TAGS"):
        return ""  # a file of the user's that does not say
    also = getattr(module, "ALSO", {}).get(recipe.__name__, set())
    only = getattr(module, "ONLY", {}).get(recipe.__name__, set())
    has = f"this one is {_words(own_tags - _NO_KIND)}"
    stage = next((why for tag, why in _NOT_RAW.items() if tag in own_tags - also - only), "")
    if stage:
        return f"{recipe.__name__} is not for it: {stage} ({has})"
    if not only <= own_tags:
        return f"{recipe.__name__} takes files tagged {_words(only)}, {has}"
    fits = own_tags & also - set(_NOT_RAW) or _is_for(module, own_tags)
    return "" if fits else f"{recipe.__name__} is for {_words(module.TAGS)}, {has}"


def _is_for(module: ModuleType, file_tags: set[str]) -> bool:
    """Tell whether a module's recipes are for files with these tags.

    A module whose TAGS say more of the file goes first: a flat is an image, but no target.
    """
    refused: set[str] = getattr(module, "NOT_FOR", set()) & file_tags
    return bool(
        module.TAGS <= file_tags
        and not refused
        and not any(module.TAGS < library.TAGS <= file_tags for library in libraries())
    )


def _missing_keyword(frame: Frame) -> str:
    """Name what a reduction has to know and the headers of a frame do not say; '' if nothing."""
    if problem := number_problem((primary_header(frame), *array_headers(frame))):
        return f"{problem}; repair the header and run again"
    own_tags = tags(frame)
    needed = _NEEDED if "DARK" in own_tags else _NEEDED_OF_IMAGES
    needed = needed if "CAL" in own_tags else needed | _NEEDED_OF_SKY
    for name, keywords in needed.items():
        if _value(frame, name) is None:
            return (
                f"no {name.replace('_', ' ')} from its headers ({keywords} missing or not valid); "
                "repair them and run again"
            )
    return ""


def _value(frame: Frame, name: str) -> object:
    try:
        return descriptor(frame, name)
    except (TypeError, ValueError, KeyError, IndexError):  # a keyword with a value of another type
        return None


def _difference_from_most(frames: Frames) -> Callable[[Frame], str]:
    """Give the function that says how a frame differs from most of the others of its kind.

    It compares number and size of arrays, and filter; for darks among darks also the exposure.
    """
    only_darks = all("DARK" in tags(frame) for frame in frames)
    usual = {}
    for kind in dict.fromkeys(_kind(frame) for frame in frames):
        group = [frame for frame in frames if _kind(frame) == kind]
        usual[kind] = {
            name: _most_frequent(_property(frame, name, only_darks) for frame in group)
            for name in _PROPERTIES
        }

    def difference(frame: Frame) -> str:
        for name, most in usual[_kind(frame)].items():
            value = _property(frame, name, only_darks)
            if value != most:
                return f"{name} {value}, the others have {most}; reduce it apart"
        return ""

    return difference


def _property(frame: Frame, name: str, only_darks: bool) -> Hashable:
    """Give the value of one of _PROPERTIES, in words."""
    if name == "number of arrays":
        return frame.sizes["detector"]
    if name == "size of arrays":
        return f"{frame.sizes['x']} x {frame.sizes['y']}"
    if name == "filter":
        return None if "DARK" in tags(frame) else descriptor(frame, "filter_name", pretty=True)
    if "DARK" not in tags(frame) or not only_darks:
        return None
    # Headers round: 60.001 and 60.002 s are one exposure time.
    seconds = round(descriptor(frame, "exposure_time"), 1)
    coadds, read_mode = descriptor(frame, "coadds"), descriptor(frame, "read_mode")
    return f"{seconds:g} s x {coadds}, read mode {read_mode}"


def _kind(frame: Frame) -> str:
    return "DARK" if "DARK" in tags(frame) else "other"


def _most_frequent(values: Iterable[Hashable]) -> Hashable:
    """Give the most frequent value, of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def _words(names: Iterable[str]) -> str:
    return " ".join(sorted(names))


# Targets and skies ----------------------------------------------------------------------------


def field_of_one_target(frame: Frame, recipe: Recipe, layers: Layers) -> float | None:
    """Give the arcsec within which targets count as one.

    None where the recipe does not separate targets from skies, or the user has named them.
    """
    steps = steps_in(recipe)
    if "separate_sky" not in steps:
        return None
    settings = params.resolve(steps["separate_sky"], layers, {})
    if settings["ref_obj"].value or settings["ref_sky"].value:
        return None
    fraction: Any = settings["frac_FOV"].value
    return float(fraction) * float(instrument_of(frame).facts["field_of_view"])


def with_names_listed(frames: Frames, names: Sequence[str]) -> Frames:
    """Give the Frames with the names of all files, those set aside too, for `separate_sky`."""
    listed = json.dumps(
        sorted({*map(os.path.basename, names), *(frame.attrs["name"] for frame in frames)})
    )
    return tuple(with_attrs(frame, listed=listed) for frame in frames)


def check_named_frames(frames: Frames, recipe: Recipe, layers: Layers) -> None:
    """Raise UsageError where a list of frames as a parameter has a name that fits none of them."""
    steps = steps_in(recipe)
    if "separate_sky" in steps:
        settings = params.resolve(steps["separate_sky"], layers, {})
        if not settings["skip_primitive"].value:
            find_named(frames, **{key: str(settings[key].value) for key in ("ref_obj", "ref_sky")})
    if "associate_sky" in steps:
        settings = params.resolve(steps["associate_sky"], layers, {})
        find_named(frames, exclude=str(settings["exclude"].value))


def one_target(frames: Frames, apart: float) -> Screened:
    """Set aside guided frames whose target is over `apart` arcsec from that of most of them.

    Raises GdaskError where no target has more than half of the guided frames.
    """
    targets = {
        frame.attrs["name"]: _target(frame)
        for frame in frames
        if descriptor(frame, "wavefront_sensor") is not None
    }
    counts = Counter(targets.values())  # most frames have the same target, to the digit
    near = {
        target: sum(n for other, n in counts.items() if separation(target, other) <= apart)
        for target in counts
    }
    neighbors = {name: near[target] for name, target in targets.items()}
    main = max(neighbors, key=neighbors.__getitem__, default="")
    if main and 2 * neighbors[main] <= len(neighbors):
        check_one_target(frames, apart)

    def reason(frame: Frame) -> str:
        if frame.attrs["name"] not in targets:
            return ""
        distance = separation(targets[main], targets[frame.attrs["name"]])
        if distance <= apart:
            return ""
        return (
            f"its target ({descriptor(frame, 'object')}) is {distance / 60:.1f} arcmin from that "
            "of the others; reduce it apart"
        )

    kept, left_out = _sift(frames, reason, "targets")
    return Screened(kept, left_out)


def _target(frame: Frame) -> tuple[float, float]:
    """Give RA and Dec (degrees) of a frame's target."""
    return float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))


def with_skies(frames: Frames, recipe: Recipe, module: ModuleType, layers: Layers) -> Screened:
    """Set aside targets for which associate_sky will find no sky frame, and skies that serve none.

    The steps themselves decide, which take nothing but headers. For recipes of the user's, which
    may set other parameters, nothing is foreseen: there the steps say it when their turn comes.
    """
    recipe_steps = steps_in(recipe)
    is_shipped = module.__name__.startswith("gdask.recipes.")
    if not {"separate_sky", "associate_sky"} <= set(recipe_steps) or not is_shipped:
        return Screened(frames, ())

    def call(name: str, *given: object) -> Any:
        step, facts = recipe_steps[name], step_defaults(instrument_of(frames[0]), name)
        settings = params.resolve(step, [("instrument", facts), *layers], {})
        if settings["skip_primitive"].value:
            raise GdaskError(f"{name} is left out")
        return step(*given, **params.own_values(step, settings))

    try:
        prepared = call("prepare", frames) if "prepare" in recipe_steps else frames
        targets, skies = call("separate_sky", prepared)
        associated: Frames = call("associate_sky", targets, skies)
    except GdaskError:  # the run stops at this step, or goes on without it, and says so itself
        return Screened(frames, ())
    reasons = {frame.attrs["name"]: frame.attrs.get("set_aside", "") for frame in associated}
    served = [frame for frame in targets if not reasons[frame.attrs["name"]]]
    set_ups = [set_up(frame) for frame in served or targets]
    idle = {
        sky.attrs["name"]: "it is on sky, and no frame on target has its filter, exposure time "
        "and read mode"
        for sky in skies
        if sky.attrs["name"] not in reasons
        and not any(same_set_up(set_up(sky), wanted) for wanted in set_ups)
    }
    reasons = idle | reasons
    kept, left_out = _sift(frames, lambda frame: reasons.get(frame.attrs["name"], ""), "skies")
    return Screened(kept, left_out)


# Bad pixels -----------------------------------------------------------------------------------


def without_bad(frames: Frames, error: BadPixels) -> Screened:
    """Set aside frames whose pixels are bad, and those whose files have changed since opening."""
    reasons = dict(error.reasons)
    for frame in frames:
        if _has_changed(frame.attrs["path"], identity_of(frame)):
            reasons.setdefault(
                frame.attrs["path"],
                "changed or vanished during the run; run again with the file at rest",
            )
    kept, left_out = _sift(frames, lambda frame: reasons.get(frame.attrs["path"], ""), "pixels")
    return Screened(kept, left_out)


def identity_of(frame: Frame) -> tuple[int, int]:
    """Give size (bytes) and modification time (ns) of a Frame's file when its headers were read."""
    size, modified = frame.attrs["file_identity"]
    return int(size), int(modified)


def _has_changed(path: str, identity: tuple[int, int]) -> bool:
    try:
        stat = os.stat(path)
        with open(path, "rb"):
            return (stat.st_size, stat.st_mtime_ns) != identity
    except OSError:
        return True
