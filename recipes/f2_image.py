"""Recipes for FLAMINGOS-2 images. The default is `reduce`."""

from gdask.recipes.common import (
    align,
    mask_sky_sources,
    mask_stack_sources,
    subtract_sky,
    write_stacks,
)

from gdask.steps import (
    add_dq,
    add_var,
    adu_to_electrons,
    dark_correct,
    detect_sources,
    flag_shadows,
    flat_correct,
    measure_background,
    measure_shadows,
    merge_groups,
    nonlinearity_correct,
    prepare,
    separate_sky,
)
from gdask.steps import check_wcs as list_bad_wcs

TAGS = {"F2", "IMAGE"}
NOT_FOR = {"SPECT", "LS", "MOS", "THRUSLIT", "ACQUISITION", "TWILIGHT"}
ALSO = {"check_wcs": {"PREPARED"}}
ONLY = {
    "align_and_stack": {"PREPARED"},
    "ultradeep_part2": {"PREPARED"},
    "ultradeep_part3": {"PREPARED"},
}


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


def ultradeep_part1(run, frames):
    """Begin ultradeep for one night or group: raw frames to flat-fielded ones."""
    return run.write_each(calibrate(run, frames), "_flatCorrected")


def ultradeep_part2(run, frames):
    """Continue ultradeep with all frames of part 1: sources of a first stack as masks.

    The sources are masked on every frame.
    """
    frames = run.fetch(run.each(measure_background, frames))
    targets, skies = mask_stack_sources(run, *mask_sky_sources(run, frames))
    return run.write_each(run(merge_groups, targets, skies), "_objmaskTransferred")


def ultradeep_part3(run, frames):
    """Complete ultradeep with the frames of part 2: sky subtraction with these masks, stack."""
    targets, skies = run(separate_sky, run.fetch(run.each(measure_background, frames)))
    frames = align(run, subtract_sky(run, targets, skies))
    return write_stacks(run, frames)


def calibrate(run, frames):
    """Calibrate raw frames, and save them.

    They become dark-subtracted, flat-fielded electrons with variance and data quality.
    """
    frames = run(prepare, run.need(frames, "processed_dark", "processed_flat"))
    frames = run(add_dq, frames, run.calibration("processed_bpm", frames, required=False))
    frames = run.each(adu_to_electrons, frames)
    frames = run.each(add_var, frames)
    frames = run.each(nonlinearity_correct, frames)
    frames = run.each(dark_correct, frames, run.calibration("processed_dark", frames))
    frames = run.each(flat_correct, frames, run.calibration("processed_flat", frames))
    frames = run.save(run.each(measure_background, run.each(measure_shadows, frames)))
    return run.save(run(flag_shadows, frames), variables=["dq"])


def check_wcs(run, frames):
    """List frames whose header WCS disagrees with their target and offsets; change nothing."""
    return run(list_bad_wcs, frames)


default = reduce
