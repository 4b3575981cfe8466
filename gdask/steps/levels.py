"""placeholder until kernels.levels lands"""
from gdask.types import Frames


def measure_sky_levels(frames: Frames) -> Frames:
    return frames


def match_sky_levels(frames: Frames) -> Frames:
    return frames
