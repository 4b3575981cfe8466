"""Parts that the image recipes share. Copy them into a recipe of your own to change them."""

from gdask.steps import (
    add_dq,
    add_var,
    adu_to_electrons,
    associate_sky,
    detect_sources,
    flat_correct,
    nonlinearity_correct,
    prepare,
    separate_sky,
    sky_correct,
    transfer_objects,
)


def calibrate(run, frames):
    """Raw frames to flat-fielded electrons with variance and data quality, saved on disk."""
    frames = run(prepare, frames)
    frames = run(add_dq, frames, run.calibration("processed_bpm", frames, required=False))
    frames = run.each(nonlinearity_correct, frames)
    frames = run.each(adu_to_electrons, frames)
    frames = run.each(add_var, frames)
    frames = run.each(flat_correct, frames, run.calibration("processed_flat", frames))
    return run.save(frames)


def subtract_sky(run, frames):
    """Sky-subtract the frames on target, in two passes: objects found in the first are masked in the second."""
    targets, skies = run(separate_sky, frames)
    skies = run(associate_sky, skies, skies, keep_lonely=True)
    first = run(sky_correct, skies, skies, mask_objects=False, write_outputs=False)
    first = run.save(run.each(detect_sources, first, products="mask", write_outputs=False), variables=["objects"])
    targets, skies = transfer_objects(targets, first), transfer_objects(skies, first)
    targets = run(associate_sky, targets, skies)
    targets = run(sky_correct, targets, skies)
    return run.save(run.each(detect_sources, targets))
