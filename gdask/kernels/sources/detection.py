"""Source detection on one array: a catalogue with SExtractor's column names, and the object mask for sky estimates.

sep was measured and not used: its extraction holds the interpreter's lock (two threads run no faster than one) and
its limits are process-wide settings. These kernels release the lock and share no state.
"""

from __future__ import annotations

import numpy as np

from gdask.kernels.arrays import plain
from gdask.kernels.sources import measurement as m
from gdask.kernels.sources.background import background_mesh, spread_mesh
from gdask.kernels.sources.segmentation import connected, segment, smooth, wings
from gdask.model import DQ, UNUSABLE, GdaskError
from gdask.types import Flags, Image, Mask, Pixels

#: SExtractor's FLAGS: neighbours or bad pixels bias the photometry, blended, saturated, cut by the edge.
CROWDED, BLENDED, SATURATED, TRUNCATED = 1, 2, 4, 8

#: Columns of a catalogue. Pixels are 1-based, fluxes in the unit of the data; NaN where unknown.
CATALOG = np.dtype(
    [("NUMBER", "i4"), ("X_IMAGE", "f8"), ("Y_IMAGE", "f8"), ("X_WORLD", "f8"), ("Y_WORLD", "f8")]
    + [
        (name, "f4")
        for name in (
            "A_IMAGE",
            "B_IMAGE",
            "THETA_IMAGE",
            "ERRX2_IMAGE",
            "ERRY2_IMAGE",
            "ERRXY_IMAGE",
        )
    ]
    + [
        (name, "f4")
        for name in ("FLUX_AUTO", "FLUXERR_AUTO", "MAG_AUTO", "MAGERR_AUTO", "KRON_RADIUS")
    ]
    + [
        (name, "f4")
        for name in (
            "FLUX_ISO",
            "FLUX_MAX",
            "FLUX_RADIUS",
            "FWHM_IMAGE",
            "ELLIPTICITY",
            "CLASS_STAR",
        )
    ]
    + [("BACKGROUND", "f4"), ("THRESHOLD", "f4"), ("ISOAREA_IMAGE", "i4")]
    + [("FLAGS", "i2"), ("IMAFLAGS_ISO", "i4"), ("NIMAFLAGS_ISO", "i4")]
)


def measure_fwhm(catalog: np.ndarray) -> Pixels:
    """Typical FWHM in pixels of the stars of a catalogue: the median over the brightest clean fifth (at least 5, at
    most 100), from which extended sources and artefacts are clipped; NaN where no source is clean."""
    clean = catalog[(catalog["FLAGS"] & (SATURATED | TRUNCATED)) == 0]
    clean = clean[np.isfinite(clean["FWHM_IMAGE"]) & (clean["FLUX_MAX"] > 0)]
    if not len(clean):
        return float("nan")
    order = np.argsort(-clean["FLUX_MAX"], kind="stable")
    width = clean["FWHM_IMAGE"][order[: min(max(len(clean) // 5, 5), 100)]].astype(float)
    for _ in range(5):
        middle = np.median(width)
        near = width[np.abs(width / middle - 1) < 0.4]
        if len(near) in (0, len(width)):  # none: two sources, say, of very different widths
            break
        width = near
    return float(np.median(width))


def _starness(fwhm: np.ndarray, ellipticity: np.ndarray, stars: Pixels) -> np.ndarray:
    """A share between 0 and 1 from size and roundness: 1 for a round source as wide as the stars, 0.5 for one 30 %
    wider. It stands where SExtractor has a neural network; it is not that number."""
    off = (np.log(fwhm / stars) / np.log(1.3)) ** 2 + (ellipticity / 0.5) ** 2
    return 0.5**off


def _clean_inputs(data: Image, variance: Image, dq: Flags) -> tuple[Image, Image, Flags, Mask]:
    if not data.shape == variance.shape == dq.shape or data.ndim != 2:
        raise GdaskError(
            f"detect: data {data.shape}, variance {variance.shape} and dq {dq.shape} must be planes of one shape"
        )
    bad = (dq & np.uint16(UNUSABLE)) != 0
    bad |= ~np.isfinite(data) | ~np.isfinite(variance)
    return plain(data, np.float32), plain(variance, np.float32), plain(dq, np.uint16), bad


def _fill_saturated(smoothed: Image, residual: Image, dq: Flags) -> None:
    """Saturated pixels become one plateau above everything, so that a star's dead core does not split it into a ring
    of sources. They do not count towards min_pixels: saturation alone never makes a source. Edits smoothed."""
    others = np.uint16(UNUSABLE & ~DQ.SATURATED)
    core = ((dq & np.uint16(DQ.SATURATED)) != 0) & ((dq & others) == 0)
    if core.any():
        good = np.isfinite(residual) & ~core
        smoothed[core] = max(float(smoothed.max()), float(residual[good].max(initial=0.0)))


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

    data, variance float32 (ny, nx), dq uint16; `threshold` in sigma of the local background (compared with the image
    under SExtractor's default 3x3 kernel), `min_pixels` connected pixels, background mesh of `mesh` pixels. Pixels
    with unusable DQ bits never make a source and do not count in the background.
    Returns (catalogue of dtype CATALOG, sorted by peak; object mask (ny, nx), True on sources and their faint wings).
    """
    data, variance, dq, bad = _clean_inputs(data, variance, dq)
    level, sigma_mesh = background_mesh(data, bad, mesh)
    sky, sigma = spread_mesh(level, data.shape), spread_mesh(sigma_mesh, data.shape)
    residual = data - sky
    smoothed = smooth(residual, bad)
    _fill_saturated(smoothed, residual, dq)
    labels, peak, blended = segment(
        smoothed, variance, sigma, bad, threshold=threshold, min_pixels=min_pixels
    )
    catalog = _catalog(labels, peak, blended, smoothed, residual, variance, dq, bad)
    row, column = peak // data.shape[1], peak % data.shape[1]
    catalog["BACKGROUND"] = sky[row, column]
    catalog["THRESHOLD"] = threshold * sigma[row, column]
    return catalog, wings(residual, bad, labels > 0, sigma)


def object_mask(
    data: Image, dq: Flags, *, threshold: float = 1.0, min_pixels: int = 20, mesh: int = 256
) -> Mask:
    """The object mask of `detect` without its catalogue, in a third of the time: for the first pass of a sky
    estimate. Same arguments; it may differ where `detect` drops a faint bump beside a source."""
    data, _, dq, bad = _clean_inputs(data, data, dq)
    level, sigma_mesh = background_mesh(data, bad, mesh)
    residual, sigma = data - spread_mesh(level, data.shape), spread_mesh(sigma_mesh, data.shape)
    smoothed = smooth(residual, bad)
    _fill_saturated(smoothed, residual, dq)
    return wings(residual, bad, connected(smoothed, sigma, bad, threshold, min_pixels), sigma)


def _catalog(
    labels: np.ndarray,
    peak: np.ndarray,
    blended: np.ndarray,
    smoothed: Image,
    residual: Image,
    variance: Image,
    dq: Flags,
    bad: Mask,
) -> np.ndarray:
    t = m.moments(labels, peak, smoothed, residual, variance, dq, bad)
    a, b, theta = m.ellipses(t)
    aperture = m.apertures(residual, variance, bad, labels, t)
    out = np.zeros(len(t), CATALOG)
    for name in ("X_WORLD", "Y_WORLD", "MAG_AUTO", "MAGERR_AUTO"):
        out[name] = np.nan
    out["NUMBER"] = np.arange(1, len(t) + 1)
    out["X_IMAGE"], out["Y_IMAGE"] = t[:, m.XM] + 1, t[:, m.YM] + 1
    out["A_IMAGE"], out["B_IMAGE"], out["THETA_IMAGE"] = a, b, np.degrees(theta)
    out["ERRX2_IMAGE"], out["ERRY2_IMAGE"], out["ERRXY_IMAGE"] = (
        t[:, m.EXX],
        t[:, m.EYY],
        t[:, m.EXY],
    )
    out["FLUX_ISO"], out["FLUX_MAX"], out["ISOAREA_IMAGE"] = t[:, m.FLUX], t[:, m.TOP], t[:, m.AREA]
    out["FLUX_AUTO"], out["FLUXERR_AUTO"] = aperture[:, m.F_AUTO], np.sqrt(aperture[:, m.V_AUTO])
    out["KRON_RADIUS"], out["FLUX_RADIUS"] = aperture[:, m.R_KRON], aperture[:, m.R_HALF]
    out["ELLIPTICITY"] = 1 - b / a
    out["IMAFLAGS_ISO"], out["NIMAFLAGS_ISO"] = t[:, m.DQ_OR], t[:, m.DQ_COUNT]
    out["FWHM_IMAGE"] = m.core_fwhm(labels, residual, bad, t)
    ny, nx = labels.shape
    edge = (t[:, m.X0] == 0) | (t[:, m.Y0] == 0) | (t[:, m.X1] == nx - 1) | (t[:, m.Y1] == ny - 1)
    saturated = (out["IMAFLAGS_ISO"] & int(DQ.SATURATED)) != 0
    out["FLAGS"] = (
        CROWDED * (aperture[:, m.SUSPECT] > 0)
        + BLENDED * blended
        + SATURATED * saturated
        + TRUNCATED * (edge | (aperture[:, m.CUT] > 0))
    )
    out["CLASS_STAR"] = _starness(
        out["FWHM_IMAGE"].astype(float), out["ELLIPTICITY"].astype(float), measure_fwhm(out)
    )
    return out
