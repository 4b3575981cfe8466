"""Tables of a stack's stars: fluxes and errors in OBJCAT, positions by frame and epoch.

Columns carry a unit (TUNIT) and a description (TCOMM). Fluxes are in electrons, a unit that FITS
tables do not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.io.frames import array_headers, grid_of, primary_header, small
from gdask.io.star_errors import (
    MAS_PER_ARCSEC,
    common_distortion_errors,
    error_floor,
    placement_error,
)
from gdask.kernels.arithmetic import logarithms, sine_cosine
from gdask.kernels.astrometry.residuals import epoch_means, number_epochs
from gdask.kernels.geometry.grid import Grid, footprint, grid_to_sky
from gdask.kernels.geometry.projection import from_sky, tangent_plane, tangent_sky
from gdask.kernels.sources.centroids import APERTURES
from gdask.model import late
from gdask.types import Frame

if TYPE_CHECKING:
    from astropy import table as astable
else:
    astable = late("astropy.table")

LN10 = 2.302585092994046
#: Share of the frames' differences in the cores of stars that fitted fluxes keep when these are
#: taken out: the star image is fitted within 2.5 FWHM, the core is what is within one.
CORE_MISMATCH = 0.25
#: A source of the stack is the star of the joint solution that lies within this distance (FWHM).
SAME_STAR_MAX_FWHM = 0.5
#: Steps to which columns of float64 are rounded, by unit: below 0.0001 mas. Last bits differ from
#: processor to processor.
COLUMN_STEPS = {"deg": 2.0**-36, "pix": 2.0**-20, "mas": 2.0**-20, "arcsec": 2.0**-34}
#: Descriptions of SExtractor's columns; `tables` has their units.
SEXTRACTOR_DESCRIPTIONS = {
    "NUMBER": "running number, from the highest peak down",
    "X_IMAGE": "isophotal centre x, 1-based",
    "Y_IMAGE": "isophotal centre y, 1-based",
    "X_WORLD": "right ascension of X_IMAGE, Y_IMAGE",
    "Y_WORLD": "declination of X_IMAGE, Y_IMAGE",
    "A_IMAGE": "rms along the major axis",
    "B_IMAGE": "rms along the minor axis",
    "THETA_IMAGE": "major axis, from x towards y",
    "ERRX2_IMAGE": "variance of X_IMAGE",
    "ERRY2_IMAGE": "variance of Y_IMAGE",
    "ERRXY_IMAGE": "covariance of X_IMAGE, Y_IMAGE",
    "FLUX_AUTO": "flux in Kron's ellipse (electron)",
    "FLUXERR_AUTO": "error of FLUX_AUTO (electron)",
    "MAG_AUTO": "instrumental, -2.5 log10(electron/s)",
    "MAGERR_AUTO": "error of MAG_AUTO",
    "KRON_RADIUS": "Kron radius in units of A and B",
    "FLUX_ISO": "isophotal flux (electron)",
    "FLUX_MAX": "peak above background (electron)",
    "FLUX_RADIUS": "radius of half the light",
    "FWHM_IMAGE": "FWHM of the core",
    "ELLIPTICITY": "1 - B/A",
    "CLASS_STAR": "1 as wide and round as the stars",
    "BACKGROUND": "sky that was subtracted (electron)",
    "THRESHOLD": "detection limit above it (electron)",
    "ISOAREA_IMAGE": "pixels above the limit",
    "FLAGS": "1 crowded 2 blended 4 saturated 8 cut by the edge",
    "IMAFLAGS_ISO": "DQ bits of its pixels, OR-ed",
    "NIMAFLAGS_ISO": "pixels with any of them",
}
#: Keywords of the common factor of the fitted fluxes.
_SCALE_KEYWORDS = (
    ("scaled", "PSFFACT", "total light over the star image's, in FLUX_PSF"),
    ("escaled", "PSFFERR", "error of PSFFACT (fraction), not in FLUXERR_PSF"),
    ("nscaled", "PSFSTARS", "stars whose curves of growth tell PSFFACT"),
)
#: Unit ('' none) and description of the other columns.
COLUMN_UNITS_AND_DESCRIPTIONS = {
    "XPSF_IMAGE": ("pix", "fitted x, 1-based"),
    "YPSF_IMAGE": ("pix", "fitted y, 1-based"),
    "ERRXPSF_IMAGE": ("pix", "error of XPSF_IMAGE, of the pixels alone"),
    "ERRYPSF_IMAGE": ("pix", "error of YPSF_IMAGE"),
    "RA": ("deg", "right ascension of the fitted position"),
    "DEC": ("deg", "declination of the fitted position"),
    "RA_ERR": ("mas", "error East, with the alignment's"),
    "DEC_ERR": ("mas", "error North, with the alignment's"),
    "FLUX_PSF": ("", "flux of the fitted star image (electron)"),
    "FLUXERR_PSF": ("", "error of FLUX_PSF (electron)"),
    "MAG_PSF": ("mag", "instrumental, -2.5 log10(electron/s)"),
    "MAGERR_PSF": ("mag", "error of MAG_PSF"),
    "FLUX_APER": ("", "flux in circles, radii APER1 ... (electron)"),
    "FLUXERR_APER": ("", "errors of FLUX_APER (electron)"),
    "MAG_APER": ("mag", "instrumental, -2.5 log10(electron/s)"),
    "MAGERR_APER": ("mag", "errors of MAG_APER"),
    "LOST_APER": ("", "share of each circle that is bad or outside"),
    "CHI2_PSF": ("", "1 where the star fits as good stars do"),
    "FLAGS_PSF": ("", "1 neighbour 2 saturated 4 edge 8 bad 16 failed 32 misfit 64 scale"),
    "N_FRAMES": ("", "frames with an array on the position"),
    "STAR": ("", "star in RESIDUALS and EPOCHS, 0 if none"),
    "FRAME": ("", "row of FRAMES, 1-based"),
    "ARRAY": ("", "array of the frame, 1-based"),
    "NAME": ("", "file of the frame"),
    "MJD": ("d", "middle of the exposure; mean over an epoch"),
    "EPOCH": ("", "epoch, 1-based"),
    "N_STARS": ("", "rows in RESIDUALS"),
    "RMS_MAS": ("mas", "weighted rms per axis"),
    "X": ("pix", "x on the array, 1-based"),
    "Y": ("pix", "y on the array, 1-based"),
    "DX": ("arcsec", "measured minus star, East"),
    "DY": ("arcsec", "measured minus star, North"),
    "DX_ERR": ("arcsec", "error of DX, of the pixels alone"),
    "DY_ERR": ("arcsec", "error of DY"),
    "FLUX": ("", "flux in this frame (electron)"),
    "FLUX_ERR": ("", "error of FLUX (electron)"),
}


def with_descriptions(table: astable.Table) -> astable.Table:
    """Give the table with the unit and description of each known column.

    Columns of float64 are rounded to COLUMN_STEPS.
    """
    for name in table.colnames:
        unit, text = COLUMN_UNITS_AND_DESCRIPTIONS.get(
            name, ("", SEXTRACTOR_DESCRIPTIONS.get(name, ""))
        )
        table[name].unit = unit or table[name].unit
        table[name].description = text or table[name].description
        if table[name].dtype == np.float64:
            table[name][:] = in_steps(table[name], str(table[name].unit or ""))
    return table


def in_steps(values: Any, unit: str) -> np.ndarray:
    """Round values of a unit to its COLUMN_STEPS; those of other units stay as they are."""
    step = COLUMN_STEPS.get(unit)
    values = np.asarray(values, np.float64)
    return np.round(values / step) * step if step else values


def add_star_columns(table: astable.Table, stars: np.ndarray, frame: Frame) -> astable.Table:
    """Give OBJCAT of a stack with the columns of its fitted stars.

    `stars` has dtype PHOTOMETRY and a row for each source. Errors are multiplied by the header's
    CORRFAC (noise of resampled pixels is correlated; 1 where it is absent). Errors of RA and Dec
    have the alignment's added, over sqrt(frames): the error beyond photon noise that the solution
    found, and the error of its terms of each frame.
    """
    phu = primary_header(frame)
    headers = (*array_headers(frame), phu)
    factor = next((float(header["CORRFAC"]) for header in headers if header.get("CORRFAC")), 1.0)
    seconds = float(phu.get("EXPTIME") or 0.0) or 1.0
    grid, inputs = grid_of(frame), small(frame, "inputs") or ()
    assert grid is not None  # only stacks have fitted stars
    ra, dec = grid_to_sky(grid, stars["x"], stars["y"])
    cores, core_error = _core_shares(inputs)
    frames, core_sum = sum_over_covering_frames(
        grid, ra, dec, stars["x"], stars["y"], inputs, cores
    )
    stars = _with_cores_of_frames(stars, frames, core_sum, core_error, len(inputs))
    common = common_distortion_errors(ra, dec, inputs)
    of_frames = np.hypot(error_floor(inputs), placement_error(inputs))
    floor = np.hypot(of_frames / np.sqrt(np.maximum(frames, 1)), common)
    table["XPSF_IMAGE"], table["YPSF_IMAGE"] = stars["x"] + 1, stars["y"] + 1
    table["ERRXPSF_IMAGE"], table["ERRYPSF_IMAGE"] = (
        np.float32(factor * stars[name]) for name in ("ex", "ey")
    )
    table["RA"], table["DEC"] = ra, dec
    sine, cosine = sine_cosine.few(grid.pa)
    for name, c, s in (("RA_ERR", cosine, sine), ("DEC_ERR", sine, cosine)):
        pixels = np.hypot(c * stars["ex"], s * stars["ey"])
        table[name] = np.hypot(MAS_PER_ARCSEC * grid.scale * factor * pixels, floor).astype("f4")
    for name, flux, error in (("PSF", "flux", "eflux"), ("APER", "aper", "eaper")):
        value, noise = stars[flux], factor * stars[error]
        table[f"FLUX_{name}"], table[f"FLUXERR_{name}"] = np.float32(value), np.float32(noise)
        table[f"MAG_{name}"], table[f"MAGERR_{name}"] = magnitudes(value, noise, seconds)
    table["LOST_APER"], table["CHI2_PSF"], table["FLAGS_PSF"] = (
        stars["lost"],
        stars["chi2"],
        stars["flags"],
    )
    table["N_FRAMES"], table["STAR"] = (
        frames.astype("i4"),
        star_numbers(ra, dec, stars["fwhm"] * grid.scale, inputs),
    )
    if "MAG_AUTO" in table.colnames:
        table["FLUXERR_AUTO"] *= np.float32(factor)
        table["MAG_AUTO"][:], table["MAGERR_AUTO"][:] = magnitudes(
            table["FLUX_AUTO"], table["FLUXERR_AUTO"], seconds
        )
    table.meta["CORRFAC"] = (factor, "in the errors: correlated noise")
    for number, radius in enumerate(APERTURES, 1):
        arcsec = radius * float(stars["fwhm"][0]) * grid.scale
        table.meta[f"APER{number}"] = (round(arcsec, 5), "[arcsec] radius of an aperture")
    for name, keyword, comment in _SCALE_KEYWORDS:
        if len(stars) and np.isfinite(stars[name][0]):
            table.meta[keyword] = (round(float(stars[name][0]), 6), comment)
    if common.any():
        # The middle value itself: its last bits are the same on every processor.
        middle = float(np.sort(common)[len(common) // 2])
        table.meta["DISTERR"] = (round(middle, 4), "[mas] in RA_ERR: distortion of all frames")
    return with_descriptions(table)


def _core_shares(inputs: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, float]:
    """Give the share of light in the core of stars in each frame over the mean, and its error.

    The error (a fraction) is that of one frame: of the measurement, and what the cores do not tell
    of fitted fluxes. Shares are 1, and the error 0, where they are not known.
    """
    shares = np.array([float(source.get("core_share", np.nan)) for source in inputs])
    errors = np.array([float(source.get("core_error", np.inf)) for source in inputs])
    known = np.isfinite(shares) & np.isfinite(errors)
    if known.sum() < 2:
        return np.ones(len(inputs)), 0.0
    cores = np.where(known, shares, 1.0)
    scatter = float(np.std(cores[known], ddof=1))
    error = np.hypot(float(np.sqrt(np.mean(errors[known] ** 2))), CORE_MISMATCH * scatter)
    return cores / cores.mean(), float(error)


def _with_cores_of_frames(
    stars: np.ndarray, frames: np.ndarray, core_sum: np.ndarray, error: float, inputs: int
) -> np.ndarray:
    """Give stars with fitted fluxes that do not depend on which frames cover a place.

    The star image is that of all frames. Where only some go on, with a larger share of the light in
    the core than the mean, fluxes of it are too large by that. frames: that cover each star;
    core_sum: of their shares; error: of one frame.
    """
    out, n = stars.copy(), np.maximum(frames, 1)
    factor = np.where(frames > 0, n / np.where(core_sum > 0, core_sum, 1.0), 1.0)
    left = error * np.sqrt(np.maximum(1 / n - 1 / max(inputs, 1), 0.0))
    out["flux"] *= factor
    out["eflux"] = np.hypot(out["eflux"] * factor, left * out["flux"])
    return out


def magnitudes(
    flux: np.ndarray, error: np.ndarray, seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    """Give -2.5 log10(flux / seconds) and its error; NaN where the flux is not positive."""
    flux = np.asarray(flux, float)
    positive = flux > 0
    value, noise = np.full(flux.shape, np.nan, "f4"), np.full(flux.shape, np.nan, "f4")
    value[positive] = -2.5 / LN10 * logarithms(flux[positive] / seconds)
    noise[positive] = 2.5 / LN10 * np.asarray(error, float)[positive] / flux[positive]
    return value, noise


def count_covering_frames(
    grid: Grid,
    ra: np.ndarray,
    dec: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    inputs: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """Count the input frames of which an array covers each position.

    All of them count where their shapes are not known. Positions are ra, dec (degrees) and x, y
    (0-based pixels of the grid).
    """
    return sum_over_covering_frames(grid, ra, dec, x, y, inputs, np.ones(len(inputs)))[0]


def sum_over_covering_frames(
    grid: Grid,
    ra: np.ndarray,
    dec: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    inputs: Sequence[Mapping[str, Any]],
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the frames that cover each position as `count_covering_frames` does; sum their values.

    values: of each input.
    """
    if not all("shape" in source and source["geometry"] for source in inputs):
        summed = float(values.sum()) if len(inputs) else 1.0
        return np.full(len(ra), max(len(inputs), 1)), np.full(len(ra), summed)
    count, total = np.zeros(len(ra), int), np.zeros(len(ra))
    for source, value in zip(inputs, map(float, values), strict=True):
        seen, shape = np.zeros(len(ra), bool), source["shape"]
        for geometry in source["geometry"]:
            y1, y2, x1, x2 = footprint(geometry, shape, grid)
            near = np.flatnonzero((x > x1 - 1) & (x < x2) & (y > y1 - 1) & (y < y2) & ~seen)
            px, py = from_sky(geometry, ra[near], dec[near])
            seen[near] = (px > -0.5) & (py > -0.5) & (px < shape[1] - 0.5) & (py < shape[0] - 0.5)
        count += seen
        total += value * seen
    return count, total


def _solved_input(inputs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Give the input that carries the joint solution of all; None where there is none."""
    return next((source for source in inputs if "stars" in source), None)


def star_numbers(
    ra: np.ndarray, dec: np.ndarray, fwhm: np.ndarray, inputs: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Give the star of the joint solution at each position: 1-based row of its list, 0 for none.

    `ra` and `dec` are in degrees, `fwhm` in arcsec.
    """
    from scipy.spatial import cKDTree

    solution = _solved_input(inputs)
    out = np.zeros(len(ra), "i4")
    if solution is None or not len(ra) or not len(solution["stars"]):
        return out
    stars = solution["stars"]
    positions, star_positions = (
        np.column_stack(tangent_plane(a, d, *solution["centre"]))
        for a, d in ((ra, dec), (stars["ra"], stars["dec"]))
    )
    solved = np.flatnonzero(np.isfinite(star_positions).all(axis=1) & (stars["n"] > 0))
    if len(solved):
        distance, index = cKDTree(star_positions[solved]).query(np.nan_to_num(positions, nan=1e9))
        near = distance < SAME_STAR_MAX_FWHM * fwhm
        out[near] = solved[index[near]] + 1
    return out


def solution_tables(inputs: Sequence[Mapping[str, Any]]) -> dict[str, astable.Table]:
    """Give RESIDUALS, FRAMES and EPOCHS of a stack's joint solution.

    There are none where its frames were not solved together.
    RESIDUALS names frames by their row in FRAMES, so that it has no texts: 50 bytes a row.
    """
    solution, used = _solved_input(inputs), [source for source in inputs if "residuals" in source]
    if solution is None or not used:
        return {}
    mjd = np.array([source["mjd"] for source in used], float)
    epoch, times = number_epochs(np.where(np.isfinite(mjd), mjd, 0.0))
    rows = np.concatenate([source["residuals"] for source in used])
    frame = np.repeat(np.arange(len(used)), [len(source["residuals"]) for source in used])
    frames = astable.Table(
        {
            "FRAME": np.arange(1, len(used) + 1, dtype="i2"),
            "NAME": [source["name"] for source in used],
            "MJD": mjd,
            "EPOCH": (epoch + 1).astype("i2"),
            "N_STARS": np.array([len(s["residuals"]) for s in used], "i4"),
            "RMS_MAS": np.array([source["rms_mas"] for source in used], "f4"),
        }
    )
    residuals = astable.Table(
        {
            "STAR": rows["star"] + np.int32(1),
            "FRAME": (frame + 1).astype("i2"),
            "ARRAY": rows["array"] + np.int16(1),
            "MJD": mjd[frame],
            "X": rows["x"] + np.float32(1),
            "Y": rows["y"] + np.float32(1),
            "DX": rows["dx"],
            "DY": rows["dy"],
            "DX_ERR": rows["edx"],
            "DY_ERR": rows["edy"],
            "FLUX": rows["flux"],
            "FLUX_ERR": rows["eflux"],
            "FLAGS_PSF": rows["flags"],
        }
    )
    tables = {
        "RESIDUALS": residuals,
        "FRAMES": frames,
        "EPOCHS": _epochs_table(
            solution, rows, epoch[frame], times, _placement_errors_by_epoch(used, epoch)
        ),
    }
    return {name: with_descriptions(table) for name, table in tables.items()}


def _placement_errors_by_epoch(used: Sequence[Mapping[str, Any]], epoch: np.ndarray) -> np.ndarray:
    """Give the rms error per frame and axis (mas) with which frames of each epoch are placed."""
    count = int(epoch.max(initial=-1)) + 1
    return np.array(
        [
            placement_error([source for source, k in zip(used, epoch, strict=True) if k == number])
            for number in range(count)
        ]
    )


def _epochs_table(
    solution: Mapping[str, Any],
    rows: np.ndarray,
    epoch: np.ndarray,
    times: np.ndarray,
    place_errors: np.ndarray,
) -> astable.Table:
    """Give the mean position of each star in each epoch.

    `place_errors` has the error per frame with which the frames of each epoch are placed (mas).
    """
    means = epoch_means(rows, epoch, solution["floor_mas"] / MAS_PER_ARCSEC)
    stars = solution["stars"][means["star"]]
    ra, dec = tangent_sky(stars["x"] + means["dx"], stars["y"] + means["dy"], *solution["centre"])
    common = place_errors[means["epoch"]] / np.sqrt(means["n"])
    return astable.Table(
        {
            "STAR": means["star"] + np.int32(1),
            "EPOCH": means["epoch"] + np.int16(1),
            "MJD": times[means["epoch"]],
            "RA": ra,
            "DEC": dec,
            "RA_ERR": np.hypot(MAS_PER_ARCSEC * means["edx"], common).astype("f4"),
            "DEC_ERR": np.hypot(MAS_PER_ARCSEC * means["edy"], common).astype("f4"),
            "N_FRAMES": means["n"],
        }
    )
