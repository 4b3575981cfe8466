"""The scoreboard as JSON, as a Markdown table with targets, and as plots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.accuracy.cases import TARGETS, limits

#: Columns without a target that the table shows too.
MORE_COLUMNS = (
    "bright_stars",
    "photon_limit_mas",
    "rms_mas",
    "floor_mas",
    "astrometry_mad_mas",
    "tie_expected_mas",
    "tie_beyond_catalog_mas",
    "catalog_limit_mas",
    "offset_east_mas",
    "offset_north_mas",
    "flux_scatter_percent",
    "flux_surface_noise_percent",
    "flux_pull_plain",
    "sky_pull_plain",
    "sky_tail_permille",
    "aperture_pull_plain",
    "corrpix",
    "star_loss_worst_percent",
    "background_level_e",
    "background_rms_e",
    "block_rms_e",
    "block_ideal_e",
    "edge_step_worst_e",
    "seconds",
    "memory_mb",
)


def judge(case: str, column: str, figures: dict[str, float]) -> str:
    """'ok', 'SHORT' where the target is missed, 'open' where by less than two errors.

    '' where the case has no such number.
    """
    value = figures.get(column)
    if value is None or not math.isfinite(value):
        return ""
    low, high = limits(case, column)
    missed_by = max(low - value, value - high)
    if missed_by <= 0:
        return "ok"
    return "open" if missed_by < 2 * (error_of(column, figures) or 0) else "SHORT"


def error_of(column: str, figures: dict[str, float]) -> float | None:
    """The error of the measurement itself, where it was measured."""
    name = column.removesuffix("_percent")
    return figures.get(f"{name}_error_percent" if name != column else f"{column}_error")


def shortfalls(results: dict[str, dict[str, float]]) -> list[str]:
    """What falls short of its target, one line each."""
    lines = []
    for case, figures in results.items():
        for column, target in TARGETS.items():
            if judge(case, column, figures) == "SHORT":
                low, high = limits(case, column)
                value = number(column, figures)
                text = f"{case}: {column} = {value}, target {low:g} to {high:g} {target.unit}"
                lines.append(text.rstrip())
    return lines


def markdown(results: dict[str, dict[str, float]], size: str) -> str:
    """Cases down, columns across: figures with targets (a miss is marked SHORT), then others."""
    targets = "; ".join(
        f"`{name}` {target.low:g} to {target.high:g} {target.unit} ({target.about})"
        for name, target in TARGETS.items()
    )
    lines = [f"# Accuracy, {size} size", "", f"Targets: {targets}.", ""]
    for columns in (tuple(TARGETS), MORE_COLUMNS):
        rows = [
            [case, *(_cell(case, name, figures) for name in columns)]
            for case, figures in results.items()
        ]
        lines += [*table_lines(["case", *columns], rows), ""]
    missing = shortfalls(results)
    lines += [
        "(open): misses its target by less than twice the error of its measurement.",
        "",
        f"{len(missing)} fall short:" if missing else "Nothing falls short.",
        "",
        *(f"- {line}" for line in missing),
    ]
    return "\n".join(lines) + "\n"


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (columns, *rows)]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


def number(name: str, figures: dict[str, float]) -> str:
    """A figure with its error, where it was measured; '' where there is no such figure."""
    if not math.isfinite(figures.get(name, math.nan)):
        return ""
    error = error_of(name, figures)
    known = error is not None and math.isfinite(error)
    return f"{figures[name]:.4g}" + (f" +- {error:.2g}" if known else "")


def _cell(case: str, name: str, figures: dict[str, float]) -> str:
    mark = judge(case, name, figures) if name in TARGETS else ""
    return number(name, figures) + {"SHORT": " SHORT", "open": " (open)"}.get(mark, "")


def write(results: dict[str, dict[str, float]], size: str, out: Path) -> Path:
    """Write accuracy.json and accuracy.md into `out`; the path of the table."""
    (out / "accuracy.json").write_text(
        json.dumps({"size": size, "cases": results, "short": shortfalls(results)}, indent=1)
    )
    table = out / "accuracy.md"
    table.write_text(markdown(results, size))
    return table


def plot(case: str, plots: dict[str, np.ndarray], out: Path) -> None:
    """Draw position residuals, flux ratios, pulls and background of one case as a PNG.

    Nothing without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    if "shift" in plots:
        x, y, shift = plots["star_x"], plots["star_y"], plots["shift"]
        arrows = axes[0, 0].quiver(
            x, y, shift[0], shift[1], np.hypot(*shift), angles="xy", cmap="viridis"
        )
        axes[0, 0].quiverkey(arrows, 0.9, 1.03, 1.0, "1 mas")
        axes[0, 0].set(
            title="positions - truth (mas)", xlabel="x (pixel)", ylabel="y (pixel)", aspect="equal"
        )
    if "ratio" in plots:
        axes[0, 1].errorbar(
            plots["phot_flux"], plots["ratio"] - 1, plots["ratio_error"], fmt=".", alpha=0.5
        )
        axes[0, 1].axhline(0, color="k", lw=0.5)
        axes[0, 1].set(
            title="flux / truth - 1", xscale="log", xlabel="electrons", ylim=(-0.03, 0.03)
        )
    if "sky_pull" in plots:
        bins = np.linspace(-6, 6, 121)
        axes[1, 0].hist(plots["sky_pull"], bins, density=True, histtype="step")
        axes[1, 0].plot(bins, np.exp(-(bins**2) / 2) / np.sqrt(2 * np.pi), "k", lw=0.7)
        axes[1, 0].set(title="blank pixels / sqrt(VAR) / CORRPIX", yscale="log", ylim=(1e-6, 1))
    if "background" in plots and np.isfinite(plots["background"]).any():
        spread = np.nanpercentile(np.abs(plots["background"]), 95)
        image = axes[1, 1].imshow(
            plots["background"], origin="lower", vmin=-spread, vmax=spread, cmap="RdBu"
        )
        figure.colorbar(image, ax=axes[1, 1])
        axes[1, 1].set(title="background residual (e-)")
    figure.suptitle(case)
    figure.savefig(out / f"{case}.png", dpi=90)
