"""Which frames of a list belong together on the sky: one target, and a sky for each frame. From headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from gdask import params
from gdask.instruments import descriptor, instrument_of, step_defaults
from gdask.model import GdaskError
from gdask.reduction.recipe_library import Recipe, steps_in
from gdask.reduction.screening import Screened, sift
from gdask.steps.sky_frames import check_one_target, same_set_up, separation, set_up
from gdask.types import Frame, Frames

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
