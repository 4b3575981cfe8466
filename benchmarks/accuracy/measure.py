"""All figures of merit of one stack: positions, fluxes, noise, background, cosmic rays."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

from benchmarks.accuracy.cosmic_rays import charge_figures
from benchmarks.accuracy.ideal import ideal_stack
from benchmarks.accuracy.matched_stack import APERTURE, MatchedStack, with_star_model
from benchmarks.accuracy.noise import background_figures, noise_figures
from benchmarks.accuracy.photometry import UNMEASURABLE, are_isolated, flux_figures
from benchmarks.accuracy.positions import (
    catalogue_pulls,
    displacement,
    find_stars,
    photon_limits,
    position_figures,
)
from benchmarks.accuracy.sky import sky_figures
from gdask.kernels.geometry.projection import Floats
from gdask.model import DQ
from gdask.types import Mask

#: S/N (of the photon limit) above which isolated stars must be in OBJCAT.
COMPLETENESS_SNR = 10.0
#: FWHM of a Gaussian over its standard deviation.
FWHM_PER_SIGMA = 2.3548


def figures_of_merit(
    stack: MatchedStack, catalog_mas: float | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Figures by name, and what the plots show.

    catalog_mas: error per axis of the reference catalogue that the night was reduced with.
    """
    fwhm, found = find_stars(stack.data, stack.variance, stack.dq)
    places = stack.x, stack.y, stack.flux
    isolated = are_isolated(*places, 2.5 * fwhm, 0.05)
    moved = displacement(stack, found, isolated, catalog_mas is None)
    stack = with_star_model(stack, moved)
    limits, whole = photon_limits(stack), _whole_stars(stack)
    wanted = whole & are_isolated(*places, 2.5 * fwhm, 0.01)
    figures: dict[str, float] = {"fwhm_px": fwhm, "frames": len(stack.frame_rows)}
    plots: dict[str, np.ndarray] = {}
    for part in (
        position_figures(stack, found, limits, wanted, catalog_mas, plots),
        flux_figures(stack, whole, plots),
        noise_figures(stack, plots),
        background_figures(stack, plots),
        sky_figures(stack, ideal_stack(stack, moved)),
        charge_figures(stack),
        _completeness(stack, wanted, limits, fwhm),
        catalogue_pulls(stack, wanted, 0.75 * fwhm),
    ):
        figures |= part
    return figures, plots


def _whole_stars(stack: MatchedStack) -> Mask:
    """Stars in the stack with no unusable or saturated pixel within 8 pixels."""
    margin = int(APERTURE) + 2
    i, j = np.rint(stack.x).astype(int), np.rint(stack.y).astype(int)
    ny, nx = stack.dq.shape
    whole = (i >= margin) & (j >= margin) & (i < nx - margin) & (j < ny - margin)
    whole &= stack.frame_count > 0
    unusable = (stack.dq & (UNMEASURABLE | int(DQ.SATURATED))) != 0
    near_unusable = maximum_filter(unusable.astype(np.uint8), size=2 * 8 + 1)
    whole[whole] = near_unusable[j[whole], i[whole]] == 0
    return whole


def _completeness(
    stack: MatchedStack, wanted: Mask, limits: Floats, fwhm: float
) -> dict[str, float]:
    """Share of isolated stars with S/N above COMPLETENESS_SNR that OBJCAT has.

    S/N is that of the photon limit: FWHM / 2.35 / limit.
    """
    wanted = wanted & (fwhm / FWHM_PER_SIGMA / limits > COMPLETENESS_SNR)
    listed = np.column_stack([stack.catalog["X_IMAGE"] - 1, stack.catalog["Y_IMAGE"] - 1])
    distance, _ = cKDTree(listed).query(np.column_stack([stack.x, stack.y]))
    found = 100 * float(np.mean(distance[wanted] < 0.75 * fwhm)) if wanted.any() else float("nan")
    return {"completeness_percent": found, "complete_stars": int(wanted.sum())}
