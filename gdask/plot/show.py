"""One picture of one file, as people ask for it: `gdask show`, previews beside products."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.headers.numbers import kind_of
from gdask.instruments import tags
from gdask.io.catalog import read_catalog
from gdask.io.frames import primary_header
from gdask.io.whole import write_whole
from gdask.model import GdaskError
from gdask.plot import raster
from gdask.plot.layout import Layout, celestial, compose, fitting_layout
from gdask.plot.planes import Planes, frame_of, means_on_one_level, read_planes
from gdask.plot.tables import read_each
from gdask.plot.views import flags_view, mask_view
from gdask.types import Frame

if TYPE_CHECKING:
    from PIL import Image as pil

#: Colours of the rings around the sources of the file, and around those of a catalogue.
OWN_COLOUR, CATALOG_COLOUR = (86, 180, 233), (240, 228, 66)
#: Most rings that are drawn; of more sources, the first in the table.
MAX_RINGS = 20_000


class Look(NamedTuple):
    """How a file is to be shown.

    Attributes
    ----------
    pixels
        Longer side of the picture, at most.
    as_read
        Whether arrays lie as the detector has them, and not as on the sky.
    dq, objects
        Whether flagged pixels, and the sources of the file's OBJCAT, are drawn over it.
    catalog
        A file of positions (see `gdask.io.catalog`) that are drawn over it.
    """

    pixels: int = 1600
    as_read: bool = False
    dq: bool = False
    objects: bool = False
    catalog: str | None = None


class View(NamedTuple):
    """What a picture is made of: the Frame, its arrays at the picture's scale, where they lie."""

    frame: Frame
    kind: str
    planes: list[Planes]
    layout: Layout


def draw(product: Frame | str | os.PathLike[str], look: Look | None = None) -> pil.Image:
    """Draw a raw file, calibration, product or Frame.

    Raises
    ------
    GdaskError
        It cannot be read, has no image, is a spectrum, or has not what `look` asks for (DQ, OBJCAT,
        a WCS for a catalogue; columns of the catalogue).
    """
    look = look or Look()
    view = view_of(product, look)
    return drawn(view, look, grey_limits(view))


def view_of(product: Frame | str | os.PathLike[str], look: Look) -> View:
    """Read what a picture of this look needs. Errors are those of `draw`."""
    frame = frame_of(product)
    name = str(frame.attrs.get("name", "frame"))
    if "SPECT" in _tags(frame):
        raise GdaskError(f"{name}: a spectrum; gdask shows images")
    if look.dq and "dq" not in frame.variables:
        raise GdaskError(f"{name}: has no DQ (raw files have none); leave --dq out")
    has_sky = bool(celestial(frame))
    if look.catalog and not has_sky:
        raise GdaskError(f"{name}: no WCS of the sky, which places of a catalogue need")
    kind = kind_of(primary_header(frame)) if "data" in frame.variables else "bpm"
    on_sky = has_sky and not look.as_read and kind not in ("flat", "dark", "bpm")
    step, layout = fitting_layout(frame, look.pixels, on_sky=on_sky)
    return View(frame, kind, read_planes(frame, step), layout)


def _tags(frame: Frame) -> set[str]:
    try:
        return tags(frame)
    except GdaskError:  # of no known instrument: an image like any other
        return set()


def grey_limits(view: View) -> raster.Limits:
    """Choose the grey scale of a picture."""
    values = [mean.ravel() for mean in means_on_one_level(view.planes, view.kind)]
    return raster.limits_of(np.concatenate(values), linear=view.kind in ("flat", "dark"))


def drawn(view: View, look: Look, limits: raster.Limits) -> pil.Image:
    """Draw what was read, in this grey scale."""
    if view.kind == "bpm":
        picture = mask_view(view.planes, view.layout)
    else:
        values = compose(means_on_one_level(view.planes, view.kind), view.layout)
        picture = raster.grey_picture(raster.grey_levels(values, limits))
        if look.dq:
            picture = _with_overlay(picture, flags_view(view.planes, view.layout))
    if look.objects or look.catalog:
        picture = picture.convert("RGB")
    if look.objects:
        raster.draw_rings(picture, own_places(view), OWN_COLOUR)
    if look.catalog:
        table = read_catalog(look.catalog)
        ra, dec = (np.asarray(table[name], float) for name in ("RAJ2000", "DEJ2000"))
        raster.draw_rings(picture, sky_places(view, ra, dec), CATALOG_COLOUR)
    if view.kind not in ("flat", "dark", "bpm"):
        raster.mark_sky(picture, view.layout)
    return picture


def _with_overlay(picture: pil.Image, over: pil.Image) -> pil.Image:
    below = picture.convert("RGBA")
    below.alpha_composite(over.convert("RGBA"))
    return below.convert("RGB")


def own_places(view: View) -> npt.NDArray[np.float64]:
    """Give the places in the picture (n, 2: x, y; row 0 at the bottom) of the sources of OBJCAT."""
    name, found = str(view.frame.attrs.get("name", "frame")), []
    tables = read_each(view.frame.attrs.get("tables", ""), "OBJCAT")
    if len(tables) != len(view.planes):
        raise GdaskError(f"{name}: has no catalogue (table OBJCAT) of its arrays")
    for number, table in enumerate(tables):
        x, y = (np.asarray(table[axis], float) - 1 for axis in ("X_IMAGE", "Y_IMAGE"))
        found.append(_in_picture(view, number, x[:MAX_RINGS], y[:MAX_RINGS]))
    return np.concatenate(found)


def sky_places(
    view: View, ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Give the places in the picture (n, 2: x, y) of positions (degrees) that are on an array."""
    found = []
    for number, system in enumerate(celestial(view.frame)):
        x, y = pixels_of(system, view.planes[number].shape, ra, dec)
        found.append(_in_picture(view, number, x[:MAX_RINGS], y[:MAX_RINGS]))
    return np.concatenate(found)


def pixels_of(
    system: Any, shape: tuple[int, int], ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the pixels (x, y; 0-based) of those positions (degrees) that are on an array."""
    near = _near(system, shape, ra, dec)
    x, y = system.all_world2pix(ra[near], dec[near], 0, quiet=True)
    inside = (x > -0.5) & (x < shape[1] - 0.5) & (y > -0.5) & (y < shape[0] - 0.5)
    return x[inside], y[inside]


def _near(
    system: Any, shape: tuple[int, int], ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Tell which positions are within 1.2 radii of an array's middle: far off, a WCS is no use."""
    ny, nx = shape
    corners = system.all_pix2world(
        [(nx - 1) / 2, -0.5, nx - 0.5], [(ny - 1) / 2, -0.5, ny - 0.5], 0
    )
    points = _unit_vectors(*corners)
    radius = 1.2 * float(np.linalg.norm(points[:, 1:] - points[:, :1], axis=0).max())
    return np.linalg.norm(_unit_vectors(ra, dec) - points[:, :1], axis=0) < radius


def _unit_vectors(ra: Any, dec: Any) -> npt.NDArray[np.float64]:
    a, d = np.radians(ra), np.radians(dec)
    return np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])


def _in_picture(
    view: View, number: int, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Give the places in the picture of pixels (0-based) of an array."""
    step, place = view.planes[number].step, view.layout.places[number]
    row, column = place.forward((y + 0.5) / step, (x + 0.5) / step)
    return np.stack([column, row], axis=1)


def write_preview(product: str | os.PathLike[str]) -> Path:
    """Write the picture of a product beside it, NAME.png for NAME.fits; gives its path.

    Errors are those of `draw`, and OSError.
    """
    path = Path(product)
    target = path.with_name(png_name(path.name))
    write_whole(target, raster.png_bytes(draw(path)))
    return target


def png_name(name: str) -> str:
    """Give the name of the picture of a file: .png in place of .fits, .fits.gz ..."""
    for ending in (".gz", ".bz2", ".fz", ".fits", ".fit", ".fts"):
        name = name.removesuffix(ending)
    return f"{name}.png"


def blink(pictures: Sequence[pil.Image], names: Sequence[str], path: Path, seconds: float) -> None:
    """Write pictures as one that moves, each with its name: GIF, or APNG if the name ends so.

    Smaller pictures are put on the lower left of the largest size.
    """
    width, height = (max(one.size[axis] for one in pictures) for axis in (0, 1))
    shown = [
        raster.on_canvas(one, (width, height), name)
        for one, name in zip(pictures, names, strict=True)
    ]
    options: dict[str, Any] = {"save_all": True, "append_images": shown[1:], "loop": 0}
    milliseconds = max(20, round(1000 * seconds))
    if path.suffix.lower() == ".gif":
        shown[0].save(path, "GIF", duration=milliseconds, optimize=False, **options)
    else:
        shown[0].save(path, "PNG", duration=milliseconds, **options)


def blink_views(
    products: Sequence[Frame | str | os.PathLike[str]], look: Look
) -> tuple[list[pil.Image], list[str]]:
    """Draw several files in one grey scale, that of the first about each one's own sky."""
    pictures, names, first = [], [], None
    for product in products:
        view = view_of(product, look)
        limits = grey_limits(view)
        first = first or limits
        own = raster.Limits(limits.low, limits.low + first.high - first.low, first.soft)
        pictures.append(drawn(view, look, own))
        names.append(str(view.frame.attrs.get("name", "")))
    return pictures, names
