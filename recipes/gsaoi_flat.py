"""Recipes for GSAOI dome and GCAL flats. The default is `make_processed_flat`."""

from gdask.steps import (
    add_dq,
    add_var,
    adu_to_electrons,
    make_bpm,
    make_lamp_flat,
    nonlinearity_correct,
    normalize_flat,
    prepare,
    stack_frames,
    threshold_flatfield,
)

TAGS = {"GSAOI", "IMAGE", "CAL", "FLAT"}
NOT_FOR = {"TWILIGHT"}
ALSO = {"make_processed_bpm": {"DARK"}}


def make_processed_flat(run, frames):
    """Make a normalised flat from lamp-on and lamp-off frames."""
    flat = run(threshold_flatfield, lamp_flat(run, frames))
    return run.store(flat, "_flat", "processed_flat")


def make_processed_bpm(run, frames):
    """Make a bad-pixel mask from flats and short darks.

    Short darks are not those that match the flats' exposure time.
    """
    darks, flats = run.split(frames, "DARK")
    flat = lamp_flat(run, flats)
    dark = run(stack_frames, calibrate_lamps(run, darks)) if darks else None
    return run.store(run(make_bpm, flat, dark), "_bpm", "processed_bpm")


def lamp_flat(run, flats):
    """Make a flat of lamp-on minus lamp-off, normalised over all arrays together."""
    return run(normalize_flat, run(make_lamp_flat, calibrate_lamps(run, flats)))


def calibrate_lamps(run, lamps):
    """Calibrate raw lamp frames and darks to electrons with variance.

    Every step works pixel by pixel, so that a stack reads bands of rows. Uniform light has no star
    cores, so there is no hidden saturation to look for and no latent image.
    """
    frames = run(prepare, lamps)
    bpms = run.calibration("processed_bpm", frames, required=False)
    frames = run(add_dq, frames, bpms, hidden_saturation=False, latency=False)
    frames = run.each(nonlinearity_correct, frames)
    frames = run.each(adu_to_electrons, frames)
    return run.each(add_var, frames)


default = make_processed_flat
