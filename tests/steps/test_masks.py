"""Masks of the user's that do not fit: refused with what is wrong, never put at another place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from gdask.recipes import gsaoi_image

import gdask
from gdask import steps
from gdask.model import GdaskError
from gdask.reduction.screening import open_all, screen

FULL = "[1:2048,1:2048]"


def mask(path: Path, night: object, sections: str | None, shape: tuple, extensions: int = 4) -> str:
    """Write a mask with planes of a shape, all good but for one pixel, and this CCDSEC."""
    with fits.open(night.bpm) as hdus:
        units = [fits.PrimaryHDU(header=hdus[0].header)]
        for hdu in hdus[1 : extensions + 1]:
            plane = np.zeros(shape, np.uint16)
            plane[shape[0] // 2, shape[1] // 2] = 1
            units.append(fits.ImageHDU(plane, hdu.header, name="SCI"))
            if sections:
                units[-1].header["CCDSEC"] = sections
    fits.HDUList(units).writeto(path)
    return str(path)


@pytest.mark.parametrize(
    ("sections", "shape", "message"),
    [
        (FULL, (1300, 1400), r"has 1400 x 1300 pixels|1400 x 1300 pixels, .*\[1:2048,1:2048\]"),
        ("[513:1536,513:1536]", (1300, 1300), r"1300 x 1300 pixels, .*\[513:1536,513:1536\]"),
        (FULL, (320, 320), r"320 x 320 pixels, .*\[1:2048,1:2048\]; correct the keyword"),
        ("[1:320,1:320]", (320, 320), r"covers pixels \[1:320,1:320\] of array 1, .* needs \[865:"),
    ],
)
def test_a_cut_mask_whose_section_is_unchanged_is_refused(
    night: object, tmp_path: Path, sections: str, shape: tuple, message: str
) -> None:
    path = mask(tmp_path / "cut.fits", night, sections, shape)
    (frame,) = steps.prepare((gdask.open(night.science[0]),), bad_wcs="ignore")
    for bpms, user in (((None,), path), ((gdask.open(path),), None)):
        with pytest.raises(GdaskError, match=f"^cut.fits.*{message}"):
            steps.add_dq((frame,), bpms, user_bpm=user)


def test_a_cut_mask_with_its_own_section_is_put_where_it_belongs(
    night: object, tmp_path: Path
) -> None:
    (frame,) = steps.prepare((gdask.open(night.science[0]),), bad_wcs="ignore")
    path = mask(tmp_path / "cut.fits", night, "[801:1250,801:1250]", (450, 450))
    (flagged,) = steps.add_dq((frame,), (None,), user_bpm=path)
    dq = flagged["dq"].data.compute() & 1
    # Pixel 225 of the mask is 800 + 225 of the array, whose pixel 864 is the frame's first.
    assert dq.sum() == 4 and (dq[:, 800 + 225 - 864, 800 + 225 - 864] == 1).all()


def test_a_mask_that_lacks_arrays_says_so(night: object, tmp_path: Path) -> None:
    path = mask(tmp_path / "two.fits", night, None, (2048, 2048), extensions=2)
    (frame,) = steps.prepare((gdask.open(night.science[0]),), bad_wcs="ignore")
    with pytest.raises(GdaskError, match="^two.fits has 2 arrays .* of the 4 .* give a mask"):
        steps.add_dq((frame,), (None,), user_bpm=path)


def test_a_frame_whose_section_contradicts_its_pixels_is_set_aside(
    night: object, tmp_path: Path
) -> None:
    path = tmp_path / "S20170505S0900.fits"
    with fits.open(night.science[1]) as hdus:
        for hdu in hdus[1:]:
            hdu.header["CCDSEC"] = FULL
        hdus.writeto(path)
    frames = open_all([*night.science, str(path)]).frames
    screened = screen(frames, gsaoi_image.reduce, gsaoi_image)
    (left,) = screened.set_aside
    assert left.name == path.name and "320 x 320 pixels, but its section keyword" in left.reason
