"""Recipes for GSAOI darks. The default is `make_processed_dark`."""

from gdask.recipes.gsaoi_flat import calibrate_lamps

from gdask.steps import stack_frames

TAGS = {"GSAOI", "CAL", "DARK"}


def make_processed_dark(run, frames):
    """Make one dark from several of the same exposure time."""
    dark = run(stack_frames, calibrate_lamps(run, frames), reject_method="varclip")
    return run.store(dark, "_dark", "processed_dark")


default = make_processed_dark
