"""Recipes for FLAMINGOS-2 darks. The default is `make_processed_dark`."""

from gdask.recipes.f2_flat import calibrate_lamps

from gdask.steps import stack_frames

TAGS = {"F2", "CAL", "DARK"}


def make_processed_dark(run, frames):
    """Make one dark from several of the same exposure time."""
    dark = run(stack_frames, calibrate_lamps(run, frames), reject_method="varclip")
    return run.store(dark, "_dark", "processed_dark")


default = make_processed_dark
