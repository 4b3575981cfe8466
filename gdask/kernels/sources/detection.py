"""Detect the sources of one array: a catalogue with SExtractor's column names, and an object mask.

sep was measured and not used: its extraction holds the interpreter's lock (two threads run no
faster than one) and its limits are process-wide settings. These kernels release the lock and share
no state.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from gdask.kernels.arithmetic import exponentials, logarithms
from gdask.kernels.arrays import as_kernel_input
from gdask.kernels.sources import measurement as m
from gdask.kernels.sources.background import background_mesh, mesh_values
from gdask.kernels.sources.segmentation import (
    bad_pixels,
    connected_regions,
    raise_saturated,
    segment,
    subtract_and_smooth,
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


#: Widths within which a star must be whole for its width to be right.
CORE_FWHM = 1.0


def measure_fwhm(catalog: np.ndarray, shape: tuple[int, int] | None = None) -> Pixels:
    """Typical FWHM (pixels) of the stars of a catalogue.

    It is the median over the brightest fifth of the sources that are neither saturated nor
    truncated (at least 5, at most 100), from which extended sources and artefacts are clipped; NaN
    where there is no such source. shape: of the array: a bright star in a small region of interest
    is truncated in its faintest wings only, and counts if the edges are CORE_FWHM of its own widths
    or more from it.
    """
    truncated = (catalog["FLAGS"] & FLAG_TRUNCATED) != 0
    if shape is not None:
        x, y, core = catalog["X_IMAGE"], catalog["Y_IMAGE"], CORE_FWHM * catalog["FWHM_IMAGE"]
        margin = np.minimum(np.minimum(x, shape[1] - x), np.minimum(y, shape[0] - y))
        truncated &= ~(margin >= core)
    clean = catalog[((catalog["FLAGS"] & FLAG_SATURATED) == 0) & ~truncated]
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
    deviation = (logarithms(fwhm / star_fwhm) / math.log(1.3)) ** 2 + (ellipticity / 0.5) ** 2
    return exponentials(-math.log(2.0) * deviation)


class _Planes(NamedTuple):
    """What sources are looked for in.

    data, variance, dq: kernel inputs. bad: pixels that do not count. level, noise: meshes of the
    sky. sky_free, smoothed: the data without sky, and smoothed.
    """

    data: Image
    variance: Image
    dq: Flags
    bad: Mask
    level: np.ndarray
    noise: np.ndarray
    sky_free: Image
    smoothed: Image


def _prepare(data: Image, variance: Image, dq: Flags, mesh: int) -> _Planes:
    """Check the planes, find bad pixels, subtract the sky and smooth.

    Saturated pixels are raised to a plateau. They do not count towards min_pixels: saturation alone
    never makes a source.
    """
    if not data.shape == variance.shape == dq.shape or data.ndim != 2:
        raise GdaskError(
            f"detect: data {data.shape}, variance {variance.shape} and dq {dq.shape} "
            "must be planes of one shape"
        )
    data, variance = as_kernel_input(data, np.float32), as_kernel_input(variance, np.float32)
    dq, saturated = as_kernel_input(dq, np.uint16), int(DQ.SATURATED)
    bad, cores = bad_pixels(data, variance, dq, int(UNUSABLE), saturated)
    level, noise = background_mesh(data, bad, mesh)
    sky_free, smoothed = subtract_and_smooth(data, bad, level)
    if cores:
        raise_saturated(smoothed, sky_free, dq, int(UNUSABLE), saturated)
    return _Planes(data, variance, dq, bad, level, noise, sky_free, smoothed)


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
    planes = _prepare(data, variance, dq, mesh)
    labels, peak, blended = segment(
        planes.smoothed,
        planes.variance,
        planes.noise,
        planes.bad,
        threshold=threshold,
        min_pixels=min_pixels,
    )
    catalog = _catalog(labels, peak, blended, planes)
    catalog["BACKGROUND"] = mesh_values(planes.level, peak, labels.shape)
    catalog["THRESHOLD"] = threshold * mesh_values(planes.noise, peak, labels.shape)
    core = labels > 0
    sky_free, bad, noise = planes.sky_free, planes.bad, planes.noise
    del labels, planes  # two planes of four bytes a pixel less at the peak
    return catalog, with_wings(sky_free, bad, core, noise)


def object_mask(
    data: Image, dq: Flags, *, threshold: float = 1.0, min_pixels: int = 20, mesh: int = 256
) -> Mask:
    """Find the object mask of `detect` without its catalogue, in a third of the time.

    It serves the first pass of a sky estimate. The arguments are those of `detect`. The mask may
    differ where `detect` drops a faint bump beside a source.
    """
    planes = _prepare(data, data, dq, mesh)
    sources = connected_regions(planes.smoothed, planes.noise, planes.bad, threshold, min_pixels)
    sky_free, bad, noise = planes.sky_free, planes.bad, planes.noise
    del planes
    return with_wings(sky_free, bad, sources, noise)


def _catalog(
    labels: np.ndarray, peak: np.ndarray, blended: np.ndarray, planes: _Planes
) -> np.ndarray:
    """Measure the segmented sources.

    The columns of background and threshold stay 0, those of coordinates and magnitudes NaN.
    """
    _, variance, dq, bad, _, _, sky_free, smoothed = planes
    table = m.moments(labels, peak, smoothed, sky_free, variance, dq, bad)
    a, b, theta = m.ellipses(table)
    aperture = m.kron_apertures(sky_free, variance, bad, labels, table)
    out = np.zeros(len(table), CATALOG)
    for name in ("X_WORLD", "Y_WORLD", "MAG_AUTO", "MAGERR_AUTO"):
        out[name] = np.nan
    out["NUMBER"] = np.arange(1, len(table) + 1)
    out["X_IMAGE"], out["Y_IMAGE"] = table[:, m.XM] + 1, table[:, m.YM] + 1
    out["A_IMAGE"], out["B_IMAGE"], out["THETA_IMAGE"] = a, b, theta
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
