"""Zero point and depth of an image.

The depth is that of apertures on empty sky, which a task of the last phase measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.base import tokenize

from gdask.instruments import descriptor
from gdask.io.catalog import at_epoch
from gdask.io.chained import read_together
from gdask.io.frames import array_headers, grid_of, primary_header, shape_of, small
from gdask.io.gather import gather
from gdask.io.lazy_arrays import source_of
from gdask.io.sources import Source
from gdask.io.star_tables import count_covering_frames
from gdask.kernels.geometry.grid import grid_to_sky
from gdask.kernels.geometry.projection import tangent_plane
from gdask.kernels.resample.interpolation import aperture_noise
from gdask.kernels.sources import empty_apertures as empty
from gdask.kernels.sources.centroids import APERTURES
from gdask.model import late
from gdask.steps.frame_numbers import fwhm_pixels, mean_of
from gdask.steps.frames import arrays_of
from gdask.types import Frame, Window

if TYPE_CHECKING:
    from astropy import table as astable
else:
    astable = late("astropy.table")

Values = dict[str, Any]
#: Widest and usual radius (pixels) of an empty aperture.
_MAX_RADIUS, _RADIUS = 20.0, 2.5
#: Radius (pixels) of apertures that show noise which is correlated over many pixels, and fewest.
WIDE_RADIUS, _FEWEST_WIDE = 12.0, 50
#: Bytes that a pixel of a square takes: its planes, windows of apertures.
_SQUARE_BYTES = 120.0
#: Bytes of an array's apertures, at most.
_RESULT_BYTES = 1.5e6
#: Fewest apertures that tell the noise.
_FEWEST_PLACES = 20
#: Least S/N of stars that tell a zero point, and the share of a star's light in an aperture.
_ZERO_POINT_SNR, _APERTURE_SNR = 20.0, 30.0
#: Flag of FLAGS_PSF that does not make a star useless: the common factor of all is not known.
_UNSCALED = 64
#: Largest error (fraction) of the common factor of the fitted fluxes with which they are taken.
_MAX_COMMON_ERROR = 0.2
#: Least scatter (mag) beyond which a star is left out of a zero point, and fewest stars.
_LEAST_SCATTER, _FEWEST_STARS = 0.02, 3
#: Magnitude columns: what may stand beside the band's name.
_BESIDE_BAND = ("mag", "psf", "auto", "aper", "2mass", "vhs", "ukidss", "_", "-")
_SIGMA_PER_MAD = 1.4826


def empty_apertures(frame: Frame) -> Any:
    """Measure apertures of APERTURES[0] FWHM on empty sky, lazily: APERTURE of each array.

    Then those of WIDE_RADIUS, where this is larger.
    What must be computed as whole arrays for the detection anyway is taken from these; of what lies
    in files the squares are read.
    """
    names = ["data", "variance", "dq", *(["objects"] if "objects" in frame else [])]
    arrays = [
        each if source_of(each) else each.rechunk((1, -1, -1)) for each in arrays_of(frame, names)
    ]
    count, shape = arrays[0].shape[0], shape_of(frame)
    of_image = empty.MOST_SQUARES if grid_of(frame) else empty.MOST_SQUARES // 4
    windows = empty.squares(shape, max(of_image // count, 16))
    held = [frame[name].data for name in ("stars", "objcat")]
    lazy = [each for each in held if hasattr(each, "dask")]
    known = (
        ()
        if lazy
        else tuple(
            fwhm_pixels(stars, catalog, shape)
            for stars, catalog in zip(small(frame, "stars"), small(frame, "objcat"), strict=True)
        )
    )
    identity = tokenize(
        [each.name for each in arrays], [each.name for each in lazy], known, windows
    )
    return gather(
        _measure_empty,
        arrays,
        name=f"empty_apertures-{identity}",
        dtype=object,
        chunks=((1,) * count,),
        windows=lambda _, detector, __: [(detector, window) for window in windows],
        values=lazy,
        scratch=_SQUARE_BYTES * empty.SQUARE**2,  # one square at a time
        result_bytes=_RESULT_BYTES,
        shape=shape,
        known=known,
        places=tuple(windows),
    )


def _measure_empty(
    sources: tuple[Source, ...],
    detector: int,
    _: Window,
    *found: np.ndarray,
    shape: tuple[int, int],
    known: tuple[float, ...],
    places: tuple[Window, ...],
) -> np.ndarray:
    """Measure the squares of an array. found: its stars and catalogue, without a `known` FWHM."""
    fwhm = known[detector] if known else fwhm_pixels(found[0], found[1], shape)
    radius = min(APERTURES[0] * fwhm, _MAX_RADIUS) if np.isfinite(fwhm) else _RADIUS
    planes = (read_together(sources, detector, window) for window in places)
    radii = (radius, WIDE_RADIUS) if radius < WIDE_RADIUS else (radius,)
    return empty.measure_squares(planes, places, radii)


def zero_point(
    frame: Frame, tables: Mapping[str, Any], numbers: Sequence[Mapping[str, Any]]
) -> Values:
    """Give the zero point of the fluxes of all the light of a star, and where it is from.

    From the reference catalogue where it has magnitudes of this band, else the instrument's nominal
    one, which knows nothing of clouds and air mass.
    """
    nominal = mean_of(numbers, "nominal_zero_point")
    found = _from_catalogue(frame, tables)
    if found:
        offset = found["zero_point"] - nominal
        return found | {"zero_point_offset": float(offset) if np.isfinite(offset) else None}
    if np.isfinite(nominal):
        return {"zero_point": nominal, "zero_point_source": "nominal"}
    return {}


def _from_catalogue(frame: Frame, tables: Mapping[str, Any]) -> Values:
    """Give the zero point by the magnitudes of REFCAT; nothing where it has none of this band."""
    sources, grid = _stars_of(tables), grid_of(frame)
    seconds = float(primary_header(frame).get("EXPTIME") or 0.0)
    if "REFCAT" not in tables or sources is None or grid is None or seconds <= 0:
        return {}
    catalog = tables["REFCAT"]
    column = magnitude_column(catalog.colnames, str(descriptor(frame, "filter_name", pretty=True)))
    common = _common_error(sources)
    if column is None or common > _MAX_COMMON_ERROR:
        return {}
    flux, error = (np.asarray(sources[name], float) for name in ("FLUX_PSF", "FLUXERR_PSF"))
    good = ((sources["FLAGS_PSF"] & ~_UNSCALED) == 0) & (flux > _ZERO_POINT_SNR * error)
    near = _brightest_near(
        sources["RA"][good],
        sources["DEC"][good],
        at_epoch(catalog, _year(frame), None),
        catalog[column],
        small(frame, "stars")[0]["fwhm"][0] * grid.scale,
    )
    values = near + 2.5 * np.log10(flux[good] / seconds)
    values = _clipped(values[np.isfinite(values)])
    if len(values) < _FEWEST_STARS:
        return {}
    own = 1.2533 * _robust_scatter(values) / np.sqrt(len(values))
    return {
        "zero_point": float(np.median(values)),
        "zero_point_error": float(np.hypot(own, 2.5 / np.log(10) * common)),
        "zero_point_stars": len(values),
        "zero_point_source": f"catalogue {column}",
    }


def _clipped(values: np.ndarray) -> np.ndarray:
    """Give the values (mag) without those that lie far from their median."""
    for _ in range(5 if len(values) else 0):
        limit = max(4 * _robust_scatter(values), _LEAST_SCATTER)
        values = values[np.abs(values - np.median(values)) <= limit]
    return values


def _stars_of(tables: Mapping[str, Any]) -> astable.Table | None:
    """Give OBJCAT of a stack with its fitted stars; None without these."""
    table = tables["OBJCAT"][0] if "OBJCAT" in tables else None
    return table if table is not None and "FLUX_APER" in table.colnames else None


def magnitude_column(columns: Sequence[str], filter_name: str) -> str | None:
    """Give the magnitude column of a filter's band: Ksmag of Kshort; None where there is none.

    A column that names no band is taken where it is the only one.
    """
    bare = {}
    for name in columns:
        band = name.lower()
        if "mag" in band and "err" not in band and not band.startswith("e_"):
            for part in _BESIDE_BAND:
                band = band.replace(part, "")
            bare[name] = band
    wanted = filter_name.lower().replace("short", "s")
    letter = wanted.removesuffix("s")
    near = (wanted, letter, f"{letter}s") if len(letter) == 1 else (wanted,)
    known = [name for band in near for name in bare if bare[name] == band]
    if known:
        return known[0]
    return next(iter(bare)) if list(bare.values()) == [""] else None


def _common_error(sources: astable.Table) -> float:
    """Give the error (fraction) of the factor that makes fitted fluxes those of all the light.

    Infinite where the factor is not known: light in apertures is no substitute, an AO halo is 5
    times as wide as the core.
    """
    error = _value(sources.meta.get("PSFFERR", np.nan))
    return error if np.isfinite(error) else float("inf")


def _value(card: Any) -> float:
    """Give the value of a table's keyword, alone or with its comment."""
    return float(card[0] if isinstance(card, tuple) else card)


def _brightest_near(
    ra: np.ndarray, dec: np.ndarray, place: Any, magnitudes: np.ndarray, radius: float
) -> np.ndarray:
    """Give the magnitude of the brightest catalogue star within `radius` (arcsec); NaN for none."""
    from scipy.spatial import cKDTree

    ra, dec = np.asarray(ra, float), np.asarray(dec, float)
    if not len(ra) or not len(place.ra):
        return np.zeros(len(ra)) * np.nan
    centre = float(np.median(ra)), float(np.median(dec))
    stars, found = (
        np.nan_to_num(np.column_stack(tangent_plane(a, d, *centre)), nan=1e9)
        for a, d in ((place.ra, place.dec), (ra, dec))
    )
    values = np.asarray(np.ma.filled(magnitudes, np.nan), float)
    near = cKDTree(stars).query_ball_point(found, radius)
    return np.array(
        [
            np.nanmin(values[rows]) if rows and np.isfinite(values[rows]).any() else np.nan
            for rows in near
        ]
    )


def _year(frame: Frame) -> float:
    mjd = primary_header(frame).get("MJD-AVG")
    return 2000.0 + (float(mjd) - 51544.5) / 365.25 if mjd else 2000.0


def noise_and_depth(
    frame: Frame,
    numbers: Sequence[Mapping[str, Any]],
    zero_point: Values,
    tables: Mapping[str, Any],
) -> Values:
    """Give the noise of empty apertures over what VAR and the exposure promise, and the depth."""
    all_parts = small(frame, "empty") or []
    parts = [part[part["radius"] == part["radius"].min(initial=np.inf)] for part in all_parts]
    places = np.concatenate(parts) if parts else np.zeros(0, empty.APERTURE)
    if len(places) < _FEWEST_PLACES:
        return {}
    grid = grid_of(frame)
    radius = float(places["radius"][0])
    promised = places["noise"].astype(float) * _correlation(frame, radius)
    ratio = _robust_scatter(places["sum"] / promised)
    values: Values = {
        "noise_ratio": ratio,
        "wide_noise_ratio": _wide_noise_ratio(frame, np.concatenate(all_parts), radius),
        "depth_places": len(places),
        "sky_unevenness": _unevenness(parts),
    }
    scale = grid.scale if grid else float("nan")
    by_exposure = _promised_by_exposure(frame, places, numbers)
    if by_exposure is not None:
        values["depth_over_predicted"] = ratio * float(np.median(promised / by_exposure))
    share = _share_in_aperture(tables)
    seconds = float(primary_header(frame).get("EXPTIME") or 0.0)
    if grid and share and seconds > 0 and zero_point.get("zero_point") is not None:
        flux = 5 * ratio * float(np.median(promised)) / share
        depth = zero_point["zero_point"] - 2.5 * np.log10(flux / seconds)
        values |= {"depth_5sigma": float(depth), "depth_aperture": radius * scale}
    return values


def _wide_noise_ratio(frame: Frame, places: np.ndarray, radius: float) -> float | None:
    """Give the scatter of apertures of WIDE_RADIUS over what VAR says; None for too few.

    radius: of the others.
    """
    wide = places[places["radius"] > radius]
    if len(wide) < _FEWEST_WIDE:
        return None
    return _robust_scatter(empty.pulls(wide, _correlation(frame, WIDE_RADIUS)))


def _robust_scatter(values: np.ndarray) -> float:
    return float(_SIGMA_PER_MAD * np.median(np.abs(values - np.median(values))))


def _correlation(frame: Frame, radius: float) -> float:
    """Give the rms of an aperture of this radius (pixels) over sqrt(sum of VAR)."""
    header = array_headers(frame)[0]
    if "INTERPOL" not in header:
        return 1.0
    sums, name = float(header.get("CORRFAC", 1.0)), str(header["INTERPOL"])
    return sums if name.startswith("reproject") else sums * aperture_noise(name, radius)


def _unevenness(parts: Sequence[np.ndarray]) -> float | None:
    """Give the scatter of the squares' levels beyond their errors, over the noise of a pixel."""
    levels, errors, noises = [], [], []
    for part in parts:
        _, first = np.unique(part["square"], return_index=True)
        levels.append(part["level"][first] - (np.median(part["level"][first]) if len(first) else 0))
        errors.append(part["level_error"][first])
        noises.append(part["noise"] / np.sqrt(part["pixels"]))
    level, error, noise = (np.concatenate(each).astype(float) for each in (levels, errors, noises))
    if len(level) < 5:
        return None
    square = _robust_scatter(level) ** 2 - float(np.median(error**2))
    return float(np.sqrt(max(square, 0.0)) / np.median(noise))


def _promised_by_exposure(
    frame: Frame, places: np.ndarray, numbers: Sequence[Mapping[str, Any]]
) -> np.ndarray | None:
    """Give the noise (e-) that sky, read noise and exposure time promise for each aperture.

    Each frame is scaled to the exposure time of the stack; of a stack those frames count that cover
    the place. None where the frames' sky or read noise is not known.
    """
    header, grid = primary_header(frame), grid_of(frame)
    seconds, area = float(header.get("EXPTIME") or np.nan), mean_of(numbers, "pixel_area")
    scaled = [each["variance"] * (seconds / each["seconds"]) ** 2 for each in numbers]
    variance = float(np.nanmean(scaled)) if np.isfinite(scaled).any() else float("nan")
    if not variance > 0:
        return None
    if grid is None:
        return np.sqrt(places["pixels"] * variance)
    x, y = places["x"].astype(float), places["y"].astype(float)
    covering = count_covering_frames(
        grid, *grid_to_sky(grid, x, y), x, y, small(frame, "inputs") or ()
    )
    return np.sqrt(places["pixels"] * grid.scale**2 / area * variance / np.maximum(covering, 1))


def _share_in_aperture(tables: Mapping[str, Any]) -> float | None:
    """Give the share of a star's light in the first aperture, by bright stars; None for too few."""
    sources = _stars_of(tables)
    if sources is None or _common_error(sources) > _MAX_COMMON_ERROR:
        return None
    total, error = (np.asarray(sources[name], float) for name in ("FLUX_PSF", "FLUXERR_PSF"))
    good = ((sources["FLAGS_PSF"] & ~_UNSCALED) == 0) & (total > _APERTURE_SNR * error)
    shares = np.asarray(sources["FLUX_APER"][:, 0], float)[good] / total[good]
    return float(np.median(shares)) if len(shares) >= _FEWEST_STARS else None
