"""Graphs of a product, as PNG: noise, maps in cells, FWHM, residuals, curves of the frames."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gdask.io.frames import array_headers
from gdask.plot import graphs, measures
from gdask.plot.layout import celestial, directions
from gdask.plot.material import Made, Material, Missing, Picture

#: Size of graphs: inches, at dots per inch.
GRAPH_SIZE, WIDE_SIZE, DPI = (6.0, 4.6), (9.6, 4.6), 96


def figure(size: tuple[float, float] = GRAPH_SIZE) -> Any:
    """Make a figure of a size in inches, which pyplot does not know of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=size, dpi=DPI)
    FigureCanvasAgg(made)
    return made


def _graph(key: str, title: str, alt: str, made: Any) -> list[Made]:
    stream = io.BytesIO()
    made.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    width, height = (int(v) for v in made.get_size_inches() * DPI)
    return [(Picture(key, f"{key}.png", title, alt, width, height), stream.getvalue())]


def noise(material: Material) -> list[Made]:
    if any(plane.variance is None for plane in material.planes):
        raise Missing("the file has no VAR")
    factors = [_correlation(header) for header in array_headers(material.frame)]
    values = np.concatenate(
        [measures.pulls(plane, f) for plane, f in zip(material.planes, factors, strict=False)]
    )
    if not len(values):
        raise Missing("no pixel of empty sky")
    made = figure()
    axes = made.add_axes((0.13, 0.13, 0.84, 0.77))
    scatter = graphs.draw_pulls(axes, values)
    beyond = float((np.abs(values) > 5).mean())
    axes.set_title(f"noise of empty pixels: {scatter:.3f} of the predicted one")
    alt = (
        f"Histogram of (pixel - sky) / sigma of {len(values)} pixels of empty sky beside a "
        f"Gaussian: the measured scatter is {scatter:.3f} of the predicted one (1 is right); "
        f"{100 * beyond:.2g} % lie beyond 5 sigma."
    )
    return _graph("noise", "Noise", alt, made)


def _correlation(header: Any) -> float:
    value = header.get("CORRPIX")
    return float(value) if isinstance(value, float | int) and value > 0 else 1.0


def depth_map(material: Material) -> list[Made]:
    plane = material.planes[0]
    if plane.variance is None:
        raise Missing("the file has no VAR")
    found = measures.depth_map(plane)
    known = found.values[np.isfinite(found.values)]
    if not len(known):
        raise Missing("no cell has a variance")
    reference = material.numbers.get("depth_5sigma")
    made = figure()
    axes = made.add_axes((0.13, 0.13, 0.8, 0.77))
    absolute = isinstance(reference, float)
    if isinstance(reference, float):
        found = found._replace(values=found.values + reference)
    low, high = (float(v) for v in np.percentile(found.values[np.isfinite(found.values)], (2, 100)))
    label = "5 sigma, point source (mag)" if absolute else "depth - median (mag)"
    graphs.draw_map(axes, found, label, vmin=min(low, high - 0.1), vmax=high)
    axes.set_title("depth" if absolute else "depth over the median's")
    p10 = float(np.percentile(known, 10))
    alt = (
        f"Map of depth in cells of {found.side} pixels: "
        + (f"the median is {reference:.2f} mag (5 sigma), " if absolute else "")
        + f"the deepest cell is {known.max():.2f} mag above the median, a tenth of the cells are "
        f"{-p10:.2f} mag or more below it; {_covered(found.values)} % of the picture is covered."
    )
    return _graph("depth_map", "Depth map", alt, made)


def _covered(values: Any) -> str:
    return f"{100 * float(np.isfinite(values).mean()):.0f}"


def background(material: Material) -> list[Made]:
    found, noise = measures.background_map(material.planes[0])
    known = found.values[np.isfinite(found.values)]
    if not len(known) or not noise > 0:
        raise Missing("no cell of empty sky")
    uneven = measures.unevenness(found, noise)
    made = figure()
    axes = made.add_axes((0.13, 0.13, 0.8, 0.77))
    middle = float(np.median(known))
    shown = found._replace(values=(found.values - middle) / noise)
    graphs.draw_map(axes, shown, "sky - median (noise of a pixel)", centred=True)
    axes.set_title(f"cells of {found.side} pixels scatter by {scatter_text(uneven)}")
    largest = float(np.nanmax(np.abs(shown.values)))
    beyond = " beyond their errors" if uneven > 0 else ""
    alt = (
        f"Map of the sky that is left in cells of {found.side} pixels: cells scatter by "
        f"{scatter_text(uneven)}{beyond}; the largest departs by {largest:.3g} from "
        f"the median ({middle:.3g} electron)."
    )
    return _graph("background", "Background", alt, made)


def scatter_text(uneven: float) -> str:
    """Say by how much cells scatter beyond their errors, in the noise of a pixel; never 0."""
    if not math.isfinite(uneven):
        return "an amount that is not known"
    return f"{uneven:.3g} of a pixel's noise" if uneven > 0 else "no more than their errors"


def fwhm(material: Material) -> list[Made]:
    if "OBJCAT" not in material.tables:
        raise Missing("the product has no table OBJCAT")
    systems, plane = celestial(material.frame), material.planes[0]
    ny, nx = plane.shape
    scale = directions(systems[0], nx / 2, ny / 2)[2] if systems else None
    x, y, fwhm = measures.stars_of(material.tables["OBJCAT"], scale)
    if not len(fwhm):
        raise Missing("OBJCAT has no star without flags")
    made, unit = figure(), graphs.scale_text(scale)
    axes = made.add_axes((0.13, 0.13, 0.8, 0.77))
    graphs.draw_fwhm(axes, x, y, fwhm, plane.shape, unit)
    middle, scatter = float(np.median(fwhm)), measures.robust_scatter(fwhm)
    axes.set_title(f"median of fits to {len(fwhm)} single stars: {middle:.3g} {unit}")
    alt = (
        f"FWHM of {len(fwhm)} stars of OBJCAT at their places in the image: median of the fits to "
        f"single stars {middle:.3g} {unit}, scatter {scatter:.3g} {unit}."
    )
    return _graph("fwhm", "FWHM", alt, made)


def residuals(material: Material) -> list[Made]:
    found = measures.residuals_of(material.tables)
    if found is None:
        raise Missing("the product has no residuals (tables RESIDUALS, FRAMES, ASTROM)")
    cells = measures.residual_cells(found)
    made = figure(WIDE_SIZE)
    graphs.draw_vectors(made.add_axes((0.08, 0.13, 0.44, 0.75)), found, cells)
    graphs.draw_scatter(made.add_axes((0.6, 0.13, 0.38, 0.75)), found)
    rms = 1000 * found.rms
    made.suptitle(f"{len(found.dx)} residuals of {found.stars} stars: weighted rms {rms:.2g} mas")
    chance = f"{cells.over_chance:.2f}" if math.isfinite(cells.over_chance) else "unknown"
    alt = (
        f"{len(found.dx)} residuals of {found.stars} stars in the frames: weighted rms {rms:.2g} "
        f"mas per axis. Left, mean vectors in {len(cells.xi)} cells of the field, whose size is "
        f"{chance} of that of random residuals (1 is random); right, residuals East and North with "
        "a circle of the rms."
    )
    return _graph("residuals", "Astrometric residuals", alt, made)


def frames(material: Material) -> list[Made]:
    table = material.tables.get("FRAMES")
    curves = graphs.curves_of(table)
    if table is None or not curves:
        raise Missing("the product has no table FRAMES with curves")
    rows = math.ceil(len(curves) / 2)
    made = figure((9.6, 0.5 + 1.5 * rows))
    grid = made.add_gridspec(
        rows,
        2,
        left=0.1,
        right=0.98,
        top=0.97,
        bottom=0.5 / (0.5 + 1.5 * rows),
        wspace=0.28,
        hspace=0.3,
    )
    for number, (label, values) in enumerate(curves):
        axes = made.add_subplot(grid[number % rows, number // rows])
        graphs.draw_curve(axes, label, values)
        if number % rows == rows - 1 or number == len(curves) - 1:
            axes.set_xlabel("frame", fontsize="small")
    alt = f"Curves over the {len(table)} frames: " + "; ".join(_curve_texts(curves)) + "."
    return _graph("frames", "Frames", alt, made)


def _curve_texts(curves: list[tuple[str, Any]]) -> Iterator[str]:
    for label, values in curves:
        low, high = np.nanmin(values), np.nanmax(values)
        yield f"{' '.join(label.split())} from {low:.3g} to {high:.3g}"


def histogram(material: Material) -> list[Made]:
    values = np.concatenate([plane.data[plane.empty] for plane in material.planes])
    if not len(values):
        raise Missing("no usable pixel")
    made = figure()
    unit = str(array_headers(material.frame)[0].get("BUNIT") or "")
    unit = unit or ("flat" if material.kind == "flat" else "counts")
    graphs.draw_histogram(made.add_axes((0.13, 0.13, 0.84, 0.83)), values, f"pixel ({unit})")
    middle, scatter = float(np.median(values)), measures.robust_scatter(values)
    alt = (
        f"Histogram of {len(values)} usable pixels: median {middle:.4g}, robust scatter "
        f"{scatter:.3g} {unit}."
    )
    return _graph("histogram", "Histogram", alt, made)
