"""Recipes for GSAOI images. The default is `reduce`."""

from gdask.recipes.common import calibrate, subtract_sky
from gdask.steps import (
    add_reference_catalog,
    adjust_wcs_to_reference,
    detect_sources,
    determine_astrometric_solution,
    match_sky_levels,
    measure_sky_levels,
    resample_to_common_frame,
    scale_counts_to_reference,
    stack_frames,
)
from gdask.steps import check_wcs as list_bad_wcs

TAGS = {"GSAOI", "IMAGE"}


def reduce(run, frames):
    """From raw frames to one calibrated, sky-subtracted, aligned image of the target."""
    targets = subtract_sky(run, calibrate(run, frames))
    return stack(run, targets)


def reduce_nostack(run, frames):
    """As reduce, but stop before alignment: one sky-subtracted file for each frame on target."""
    return run.write_each(subtract_sky(run, calibrate(run, frames)), "_skyCorrected")


def align_and_stack(run, frames):
    """Align and stack frames that reduce_nostack made."""
    return stack(run, run.save(run.each(detect_sources, frames)))


def check_wcs(run, frames):
    """List frames whose header WCS disagrees with their target and offsets; change nothing."""
    return run(list_bad_wcs, frames)


def stack(run, frames, suffix="_image"):
    """Align sky-subtracted frames on the sky and combine them."""
    frames = run(add_reference_catalog, frames)
    frames = run(determine_astrometric_solution, frames)
    frames = run(adjust_wcs_to_reference, frames)
    frames = run(match_sky_levels, run.fetch(run(measure_sky_levels, frames)))
    frames = run(scale_counts_to_reference, frames)
    frames = run(resample_to_common_frame, frames)
    image = run(detect_sources, run(stack_frames, frames), products="catalog", threshold=2.0, mesh=128)
    return run.write(image, suffix)


default = reduce
