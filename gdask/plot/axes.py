"""Pictures and graphs on matplotlib axes, of files, products and Frames, for scripts and notebooks.

Each function takes a file's path or a Frame, and axes to draw on; without axes it makes a figure,
which pyplot does not know of: `axes.figure.savefig(...)`, or `axes.figure` as the last line of a
notebook's cell. Images have the sky's coordinates where the file has a WCS. Pixels are read in
strips and thinned out to the picture; a Frame whose pixels no file holds is computed, one array at
a time.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np

from gdask.headers.numbers import kind_of, read_numbers
from gdask.io.frames import array_headers, primary_header
from gdask.model import GdaskError
from gdask.plot import graphs, measures, raster
from gdask.plot.charts import GRAPH_SIZE, figure
from gdask.plot.layout import (
    Layout,
    celestial,
    compose,
    compose_flags,
    directions,
    fitting_layout,
)
from gdask.plot.planes import (
    Planes,
    frame_of,
    means_on_one_level,
    read_array,
    read_planes,
    step_for,
)
from gdask.plot.show import CATALOG_COLOUR, pixels_of
from gdask.plot.tables import read_each, read_tables
from gdask.types import Frame

Product: TypeAlias = Frame | str | os.PathLike[str]


def image(
    product: Product, axes: Any = None, *, array: int = 1, pixels: int = 1000, grid: bool = False
) -> Any:
    """Draw one array with sky coordinates.

    Parameters
    ----------
    product
        A file or Frame with arrays (y, x).
    axes
        Axes to draw on; None: new ones, WCSAxes where the array has a WCS.
    array
        Number of the array, from 1.
    pixels
        Points along the longer side at most: means of blocks of pixels.
    grid
        Whether lines of RA and Dec are drawn.

    Returns
    -------
    matplotlib axes in pixels of the array (0-based), values in the file's unit; the grey scale is
    asinh about the sky. Raises GdaskError where the file cannot be read or has no such array.
    """
    frame, planes, axes = _one_array(product, axes, array, pixels)
    limits = raster.limits_of(planes.mean, linear=_is_linear(frame))
    shown = axes.imshow(
        planes.mean,
        extent=_extent(planes),
        origin="lower",
        cmap="gray",
        norm=_norm(limits),
        interpolation="nearest",
    )
    axes.set_facecolor("#263447")
    axes.figure.colorbar(shown, ax=axes, label=_unit(frame), pad=0.02)
    _name_axes(axes, grid)
    axes.set_title(_title(frame, array))
    return axes


def dq(product: Product, axes: Any = None, *, array: int = 1, pixels: int = 1000) -> Any:
    """Draw the flagged pixels of one array in colours, over nothing or over what is on `axes`.

    A point has the colour of a flagged pixel as soon as one of its block is flagged. Parameters and
    result as of `image`; a legend tells the numbers. Raises GdaskError where there is no DQ.
    """
    from matplotlib.patches import Patch

    frame, planes, axes = _one_array(product, axes, array, pixels)
    if planes.flags is None:
        raise GdaskError(f"{_name(frame)}: has no DQ (raw files have none)")
    shown = _flag_colours(raster.flag_levels(planes.flags))
    axes.imshow(shown, extent=_extent(planes), origin="lower", interpolation="nearest")
    patches = [
        Patch(color=_rgb(colour), label=f"{name}: {planes.counts[int(bit)]}")
        for bit, name, colour in raster.DQ_COLOURS
        if planes.counts[int(bit)]
    ]
    if patches:
        axes.legend(handles=patches, fontsize="small", loc="upper right")
    _name_axes(axes, False)
    axes.set_title(_title(frame, array))
    return axes


def arrays(
    product: Product,
    axes: Any = None,
    *,
    on_sky: bool = True,
    flags: bool = False,
    pixels: int = 1000,
) -> Any:
    """Draw all arrays of a file as on the sky (North up, East left), or as they were read.

    on_sky: where each array's WCS puts it, on WCSAxes; raises GdaskError without a WCS. Else side
    by side in the order of the detector, in points of the picture. flags: DQ in colours over them.
    pixels: points along the longer side at most. Values in the file's unit, asinh about the sky;
    arrays of a raw file are moved to one level, the median of theirs.
    """
    frame = frame_of(product)
    step, layout = fitting_layout(frame, pixels, on_sky=on_sky)
    planes = read_planes(frame, step)
    system = layout.wcs or (_thinned(celestial(frame), step) if len(planes) == 1 else None)
    axes = axes if axes is not None else _new_axes(system)
    means = means_on_one_level(planes, kind_of(primary_header(frame)))
    values = compose(means, layout)
    norm = _norm(raster.limits_of(values, linear=_is_linear(frame)))
    axes.imshow(values, origin="lower", cmap="gray", norm=norm, interpolation="nearest")
    axes.set_facecolor("#263447")
    if flags:
        _draw_flags(frame, planes, layout, axes)
    if layout.north is not None and system is not None:
        _name_axes(axes, False)
    axes.set_title(_name(frame))
    return axes


def catalog(product: Product, axes: Any, table: Any = None, *, array: int = 1) -> Any:
    """Draw rings around sources on axes that `image` has made.

    table: a table with RAJ2000 and DEJ2000 in degrees, as `gdask.io.catalog.read_catalog` gives it;
    None: the product's own OBJCAT. Gives the axes. Raises GdaskError where there is no catalogue,
    or no WCS for it.
    """
    frame = frame_of(product)
    number = _number(frame, array)
    if table is None:
        own = _tables(frame, ("OBJCAT",), array)["OBJCAT"]
        x, y = (np.asarray(own[name], float) - 1 for name in ("X_IMAGE", "Y_IMAGE"))
    else:
        systems = celestial(frame)
        if not systems:
            raise GdaskError(f"{_name(frame)}: no WCS of the sky, which a catalogue needs")
        ra, dec = (np.asarray(table[name], float) for name in ("RAJ2000", "DEJ2000"))
        shape = int(frame.sizes["y"]), int(frame.sizes["x"])
        x, y = pixels_of(systems[number], shape, ra, dec)
    axes.scatter(x, y, s=60, facecolors="none", edgecolors=[_rgb(CATALOG_COLOUR)])
    return axes


def depth(product: Product, axes: Any = None, *, array: int = 1) -> Any:
    """Draw depth in cells of an array: magnitudes of a point source of 5 sigma, by VAR.

    Without DEPTH5 in the header they are over that of the median cell. Raises GdaskError where
    there is no VAR.
    """
    frame, planes, axes = _one_array(product, axes, array, 1600)
    if planes.variance is None:
        raise GdaskError(f"{_name(frame)}: has no VAR, which tells the depth")
    found = measures.depth_map(planes)
    reference = read_numbers(primary_header(frame)).get("depth_5sigma")
    label = "depth - median (mag)"
    if isinstance(reference, float):
        found, label = found._replace(values=found.values + reference), "5 sigma (mag)"
    graphs.draw_map(axes, found, label)
    _name_axes(axes, False)
    return axes


def background(product: Product, axes: Any = None, *, array: int = 1) -> Any:
    """Draw the sky that is left in cells of an array, in the noise of a pixel about the median."""
    frame, planes, axes = _one_array(product, axes, array, 1600)
    found, noise = measures.background_map(planes)
    if not noise > 0 or not np.isfinite(found.values).any():
        raise GdaskError(f"{_name(frame)}: array {array} has no empty sky")
    values = (found.values - np.nanmedian(found.values)) / noise
    label = "sky - median (noise of a pixel)"
    graphs.draw_map(axes, found._replace(values=values), label, centred=True)
    _name_axes(axes, False)
    return axes


def noise(product: Product, axes: Any = None, *, array: int = 1) -> Any:
    """Draw the histogram of (pixel - sky) / sigma of empty pixels against a Gaussian."""
    frame = frame_of(product)
    planes = read_array(frame, _number(frame, array), step_for(frame, 1600))
    factor = array_headers(frame)[array - 1].get("CORRPIX")
    values = measures.pulls(planes, float(factor) if isinstance(factor, float | int) else 1.0)
    if not len(values):
        raise GdaskError(f"{_name(frame)}: array {array} has no empty pixel with a variance")
    axes = axes if axes is not None else _new_axes(None)
    scatter = graphs.draw_pulls(axes, values)
    axes.set_title(f"{_name(frame)}: scatter {scatter:.3f} of the predicted one")
    return axes


def fwhm(product: Product, axes: Any = None, *, array: int = 1) -> Any:
    """Draw the FWHM of stars (arcsec; pixels without a WCS) at their places in an array."""
    frame = frame_of(product)
    table = _tables(frame, ("OBJCAT",), array)["OBJCAT"]
    systems, ny, nx = celestial(frame), int(frame.sizes["y"]), int(frame.sizes["x"])
    scale = directions(systems[_number(frame, array)], nx / 2, ny / 2)[2] if systems else None
    axes = axes if axes is not None else _new_axes(None)
    graphs.draw_fwhm(axes, *measures.stars_of(table, scale), (ny, nx), graphs.scale_text(scale))
    axes.set_title(_name(frame))
    return axes


def residuals(product: Product, axes: Any = None) -> Any:
    """Draw mean residuals of stars in frames as vectors in the field (arcsec, East to the left).

    Raises GdaskError where the product has no tables RESIDUALS, FRAMES and ASTROM.
    """
    frame = frame_of(product)
    found = measures.residuals_of(_tables(frame, ("RESIDUALS", "FRAMES", "ASTROM")))
    if found is None:
        raise GdaskError(f"{_name(frame)}: its tables hold no residual with a place")
    axes = axes if axes is not None else _new_axes(None)
    graphs.draw_vectors(axes, found, measures.residual_cells(found))
    axes.set_title(f"{_name(frame)}: weighted rms {1000 * found.rms:.2g} mas", y=1.06)
    return axes


def frames(product: Product, axes: Any = None) -> Any:
    """Draw curves over the frames of a stack: FWHM, sky, zero point, weight, residuals, rejects.

    axes: as many as there are curves; None: new ones below one another. Gives an array of axes.
    """
    frame = frame_of(product)
    curves = graphs.curves_of(_tables(frame, ("FRAMES",))["FRAMES"])
    if not curves:
        raise GdaskError(f"{_name(frame)}: its table FRAMES has no numbers")
    if axes is None:
        made = figure((GRAPH_SIZE[0], 0.7 + 1.2 * len(curves)))
        made.subplots_adjust(left=0.15, right=0.97, top=0.97, bottom=0.5 / len(curves))
        axes = made.subplots(len(curves), 1, gridspec_kw={"hspace": 0.35})
    axes = np.atleast_1d(axes)
    if len(axes) < len(curves):
        raise GdaskError(f"{len(axes)} axes for {len(curves)} curves; give one for each")
    for one, (label, values) in zip(axes, curves, strict=False):
        graphs.draw_curve(one, label, values)
    axes[len(curves) - 1].set_xlabel("frame")
    return axes


# What they share -------------------------------------------------------------------------------


def _one_array(product: Product, axes: Any, array: int, pixels: int) -> tuple[Frame, Planes, Any]:
    """Give Frame, planes of one array and axes with its WCS."""
    frame = frame_of(product)
    number = _number(frame, array)
    planes = read_array(frame, number, step_for(frame, pixels))
    systems = celestial(frame)
    return frame, planes, axes if axes is not None else _new_axes(systems[number : number + 1])


def _number(frame: Frame, array: int) -> int:
    count = frame.sizes["detector"]
    if not 1 <= array <= count:
        raise GdaskError(f"{_name(frame)}: no array {array}; it has 1 to {count}")
    return array - 1


def _new_axes(system: Any) -> Any:
    """Make axes on a figure of their own, of the sky where there is a WCS (or a list with one)."""
    if isinstance(system, list):
        system = system[0] if system else None
    made = figure((7.0, 6.0))
    if system is None:
        return made.add_subplot()
    from astropy.visualization.wcsaxes import WCSAxes

    made.subplots_adjust(left=0.19, right=0.97)
    return made.add_subplot(axes_class=WCSAxes, wcs=system)


def _name_axes(axes: Any, grid: bool) -> None:
    if not hasattr(axes, "coords"):
        return
    axes.coords[0].set_axislabel("RA")
    axes.coords[1].set_axislabel("Dec")
    if grid:
        axes.coords.grid(color="#56b4e9", alpha=0.5)


def _norm(limits: raster.Limits) -> Any:
    """Give matplotlib's form of a grey scale: the one of `raster.grey_levels`."""
    from matplotlib.colors import FuncNorm, Normalize

    low, high, soft = limits
    if not np.isfinite(soft):
        return Normalize(low, high)
    return FuncNorm(
        (lambda v: np.arcsinh((v - low) / soft), lambda u: low + soft * np.sinh(u)), low, high
    )


def _extent(planes: Planes) -> tuple[float, float, float, float]:
    rows, columns = planes.mean.shape
    return -0.5, columns * planes.step - 0.5, -0.5, rows * planes.step - 0.5


def _thinned(systems: list[Any], step: int) -> Any:
    """Give the WCS of a picture that has one point for each block; None without a WCS."""
    return systems[0][::step, ::step] if systems else None


def _draw_flags(frame: Frame, planes: list[Planes], layout: Layout, axes: Any) -> None:
    if "dq" not in frame.variables:
        raise GdaskError(f"{_name(frame)}: has no DQ (raw files have none)")
    bits = compose_flags([np.asarray(plane.flags) for plane in planes], layout)
    axes.imshow(_flag_colours(raster.flag_levels(bits)), origin="lower", interpolation="nearest")


def _flag_colours(levels: Any) -> Any:
    colours = np.array([(0, 0, 0, 0), *(colour for *_, colour in raster.DQ_COLOURS)], np.uint8)
    return colours[levels]


def _tables(frame: Frame, names: tuple[str, ...], array: int = 1) -> dict[str, Any]:
    """Read tables of a product, that of one array where there are several."""
    path = frame.attrs.get("tables", "")
    found = read_tables(path, names)
    if missing := [name for name in names if name not in found]:
        raise GdaskError(f"{_name(frame)}: has no table {', '.join(missing)}")
    if len(names) == 1 and len(each := read_each(path, names[0])) >= array:
        return {names[0]: each[array - 1]}
    return found


def _rgb(colour: tuple[int, ...]) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _is_linear(frame: Frame) -> bool:
    return kind_of(primary_header(frame)) in ("flat", "dark")


def _unit(frame: Frame) -> str:
    return str(array_headers(frame)[0].get("BUNIT") or "counts")


def _name(frame: Frame) -> str:
    return str(frame.attrs.get("name", "frame"))


def _title(frame: Frame, array: int) -> str:
    return f"{_name(frame)}, array {array}" if frame.sizes["detector"] > 1 else _name(frame)
