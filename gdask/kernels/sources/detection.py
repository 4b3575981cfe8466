"""Detect the sources of one array: a catalogue with SExtractor's column names, and an object mask.

sep was measured and not used: its extraction holds the interpreter's lock (two threads run no
faster than one) and its limits are process-wide settings. These kernels release the lock and share
no state.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.sources import measurement as m
from gdask.kernels.sources.background import background_mesh, interpolate_mesh
from gdask.kernels.sources.segmentation import (
    connected_regions,
    segment,
    smooth_3x3,
    with_wings,
)
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.types import Flags, Image, Mask, Pixels

#: Bits of FLAGS, as SExtractor has them: neighbours or bad pixels bias the photometry, blended,
#: saturated, cut by the edge.
FLAG_CROWDED, FLAG_BLENDED, FLAG_SATURATED, FLAG_TRUNCATED = 1, 2, 4, 8

_PLACES = ("X_IMAGE", "Y_IMAGE", "X_WORLD", "Y_WORLD")
_SHAPES = ("A_IMAGE", "B_IMAGE", "THETA_IMAGE", "ERRX2_IMAGE", "ERRY2_IMAGE", "ERRXY_IMAGE")
_KRON_FLUXES = ("FLUX_AUTO", "FLUXERR_AUTO", "MAG_AUTO", "MAGERR_AUTO", "KRON_RADIUS")
_PROFILES = ("FLUX_ISO", "FLUX_MAX", "FLUX_RADIUS", "FWHM_IMAGE", "ELLIPTICITY", "CLASS_STAR")

#: Columns of a catalogue. Pixels are 1-based, fluxes in the unit of the data; NaN where unknown.
CATALOG = np.dtype(
    [
        ("NUMBER", "i4"),
        *((name, "f8") for name in _PLACES),
        *((name, "f4") for name in (*_SHAPES, *_KRON_FLUXES, *_PROFILES)),
        ("BACKGROUND", "f4"),
        ("THRESHOLD", "f4"),
        ("ISOAREA_IMAGE", "i4"),
        ("FLAGS", "i2"),
        ("IMAFLAGS_ISO", "i4"),
        ("NIMAFLAGS_ISO", "i4"),
    ]
)


def measure_fwhm(catalog: np.ndarray) -> Pixels:
    """Typical FWHM (pixels) of the stars of a catalogue.

    It is the median over the brightest fifth of the sources that are neither saturated nor
    truncated (at least 5, at most 100), from which extended sources and artefacts are clipped; NaN
    where there is no such source.
    """
    clean = catalog[(catalog["FLAGS"] & (FLAG_SATURATED | FLAG_TRUNCATED)) == 0]
    clean = clean[np.isfinite(clean["FWHM_IMAGE"]) & (clean["FLUX_MAX"] > 0)]
    if not len(clean):
        return float("nan")
    order = np.argsort(-clean["FLUX_MAX"], kind="stable")
    width = clean["FWHM_IMAGE"][order[: min(max(len(clean) // 5, 5), 100)]].astype(float)
    for _ in range(5):
        near = width[np.abs(width / np.median(width) - 1) < 0.4]
        if len(near) in (0, len(width)):  # none: two sources, say, of very different widths
            break
        width = near
    return float(np.median(width))


def _starness(fwhm: np.ndarray, ellipticity: np.ndarray, star_fwhm: Pixels) -> np.ndarray:
    """Likeness to a star, between 0 and 1, from size and roundness.

    It is 1 for a round source as wide as the stars, 0.5 for one 30 % wider. It stands where
    SExtractor has a neural network; it is not that number.
    """
    deviation = (np.log(fwhm / star_fwhm) / np.log(1.3)) ** 2 + (ellipticity / 0.5) ** 2
    return 0.5**deviation


def _clean_inputs(data: Image, variance: Image, dq: Flags) -> tuple[Image, Image, Flags, Mask]:
    """Check the planes, make them kernel inputs, and add the mask of bad pixels."""
    if not data.shape == variance.shape == dq.shape or data.ndim != 2:
        raise GdaskError(
            f"detect: data {data.shape}, variance {variance.shape} and dq {dq.shape} "
            "must be planes of one shape"
        )
    bad = (dq & np.uint16(UNUSABLE)) != 0
    bad |= ~np.isfinite(data) | ~np.isfinite(variance)
    return (
        as_kernel_input(data, np.float32),
        as_kernel_input(variance, np.float32),
        as_kernel_input(dq, np.uint16),
        bad,
    )


def _fill_saturated(smoothed: Image, sky_free: Image, dq: Flags) -> None:
    """Raise saturated pixels to one plateau above everything, in place in `smoothed`.

    This keeps the dead core of a star from splitting it into a ring of sources. Saturated pixels
    do not count towards min_pixels: saturation alone never makes a source.
    """
    other_defects = np.uint16(UNUSABLE & ~DQ.SATURATED)
    core = ((dq & np.uint16(DQ.SATURATED)) != 0) & ((dq & other_defects) == 0)
    if core.any():
        good = np.isfinite(sky_free) & ~core
        smoothed[core] = max(float(smoothed.max()), float(sky_free[good].max(initial=0.0)))


def detect(
    data: Image,
    variance: Image,
    dq: Flags,
    *,
    threshold: float = 1.0,
    min_pixels: int = 20,
    mesh: int = 256,
) -> tuple[np.ndarray, Mask]:
    """Find the sources of one array.

    data, variance: float32 (ny, nx); dq: uint16. threshold: in sigma of the local background
    (compared with the image under SExtractor's default 3x3 kernel). min_pixels: connected pixels of
    a source. mesh: size in pixels of the cells of the background mesh. Pixels with unusable DQ bits
    never make a source and do not count in the background.
    Returns the catalogue (dtype CATALOG, sorted by peak), and the object mask (ny, nx), True on
    sources and their faint wings. Raises GdaskError where the planes have not one shape.
    """
    data, variance, dq, bad = _clean_inputs(data, variance, dq)
    level, noise = background_mesh(data, bad, mesh)
    sky, sigma = interpolate_mesh(level, data.shape), interpolate_mesh(noise, data.shape)
    sky_free = data - sky
    smoothed = smooth_3x3(sky_free, bad)
    _fill_saturated(smoothed, sky_free, dq)
    labels, peak, blended = segment(
        smoothed, variance, sigma, bad, threshold=threshold, min_pixels=min_pixels
    )
    catalog = _catalog(labels, peak, blended, smoothed, sky_free, variance, dq, bad)
    row, column = peak // data.shape[1], peak % data.shape[1]
    catalog["BACKGROUND"] = sky[row, column]
    catalog["THRESHOLD"] = threshold * sigma[row, column]
    return catalog, with_wings(sky_free, bad, labels > 0, sigma)


def object_mask(
    data: Image, dq: Flags, *, threshold: float = 1.0, min_pixels: int = 20, mesh: int = 256
) -> Mask:
    """Find the object mask of `detect` without its catalogue, in a third of the time.

    It serves the first pass of a sky estimate. The arguments are those of `detect`. The mask may
    differ where `detect` drops a faint bump beside a source.
    """
    data, _, dq, bad = _clean_inputs(data, data, dq)
    level, noise = background_mesh(data, bad, mesh)
    sky_free = data - interpolate_mesh(level, data.shape)
    sigma = interpolate_mesh(noise, data.shape)
    smoothed = smooth_3x3(sky_free, bad)
    _fill_saturated(smoothed, sky_free, dq)
    sources = connected_regions(smoothed, sigma, bad, threshold, min_pixels)
    return with_wings(sky_free, bad, sources, sigma)


def _catalog(
    labels: np.ndarray,
    peak: np.ndarray,
    blended: np.ndarray,
    smoothed: Image,
    sky_free: Image,
    variance: Image,
    dq: Flags,
    bad: Mask,
) -> np.ndarray:
    """Measure the segmented sources.

    The columns of background and threshold stay 0, those of coordinates and magnitudes NaN.
    """
    table = m.moments(labels, peak, smoothed, sky_free, variance, dq, bad)
    a, b, theta = m.ellipses(table)
    aperture = m.kron_apertures(sky_free, variance, bad, labels, table)
    out = np.zeros(len(table), CATALOG)
    for name in ("X_WORLD", "Y_WORLD", "MAG_AUTO", "MAGERR_AUTO"):
        out[name] = np.nan
    out["NUMBER"] = np.arange(1, len(table) + 1)
    out["X_IMAGE"], out["Y_IMAGE"] = table[:, m.XM] + 1, table[:, m.YM] + 1
    out["A_IMAGE"], out["B_IMAGE"], out["THETA_IMAGE"] = a, b, np.degrees(theta)
    out["ERRX2_IMAGE"], out["ERRY2_IMAGE"] = table[:, m.EXX], table[:, m.EYY]
    out["ERRXY_IMAGE"], out["ISOAREA_IMAGE"] = table[:, m.EXY], table[:, m.AREA]
    out["FLUX_ISO"], out["FLUX_MAX"] = table[:, m.FLUX], table[:, m.PEAK]
    out["FLUX_AUTO"], out["FLUXERR_AUTO"] = aperture[:, m.F_AUTO], np.sqrt(aperture[:, m.V_AUTO])
    out["KRON_RADIUS"], out["FLUX_RADIUS"] = aperture[:, m.R_KRON], aperture[:, m.R_HALF]
    out["ELLIPTICITY"] = 1 - b / a
    out["IMAFLAGS_ISO"], out["NIMAFLAGS_ISO"] = table[:, m.DQ_OR], table[:, m.DQ_COUNT]
    out["FWHM_IMAGE"] = m.core_fwhm(labels, sky_free, bad, table)
    ny, nx = labels.shape
    edge = (table[:, m.X0] == 0) | (table[:, m.X1] == nx - 1)
    edge |= (table[:, m.Y0] == 0) | (table[:, m.Y1] == ny - 1)
    saturated = (out["IMAFLAGS_ISO"] & int(DQ.SATURATED)) != 0
    out["FLAGS"] = (
        FLAG_CROWDED * (aperture[:, m.SUSPECT] > 0)
        + FLAG_BLENDED * blended
        + FLAG_SATURATED * saturated
        + FLAG_TRUNCATED * (edge | (aperture[:, m.CUT] > 0))
    )
    fwhm, ellipticity = out["FWHM_IMAGE"].astype(float), out["ELLIPTICITY"].astype(float)
    out["CLASS_STAR"] = _starness(fwhm, ellipticity, measure_fwhm(out))
    return out
