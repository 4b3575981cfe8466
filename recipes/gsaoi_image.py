"""Recipes for GSAOI images. The default is `reduce`."""

from gdask.recipes.common import (
    align,
    calibrate,
    mask_sky_sources,
    mask_stack_sources,
    subtract_sky,
    write_stacks,
)

from gdask.steps import check_wcs as list_bad_wcs
from gdask.steps import detect_sources

TAGS = {"GSAOI", "IMAGE"}
NOT_FOR = {"SPECT", "ACQUISITION", "TWILIGHT"}
ALSO = {"check_wcs": {"PREPARED"}}
ONLY = {"align_and_stack": {"PREPARED"}}


def reduce(run, frames):
    """Reduce raw frames to one calibrated, sky-subtracted, aligned image of the target."""
    targets, skies = mask_sky_sources(run, calibrate(run, frames))
    frames = align(run, subtract_sky(run, targets, skies))
    return write_stacks(run, frames)


def reduce_nostack(run, frames):
    """Reduce, but stop before alignment: one sky-subtracted file for each frame on target."""
    targets, skies = mask_sky_sources(run, calibrate(run, frames))
    return run.write_each(subtract_sky(run, targets, skies), "_skyCorrected")


def align_and_stack(run, frames):
    """Align and stack frames that reduce_nostack made."""
    frames = run.save(run.each(detect_sources, frames))
    return write_stacks(run, align(run, frames))


def ultradeep(run, frames):
    """Reduce with a second sky subtraction, with masks from the stack of all frames.

    What is found on the stack is masked on every frame.
    """
    targets, skies = mask_stack_sources(run, *mask_sky_sources(run, calibrate(run, frames)))
    frames = align(run, subtract_sky(run, targets, skies))
    return write_stacks(run, frames)


def check_wcs(run, frames):
    """List frames whose header WCS disagrees with their target and offsets; change nothing."""
    return run(list_bad_wcs, frames)


default = reduce
