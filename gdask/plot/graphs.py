"""Graphs of a product, drawn on matplotlib axes that the caller gives. Nothing here uses pyplot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gdask.plot.measures import CellMap, ResidualCells, Residuals, robust_scatter
from gdask.types import Arcsec, Image

#: Colours of Okabe and Ito (Color Universal Design, 2008).
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#808080"
#: Bins of the histogram of pulls: from -6 to 6.
PULL_RANGE, PULL_BINS = 6.0, 96


def draw_map(axes: Any, found: CellMap, label: str, *, centred: bool = False, **limits: Any) -> Any:
    """Draw a map in cells, in pixels of the array (0-based), with a colour bar; gives the image.

    centred: whether the colours are those of a difference from 0. limits: vmin, vmax.
    """
    rows, columns = found.values.shape
    extent = (-0.5, columns * found.side - 0.5, -0.5, rows * found.side - 0.5)
    known = found.values[np.isfinite(found.values)]
    if centred and not limits:
        largest = float(np.percentile(np.abs(known), 98)) if len(known) else 1.0
        limits = {"vmin": -(largest or 1.0), "vmax": largest or 1.0}
    shown = axes.imshow(
        found.values,
        origin="lower",
        extent=extent,
        cmap="PuOr" if centred else "cividis",
        interpolation="nearest",
        **limits,
    )
    axes.set_facecolor("#d8d8d8")
    axes.figure.colorbar(shown, ax=axes, label=label)
    axes.set_xlabel("x (pixel)")
    axes.set_ylabel("y (pixel)")
    return shown


def draw_fwhm(axes: Any, x: Any, y: Any, fwhm: Any, shape: tuple[int, int], unit: str) -> Any:
    """Draw the FWHM of stars at their places (pixels, 0-based) on an array of a shape (ny, nx)."""
    low, high = np.percentile(fwhm, (5, 95)) if len(fwhm) else (0.0, 1.0)
    if not high > low:
        low, high = low - 0.05 * abs(low) - 1e-3, high + 0.05 * abs(high) + 1e-3
    size = float(np.clip(9000 / max(len(fwhm), 1), 6, 60))
    shown = axes.scatter(x, y, c=fwhm, s=size, cmap="viridis", vmin=low, vmax=high)
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(-0.5, shape[0] - 0.5)
    axes.set_aspect("equal")
    axes.figure.colorbar(shown, ax=axes, label=f"FWHM ({unit})")
    axes.set_xlabel("x (pixel)")
    axes.set_ylabel("y (pixel)")
    return shown


def draw_pulls(axes: Any, values: Image) -> float:
    """Draw the histogram of pulls against a Gaussian of scatter 1; gives their robust scatter."""
    edges = np.linspace(-PULL_RANGE, PULL_RANGE, PULL_BINS + 1)
    numbers, _ = np.histogram(values, edges)
    scatter = robust_scatter(values)
    middles = (edges[1:] + edges[:-1]) / 2
    expected = len(values) * np.exp(-(middles**2) / 2) / math.sqrt(2 * math.pi) * np.diff(edges)
    axes.stairs(numbers, edges, color=BLUE, fill=True, alpha=0.35, label="pixels of empty sky")
    axes.stairs(numbers, edges, color=BLUE)
    axes.plot(middles, expected, color=ORANGE, linewidth=1.8, label="Gaussian of scatter 1")
    axes.set_yscale("log")
    axes.set_ylim(0.5, 3 * max(numbers.max(initial=1), expected.max(initial=1)))
    axes.set_xlim(-PULL_RANGE, PULL_RANGE)
    axes.set_xlabel("(pixel - sky) / sigma")
    axes.set_ylabel("pixels")
    axes.legend(loc="upper right", fontsize="small")
    return scatter


def draw_histogram(axes: Any, values: Image, label: str) -> None:
    """Draw the histogram of pixel values, from their 0.05th to their 99.95th percentile."""
    found = values[np.isfinite(values)]
    low, high = np.percentile(found, (0.05, 99.95)) if len(found) else (0.0, 1.0)
    if not high > low:
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    numbers, edges = np.histogram(found, 128, (float(low), float(high)))
    axes.stairs(numbers, edges, color=BLUE, fill=True, alpha=0.35)
    axes.stairs(numbers, edges, color=BLUE)
    axes.set_yscale("log")
    axes.set_ylim(0.5, 3 * max(int(numbers.max()), 1))
    axes.set_xlabel(label)
    axes.set_ylabel("pixels")


def draw_vectors(axes: Any, found: Residuals, cells: ResidualCells) -> None:
    """Draw the residuals in the field: points where stars were measured, mean vectors in cells.

    East is to the left. The vectors are enlarged; a key tells their scale.
    """
    axes.plot(found.xi, found.eta, ".", color=GREY, markersize=2, alpha=0.6)
    field = max(np.ptp(found.xi), np.ptp(found.eta), 1e-3)
    if len(cells.xi):
        lengths = np.hypot(cells.dx, cells.dy)
        unit = _round_number(float(np.percentile(lengths, 90)) or 1e-3)
        quiver = axes.quiver(
            cells.xi,
            cells.eta,
            cells.dx,
            cells.dy,
            angles="xy",
            scale_units="xy",
            scale=unit / (0.1 * field),
            color=BLUE,
            width=0.006,
        )
        axes.quiverkey(quiver, 0.82, 1.04, unit, f"{1000 * unit:g} mas", labelpos="E")
    axes.set_aspect("equal")
    margin = 0.08 * field
    axes.set_xlim(found.xi.max() + margin, found.xi.min() - margin)
    axes.set_ylim(found.eta.min() - margin, found.eta.max() + margin)
    axes.set_xlabel("East of the pointing (arcsec)")
    axes.set_ylabel("North (arcsec)")


def _round_number(value: float) -> float:
    """Give the nearest of 1, 2, 5 times a power of ten that is not less."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= value * 0.999)


def draw_scatter(axes: Any, found: Residuals) -> None:
    """Draw residuals against one another (mas), with a circle of their weighted rms per axis."""
    dx, dy = 1000 * found.dx, 1000 * found.dy
    rms = 1000 * found.rms
    reach = max(1.1 * float(np.percentile(np.abs([dx, dy]), 97)), 3 * rms, 1e-3)
    alpha = float(np.clip(300 / len(dx), 0.15, 0.8))
    axes.plot(dx, dy, ".", color=BLUE, markersize=4, alpha=alpha)
    turn = np.linspace(0, 2 * math.pi, 73)
    axes.plot(rms * np.cos(turn), rms * np.sin(turn), color=ORANGE, linewidth=1.6)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlim(reach, -reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel("residual East (mas)")
    axes.set_ylabel("residual North (mas)")


#: Curves of the frames: column of FRAMES, label, factor.
CURVES = (
    ("FWHM", "FWHM\n(arcsec)", 1.0),
    ("SKY", "sky\n(1000 e-)", 1e-3),
    ("THRUPUT", "zero point -\nmedian (mag)", 1.0),
    ("WEIGHT", "weight", 1.0),
    ("RMS_MAS", "residual\nrms (mas)", 1.0),
    ("REJECTED", "rejected\n(%)", 100.0),
)


def curves_of(table: Any) -> list[tuple[str, Any]]:
    """Give (label, values over the frames) of the columns of FRAMES that have values."""
    found = []
    for name, label, factor in CURVES:
        if table is None or name not in table.colnames:
            continue
        values = factor * np.asarray(np.ma.filled(table[name].astype(float), np.nan))
        if name == "THRUPUT":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = 2.5 * np.log10(values)
        if np.isfinite(values).any():
            found.append((label, values))
    return found


def draw_curve(axes: Any, label: str, values: Any, colour: str = BLUE) -> None:
    """Draw one curve over the frames' numbers, from 1."""
    numbers = np.arange(1, len(values) + 1)
    axes.plot(numbers, values, "o-", color=colour, markersize=4, linewidth=1)
    axes.axhline(float(np.nanmedian(values)), color=GREY, linewidth=0.8, linestyle="--")
    axes.set_ylabel(label, fontsize="small")
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def scale_text(scale: Arcsec | None) -> str:
    """Name the unit of lengths on an image: arcsec where a scale is known, else pixels."""
    return "arcsec" if scale else "pixel"
