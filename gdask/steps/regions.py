"""Calibrations cut to the region of interest of a frame."""

from __future__ import annotations

from gdask.instruments import instrument_of, view
from gdask.io.read import reopen
from gdask.model import GdaskError
from gdask.steps.frames import replaced
from gdask.types import Frame


def match_window(calibration: Frame, frame: Frame) -> Frame:
    """A calibration cut to the region of interest of a frame, chunked as the frame is.

    Raises GdaskError where the calibration does not contain the frame's arrays.
    """
    wanted, have = true_sections(frame), true_sections(calibration)
    if len(wanted) != len(have):
        raise GdaskError(
            f"{frame.attrs['name']} has {len(wanted)} arrays, {calibration.attrs['name']} has {len(have)}; "
            "take the incomplete file out of the list, or copy it again"
        )
    windows = set()
    for section, outer in zip(wanted, have, strict=True):
        x1, x2, y1, y2 = (
            section[0] - outer[0],
            section[1] - outer[0],
            section[2] - outer[2],
            section[3] - outer[2],
        )
        if x1 < 0 or y1 < 0 or section[1] > outer[1] or section[3] > outer[3]:
            raise GdaskError(
                f"{calibration.attrs['name']} covers {have}, {frame.attrs['name']} needs {wanted}; use a full-frame one"
            )
        windows.add((x1, x2, y1, y2))
    rows = frame["data"].data.chunks[1]
    if windows == {(0, calibration.sizes["x"], 0, calibration.sizes["y"])}:
        return (
            reopen(calibration, rows=max(rows), tag="")
            if max(rows) < frame.sizes["y"]
            else calibration
        )
    return _cut(calibration, [_window(s, o) for s, o in zip(wanted, have, strict=True)], rows)


def true_sections(frame: Frame) -> tuple[tuple[int, int, int, int], ...]:
    """Where each array's pixels truly lie on the array: 0-based half-open (x1, x2, y1, y2)."""
    return instrument_of(frame).module.true_sections(
        view(frame), (frame.sizes["y"], frame.sizes["x"])
    )


def _window(section: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, int, int, int]:
    return (
        section[0] - outer[0],
        section[1] - outer[0],
        section[2] - outer[2],
        section[3] - outer[2],
    )


def _cut(frame: Frame, windows: list[tuple[int, int, int, int]], rows: tuple[int, ...]) -> Frame:
    """Each array cut to its own window (the arrays of a region of interest may lie a row apart)."""
    import dask.array as da

    cut = {}
    for name in frame.data_vars:
        pixels = frame[name].data
        planes = [pixels[d : d + 1, y1:y2, x1:x2] for d, (x1, x2, y1, y2) in enumerate(windows)]
        cut[name] = da.concatenate(planes).rechunk((1, rows, -1))
    return replaced(frame, **cut)
