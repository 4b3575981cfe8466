"""Steps: functions on Frames that only build graphs, with keyword-only arguments as parameters.

A step's module is imported when the step is first used, so that listing the steps costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Module of each step, and of each helper below.
_STEP_MODULES = {
    "prepare": "pointing",
    "check_wcs": "moving",
    "add_dq": "quality",
    "measure_shadows": "quality",
    "flag_shadows": "quality",
    "nonlinearity_correct": "calibrate",
    "adu_to_electrons": "calibrate",
    "add_var": "calibrate",
    "dark_correct": "calibrate",
    "flat_correct": "calibrate",
    "make_lamp_flat": "flats",
    "normalize_flat": "flats",
    "threshold_flatfield": "flats",
    "make_bpm": "flats",
    "separate_sky": "sky_frames",
    "associate_sky": "sky_frames",
    "sky_correct": "sky",
    "check_sky": "sky",
    "subtract_stack": "sky_residuals",
    "measure_background": "levels",
    "detect_sources": "sources",
    "flag_trails": "sources",
    "add_reference_catalog": "astrometry",
    "adjust_wcs_to_reference": "astrometry",
    "determine_astrometric_solution": "astrometry",
    "scale_counts_to_reference": "levels",
    "measure_sky_levels": "sky_surfaces",
    "match_sky_levels": "sky_surfaces",
    "resample_to_common_frame": "resample",
    "stack_frames": "stack",
}

#: Parts of recipes that are not steps: no parameters, no log line.
_HELPER_MODULES = {
    "transfer_objects": "sky",
    "objects_from_stack": "sources",
    "share_objects": "sources",
    "frames_on_stars": "pointing",
    "by_night": "frames",
    "of_the_night": "frames",
    "frames_among": "sky",
    "is_crowded": "sky",
    "without_skies": "sky_residuals",
    "needs_dark": "flats",
    "split_darks": "flats",
    "merge_groups": "sky_frames",
}

#: The suffix of a step's output file where it is not the step's name (the field's own suffixes).
SUFFIXES = {
    "prepare": "prepared",
    "add_dq": "dqAdded",
    "nonlinearity_correct": "nonlinearityCorrected",
    "adu_to_electrons": "ADUToElectrons",
    "add_var": "varAdded",
    "dark_correct": "darkCorrected",
    "flat_correct": "flatCorrected",
    "sky_correct": "skyCorrected",
    "detect_sources": "sourcesDetected",
    "flag_trails": "trailsFlagged",
    "separate_sky": "skySeparated",
    "associate_sky": "skyAssociated",
    "adjust_wcs_to_reference": "wcsCorrected",
    "resample_to_common_frame": "astrometry",
    "scale_counts_to_reference": "countsScaled",
    "stack_frames": "stack",
    "make_lamp_flat": "lampFlat",
    "normalize_flat": "normalized",
    "threshold_flatfield": "thresholdFlatfielded",
    "determine_astrometric_solution": "astrometryDetermined",
    "match_sky_levels": "levelsMatched",
}

__all__ = list(_STEP_MODULES)


def __getattr__(name: str) -> Any:
    module = _STEP_MODULES.get(name) or _HELPER_MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'gdask.steps' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gdask.steps.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_HELPER_MODULES])
