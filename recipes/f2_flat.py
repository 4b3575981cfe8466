"""Recipes for FLAMINGOS-2 GCAL flats. The default is `make_processed_flat`."""

from gdask.steps import (
    add_dq,
    add_var,
    adu_to_electrons,
    dark_correct,
    make_bpm,
    make_lamp_flat,
    needs_dark,
    nonlinearity_correct,
    normalize_flat,
    prepare,
    split_darks,
    stack_frames,
    threshold_flatfield,
)

TAGS = {"F2", "IMAGE", "CAL", "FLAT"}
NOT_FOR = {"TWILIGHT"}
ALSO = {"make_processed_flat": {"DARK"}, "make_processed_bpm": {"DARK"}}


def make_processed_flat(run, frames):
    """Make a normalised flat: lamp-on minus lamp-off (Y, J, H), or lamp-off minus dark (K).

    K darks are those in the list with the exposure time of the flats, or the processed dark that
    fits.
    """
    darks, flats = run.split(frames, "DARK")
    darks = calibrate_lamps(run, darks) if darks and needs_dark(flats) else ()
    flat = lamp_flat(run, calibrate_lamps(run, flats), darks)
    return run.store(run(threshold_flatfield, flat), "_flat", "processed_flat")


def make_processed_bpm(run, frames):
    """Make a bad-pixel mask from flats and short darks. No other mask goes into it.

    K flats also take the darks of their own exposure time from the list, or the processed dark that
    fits.
    """
    darks, flats = run.split(frames, "DARK")
    flat_darks, short = split_darks(darks, flats)
    flat_darks = calibrate_lamps(run, flat_darks, static_bpm=False) if flat_darks else ()
    flat = lamp_flat(run, calibrate_lamps(run, flats, static_bpm=False), flat_darks)
    dark = (
        run(stack_frames, calibrate_lamps(run, short, static_bpm=False), reject_method="varclip")
        if short
        else None
    )
    return run.store(run(make_bpm, flat, dark), "_bpm", "processed_bpm")


def lamp_flat(run, flats, darks=()):
    """Make a normalised flat of the light of the lamp alone."""
    if needs_dark(flats) and not darks:
        flats = run.each(dark_correct, flats, run.calibration("processed_dark", flats))
    return run(normalize_flat, run(make_lamp_flat, flats, darks))


def calibrate_lamps(run, frames, static_bpm=True):
    """Calibrate raw lamp frames and darks to electrons with variance.

    Every step works pixel by pixel, so that a stack reads bands of rows. Uniform light has no star
    cores, so there is no hidden saturation to look for and no latent image.
    """
    frames = run(prepare, frames)
    bpms = (
        run.calibration("processed_bpm", frames, required=False)
        if static_bpm
        else (None,) * len(frames)
    )
    frames = run(add_dq, frames, bpms, hidden_saturation=False, latency=False)
    frames = run.each(adu_to_electrons, frames)
    frames = run.each(add_var, frames)
    return run.each(nonlinearity_correct, frames)


default = make_processed_flat
