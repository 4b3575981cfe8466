"""Choose the level of a sky, and scale frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np

from gdask.instruments import descriptor, instrument_of
from gdask.io.frames import geometries, note, small, with_small
from gdask.io.gather import measure_arrays
from gdask.io.level_changes import changed_scale
from gdask.kernels.astrometry.association import match_pairs
from gdask.kernels.geometry.projection import tangent_plane, to_sky
from gdask.kernels.sky.shared_masks import DARKEST_QUANTILE, TargetLight, find_target_light
from gdask.kernels.sources.background import background_mesh
from gdask.kernels.sources.photometry import LEAST_WIDE, WIDE_RADII
from gdask.model import UNUSABLE, late
from gdask.params import Range
from gdask.steps.frame_numbers import of_residuals, stands_out, weigh_frames
from gdask.steps.frames import arrays_of, is_measured, on_group, with_arrays, with_scaled_levels
from gdask.steps.sky_frames import middle_of_exposure
from gdask.types import Flags, Frame, Frames, Image

if TYPE_CHECKING:
    import dask.array as da

    from gdask.kernels.sources.throughput import CoreShares, Throughputs
else:
    da = late("dask.array")

#: Arcsec within which sources of two aligned frames are one star.
SAME_STAR_ARCSEC = 0.2
#: Cells along each side of an array in which its background is measured.
BACKGROUND_CELLS = 8
#: Pixels of an array from whose rows its background is measured: of 2048 x 2048 8 rows of 32.
_LEVEL_PIXELS = 2**20
#: Bytes for each of them: data, flags, mask, and what is sorted. (Measured: 22.3.)
_LEVEL_BYTES = 25.0

log = logging.getLogger("gdask")


class SkyLevel(NamedTuple):
    """How the sky is levelled, and why.

    mode: offset (shifted to the frame's level), scale (scaled to it), or none (the sky frames' own
    level).
    """

    mode: str
    why: str


def measure_background(frame: Frame) -> Frame:
    """Measure the background of each array in 8 x 8 cells.

    sky_correct sees from it whether the target fills the field. The result is fetched at the end of
    the phase.
    """
    measured = measure_arrays(
        _background_in_cells,
        *arrays_of(frame, ("data", "dq")),
        scratch=_LEVEL_BYTES,
        sample=_LEVEL_PIXELS,
    )
    return with_small(frame, background=measured)


@on_group
def scale_counts_to_reference(
    frames: Frames,
    *,
    tolerance: Annotated[float, Range(0, 1)] = 0.0,
    throughput: Literal["auto", "off"] = "auto",
    min_weight: Annotated[float, Range(0, 1)] = 0.01,
) -> Frames:
    """Scale the frames to the first one's exposure time, and to one throughput.

    [scaleCountsToReference]

    Parameters
    ----------
    tolerance
        Take the stars' ratio to the first frame where it differs by less than this fraction from
        that of the exposure times; throughput has no say then. 0: not.
    throughput
        off takes exposure times only. auto scales frames to their mean throughput, measured from
        the stars that they share, where that is known at least twice as well as the frames differ.
    min_weight
        Set aside frames whose weight is less than this fraction of the median one. The weight is
        that of a faint star: throughput and exposure time squared over noise and FWHM squared.
    """
    frames, left_out = weigh_frames(frames, min_weight)
    first = float(descriptor(frames[0], "exposure_time"))
    found, cores = _throughputs(frames) if throughput == "auto" and not tolerance else (None, None)
    found = found and _with_clouds(found, frames)
    factors = np.ones(len(frames)) if found is None else found.factor
    remark = "" if found is None else _throughput_text(found)
    if found is not None:
        frames = tuple(
            _with_throughput(frame, found, cores, number) for number, frame in enumerate(frames)
        )
    scaled = tuple(
        _scale(
            frame,
            frames[0],
            first / float(descriptor(frame, "exposure_time")),
            tolerance,
            f,
            remark,
        )
        for frame, f in zip(frames, map(float, factors), strict=True)
    )
    return (*scaled, *left_out)


def _throughputs(frames: Frames) -> tuple[Throughputs | None, CoreShares | None]:
    """Measure the frames' throughputs, and the share of the light in the cores of stars.

    None without the stars of a joint solution.
    """
    from gdask.kernels.sources.throughput import core_shares, measure_throughputs

    solved = [small(frame, "solution") or {} for frame in frames]
    measured = [small(frame, "stars") for frame in frames]
    if len(frames) < 2 or any(s is None for s in measured):
        return None, None
    if any("residuals" not in solution for solution in solved):
        return None, None
    columns: list[tuple[np.ndarray, ...]] = []
    for number, (frame, solution) in enumerate(zip(frames, solved, strict=True)):
        rows = solution["residuals"]
        wide, error, share, flux = (
            of_residuals(rows, measured[number], name)
            for name in ("wide", "ewide", "share", "flux")
        )
        area = rows["flux"][:, None] / flux  # of the star's pixel over that of the flat's unit
        wide, error = wide * area, error * area
        told = np.isfinite(wide).any(axis=1)
        per_second = 1 / float(descriptor(frame, "exposure_time") or 1.0)
        of_frame = np.full(np.count_nonzero(told), number)
        light = wide[told] * per_second, error[told] * per_second
        columns.append((rows["star"][told], of_frame, *light, share[told]))
    star, of_frame, flux, error, share = map(np.concatenate, zip(*columns, strict=True))
    star, count = star.astype(np.int64), len(frames)

    def from_radius(first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return flux[:, first:], error[:, first:], share[:, first:]

    return (
        measure_throughputs(star, of_frame, *from_radius(LEAST_WIDE), count),
        core_shares(star, of_frame, *from_radius(_core_radius(measured)), count),
    )


def _core_radius(measured: Sequence[Sequence[np.ndarray]]) -> int:
    """Give the index of that of WIDE_RADII which is next to the FWHM of the frames' stars."""
    widths = [float(s["fwhm"][0]) for of_arrays in measured for s in of_arrays if len(s)]
    fwhm = float(np.median(widths)) if widths else WIDE_RADII[0]
    return int(np.argmin([max(radius / fwhm, fwhm / radius) for radius in WIDE_RADII]))


def _with_clouds(found: Throughputs, frames: Frames) -> Throughputs:
    """Give the throughputs with those of frames of which only a few stars tell how faint they are.

    These are of the fitted images, which differ from frame to frame: they are taken where the frame
    stands out by far.
    """
    numbers = [(small(frame, "solution") or {}).get("numbers", {}) for frame in frames]
    light = np.array([each.get("transparency", np.nan) for each in numbers])
    its_error = np.array([each.get("transparency_error", np.inf) for each in numbers])
    takes = np.isinf(found.error) & np.isfinite(light) & stands_out(light, its_error)
    value = np.where(takes, light, found.value)
    error = np.where(takes, its_error, found.error)
    factor = np.where(takes, 1 / np.where(takes, light, 1.0), found.factor)
    return found._replace(value=value, error=error, factor=factor)


def _throughput_text(found: Throughputs) -> str:
    """Say which throughputs were found, how well they are known, and whether they are used."""
    known = np.isfinite(found.error)
    if not known.any():
        return ", throughput not known: too few bright stars in common"
    error = float(np.median(found.error[known]))
    values = found.value[known]
    used = bool((found.factor != 1).any())
    return (
        f", throughput of {known.sum()} frames {values.min():.3f} to {values.max():.3f} "
        f"(known to {100 * error:.2g} %, scatter {100 * found.scatter:.2g} %): "
        f"{'taken out' if used else 'not taken out, it is not known better than it differs'}"
    )


def _with_throughput(
    frame: Frame, found: Throughputs, cores: CoreShares | None, number: int
) -> Frame:
    """Keep a frame's throughput, its error, the factor that scales it, and its core share."""
    of_frame = {
        "throughput": float(found.value[number]),
        "throughput_error": float(found.error[number]),
        "throughput_factor": float(found.factor[number]),
    }
    if cores is not None:
        of_frame |= {
            "core_share": float(cores.value[number]),
            "core_error": float(cores.error[number]),
        }
    return with_small(frame, solution=small(frame, "solution") | of_frame)


def _scale(
    frame: Frame, first: Frame, by_time: float, tolerance: float, by_stars: float, remark: str
) -> Frame:
    """Scale a frame to the first one.

    by_time: ratio of exposure times (first / frame); by_stars: of throughputs (mean / frame), and
    what is to be said of it.
    """
    factor, text = by_time * by_stars, f"by exposure time{remark}"
    if tolerance > 0:
        ratio = _star_ratio(frame, first)
        if ratio is not None and abs(ratio / by_time - 1) < tolerance:
            factor, text = ratio, f"by stars within {tolerance:g} of the exposure times"
    if factor == 1.0:
        return note(frame, text)
    count = frame.sizes["detector"]
    data, variance = arrays_of(frame, ("data", "variance"))
    scaled = with_arrays(
        frame,
        data=changed_scale(data, [factor] * count, [0.0] * count),
        variance=changed_scale(variance, [factor**2] * count, [0.0] * count),
    )
    return note(with_scaled_levels(scaled, factor), text)


def _star_ratio(frame: Frame, first: Frame) -> float | None:
    """Give the median flux ratio (first / frame) of common stars; None with fewer than five."""
    first_east, first_north, first_flux = _clean_stars(first)
    east, north, flux = _clean_stars(frame)
    i, j = match_pairs(first_east, first_north, east, north, SAME_STAR_ARCSEC)
    good = (first_flux[i] > 0) & (flux[j] > 0)
    return float(np.median(first_flux[i][good] / flux[j][good])) if good.sum() >= 5 else None


def _clean_stars(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give East, North (arcsec about the target) and flux of a frame's stars without flags."""
    centre = float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))
    parts = []
    for stars, geometry in zip(small(frame, "stars"), geometries(frame), strict=True):
        good = stars[(stars["flags"] == 0) & (stars["flux"] > 20 * stars["eflux"])]
        parts.append(
            (*tangent_plane(*to_sky(geometry, good["x"], good["y"]), *centre), good["flux"])
        )
    east, north, flux = (
        np.concatenate([np.atleast_1d(column) for column in columns])
        for columns in zip(*parts, strict=True)
    )
    return east, north, flux


def choose_level(
    frames: Frames, skies: Frames, offset: bool | None, scale: bool | None
) -> SkyLevel:
    """Choose how the sky is levelled.

    The user's choice wins. Without one it is the frame's own level, as is usual for the instrument,
    or the level of off-target sky frames where the target fills the field. Warns, whoever has
    chosen, where it does and its light is subtracted with the sky.
    """
    usual = str(instrument_of(frames[0]).facts.get("own_sky_level", "scale"))
    asked = ""
    if offset is not None or scale is not None:
        shifted = offset if offset is not None else usual == "offset" and not scale
        scaled = scale if scale is not None else usual == "scale" and not offset
        asked = "scale" if scaled else "offset" if shifted else "none"
    shapes = {
        np.shape(small(frame, "background", lazy_is_none=True) or ()) for frame in (*frames, *skies)
    }
    if len(shapes) > 1 or shapes == {(0,)}:
        why = "as asked" if asked else "usual: background not measured on like frames"
        return SkyLevel(asked or usual, why)
    names = {frame.attrs["name"] for frame in frames}
    off_target = tuple(sky for sky in skies if sky.attrs["name"] not in names)
    arrays = _arrays_with_levels((*frames, *off_target))
    levels = _backgrounds_of(frames, arrays)
    light = find_target_light(
        levels,
        _backgrounds_of(off_target, arrays) if off_target else None,
        _exposure_middles(frames),
        _exposure_middles(off_target),
    )
    mode = asked or ("none" if light.fills_field and off_target else usual)
    if light.fills_field:
        _warn_of_target(light, levels, mode, bool(off_target))
    return SkyLevel(mode, "as asked" if asked else _reason(light, bool(off_target)))


def _warn_of_target(
    light: TargetLight, levels: np.ndarray, mode: str, has_off_target: bool
) -> None:
    """Warn where the light of a target that fills the field is subtracted with the sky."""
    if not has_off_target:
        darkest = np.quantile(levels, DARKEST_QUANTILE, axis=(2, 3), keepdims=True)
        log.warning(
            "sky_correct: light in %.0f %% of the field (in the median %.0f e- above its darkest"
            " cells), and no sky frames off the target: light smoother than the dithers is"
            " subtracted with the sky. Reduce together with frames of an empty field beside it"
            " (separateSky:ref_sky=NAMES says which they are)",
            100 * light.share,
            float(np.median(levels - darkest)),
        )
    elif mode != "none":
        log.warning(
            "sky_correct: light in %.0f %% of the field, %.0f +- %.0f e- over the sky frames: this"
            " level of the target is subtracted with the sky, since %s_sky=True was asked for;"
            " without it, or with %s_sky=False, the sky frames' own level is",
            100 * light.share,
            light.excess,
            light.error,
            mode,
            mode,
        )


def _reason(light: TargetLight, has_off_target: bool) -> str:
    seen = f"light in {100 * light.share:.0f} % of the field"
    return (
        f"{seen}, {light.excess:+.0f} +- {light.error:.0f} e- over the sky frames"
        if has_off_target
        else f"{seen}, no frames off target"
    )


def _background_in_cells(data: Image, dq: Flags) -> np.ndarray:
    cell_pixels = max(data.shape[0] // BACKGROUND_CELLS, 1)
    return background_mesh(data, (dq & np.uint16(UNUSABLE)) != 0, cell_pixels)[0]


def _backgrounds_of(frames: Frames, arrays: Sequence[int]) -> np.ndarray:
    return np.array([[small(frame, "background")[n] for n in arrays] for frame in frames], float)


def _arrays_with_levels(frames: Frames) -> list[int]:
    """Give the numbers of the arrays that have usable pixels in all frames; all if none has."""
    found = [[is_measured(cells) for cells in small(frame, "background")] for frame in frames]
    usable = np.all(found, axis=0)
    return [int(n) for n in (np.flatnonzero(usable) if usable.any() else range(len(usable)))]


def _exposure_middles(frames: Frames) -> np.ndarray:
    return np.array([middle_of_exposure(frame) for frame in frames])
