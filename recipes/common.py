"""Parts that the image recipes share: copy them into a recipe of your own to change them."""

from gdask.steps import (
    add_dq,
    add_reference_catalog,
    add_var,
    adjust_wcs_to_reference,
    adu_to_electrons,
    associate_sky,
    by_night,
    check_sky,
    detect_sources,
    determine_astrometric_solution,
    flag_trails,
    flat_correct,
    frames_among,
    frames_on_stars,
    is_crowded,
    match_sky_levels,
    measure_background,
    measure_sky_levels,
    nonlinearity_correct,
    objects_from_stack,
    of_the_night,
    prepare,
    resample_to_common_frame,
    scale_counts_to_reference,
    separate_sky,
    share_objects,
    sky_correct,
    stack_frames,
    subtract_stack,
    transfer_objects,
    without_skies,
)


def calibrate(run, frames):
    """Calibrate raw frames to flat-fielded electrons with variance and DQ, and save them."""
    frames = run(prepare, run.need(frames, "processed_flat"))
    frames = run(add_dq, frames, run.calibration("processed_bpm", frames, required=False))
    frames = run.each(nonlinearity_correct, frames)
    frames = run.each(adu_to_electrons, frames)
    frames = run.each(add_var, frames)
    frames = run.each(flat_correct, frames, run.calibration("processed_flat", frames))
    return run.save(run.each(measure_background, frames))


def mask_sky_sources(run, frames):
    """Sort frames into targets and skies, and find the sources to mask.

    They are found after a first sky subtraction of the sky frames; what is found on one of them is
    masked on all.
    """
    targets, skies = run(separate_sky, frames)
    skies = run(associate_sky, skies, skies, keep_lonely=True)
    first = run(sky_correct, skies, skies, mask_objects=False, write_outputs=False)
    first = run.save(
        run.each(detect_sources, first, products="mask", write_outputs=False), variables=["objects"]
    )
    first = run(share_objects, first)
    return transfer_objects(targets, first), transfer_objects(skies, first)


def subtract_sky(run, targets, skies):
    """Subtract from each target its sky, and find its sources.

    The sky is the combination of its sky frames, sources masked. Of a crowded field without sky
    frames beside it, the light of a stack of all frames is subtracted from the sky frames before.
    Each night is done by itself, so that its frames are the same alone and among other nights.
    """
    subtracted = ()
    for night in by_night(targets):
        subtracted += subtract_sky_of_night(run, night, of_the_night(skies, night))
    return subtracted


def subtract_sky_of_night(run, targets, skies):
    """Subtract the sky from the frames of one night."""
    if is_crowded(targets, skies):
        targets, skies = subtract_all_light(run, run(associate_sky, targets, skies), skies)
    return subtract_masked_sky(run, targets, skies)


def subtract_masked_sky(run, targets, skies):
    """Subtract from each target the combination of its sky frames, and find its sources."""
    targets = run(associate_sky, targets, skies)
    targets = run(sky_correct, targets, skies)
    return run(check_sky, run.save(run.each(detect_sources, targets)))


def subtract_all_light(run, targets, skies):
    """Give targets, and sky frames without the light that a stack of all frames shows.

    A first stack has the level alone subtracted from each frame, so that no star is lost; the next
    ones have the sky that is left when the stack before is subtracted from the frames. Frames that
    cannot be aligned are set aside.
    """
    corrected = run(sky_correct, run(without_skies, targets), skies)
    for _ in range(2):
        first = align(run, run.save(run.each(detect_sources, corrected)), tie=False)
        (deep,) = run.save((combine(run, first),))
        left = run(subtract_stack, skies, deep, first)
        left = run.save(left, variables=["data", "objects"])
        targets = run(associate_sky, frames_among(targets, left), left)
        corrected = run(sky_correct, targets, left)
    return targets, left


def mask_stack_sources(run, targets, skies):
    """Mask on every frame of both groups what is found on a first stack.

    This is done twice, the second time with the masks of the first. Detection is deep and its
    background mesh wide, so that the masks take in faint wings and the light between stars: the
    second stack holds more of that light than the first.
    """
    for _ in range(2):
        first = align(run, subtract_masked_sky(run, targets, skies))
        deep = run.write(stack(run, first, threshold=1.0, min_pixels=20, mesh=512), "_firstPass")
        targets, skies = (run(objects_from_stack, group, deep, first) for group in (targets, skies))
        saved = run.save(targets + skies, variables=["objects"])
        targets, skies = saved[: len(targets)], saved[len(targets) :]
    return targets, skies


def align(run, frames, **matching):
    """Solve the positions of all frames together, and match their skies where they overlap.

    Trails of satellites, which one frame alone shows, are flagged.
    """
    frames = run(add_reference_catalog, frames)
    frames = run(determine_astrometric_solution, frames)
    frames = run(flag_trails, run(adjust_wcs_to_reference, frames))
    return run(match_sky_levels, run.fetch(run(measure_sky_levels, frames)), **matching)


def combine(run, frames):
    """Put aligned frames onto one grid and combine them."""
    frames = run(scale_counts_to_reference, frames)
    return run(stack_frames, run(resample_to_common_frame, frames))


def stack(run, frames, **detection):
    """Put aligned frames onto one grid and combine them, with a catalogue of the sources."""
    detection = {"threshold": 2.0, "mesh": 128} | detection
    return run(detect_sources, combine(run, frames), products="catalog", **detection)


def write_stacks(run, frames):
    """Stack aligned frames, and write the image with its catalogue.

    Where the target moves and both stacks are wanted (adjustWCSToReference:follow=both), that of
    the frames aligned on the stars is written first.
    """
    on_stars = frames_on_stars(frames)
    if on_stars:
        run.write(stack(run, on_stars), "_image", ending="OnStars")
    return run.write(stack(run, frames), "_image")
