"""Where the arrays of a file lie in a picture: as they were read, or as on the sky."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.io.describe import descriptor, wcs
from gdask.model import GdaskError
from gdask.plot.planes import step_for
from gdask.types import Arcsec, Flags, Frame, Image

#: Share of an array's side between arrays that are shown as they were read.
GAP = 0.02
#: Order of the polynomials from the sky to pixels of a picture, and points along a side of an array
#: to which they are fitted: good to 0.05 pixel of GSAOI's picture.
ORDER, FIT_POINTS = 3, 9

#: Degrees of a pixel that no image has: a header without a scale gives one degree.
LARGEST_PIXEL = 0.1


class Place(NamedTuple):
    """Place of one array in a picture.

    Attributes
    ----------
    y, x
        First row and column of its box in the picture (row 0 is the lowest).
    shape
        Rows and columns of the box.
    rows, columns
        Pixel of the array's plane shown at each pixel of the box, -1 outside; None: as it is.
    forward
        Function of places: (row, column) of the plane, where the first pixel reaches from 0 to 1
        -> (row, column) of the picture, where the middle of the first pixel is 0.
    """

    y: int
    x: int
    shape: tuple[int, int]
    rows: npt.NDArray[np.int32] | None
    columns: npt.NDArray[np.int32] | None
    forward: Any


class Layout(NamedTuple):
    """A picture of the arrays of a file.

    Attributes
    ----------
    shape
        Rows and columns of the picture.
    places
        Place of each array.
    north, east
        Directions as unit vectors (x, y) with y upward; None where no WCS tells them.
    scale
        Arcsec of a pixel of the picture; None where it is not known.
    wcs
        WCS of the picture's pixels where its arrays lie as on the sky, else None.
    """

    shape: tuple[int, int]
    places: tuple[Place, ...]
    north: tuple[float, float] | None
    east: tuple[float, float] | None
    scale: Arcsec | None
    wcs: Any = None


def layout_of(
    frame: Frame, shapes: Sequence[tuple[int, int]], step: int, *, on_sky: bool
) -> Layout:
    """Lay out the arrays of a Frame whose planes have these shapes at this step.

    on_sky: North up, East left, each array where its WCS puts it; else side by side as the detector
    has them. One array is shown as it is. Raises GdaskError where `on_sky` is asked for and
    there is no WCS.
    """
    systems = celestial(frame)
    if on_sky and len(shapes) > 1:
        if not systems:
            raise GdaskError(
                f"{frame.attrs.get('name', 'frame')}: no WCS of the sky; show it as it was read"
            )
        return _sky_layout(systems, shapes, (frame.sizes["y"], frame.sizes["x"]), step)
    return _read_layout(frame, shapes, step, systems)


def fitting_layout(frame: Frame, pixels: int, *, on_sky: bool) -> tuple[int, Layout]:
    """Give the step and the layout of a Frame's picture, at most `pixels` along its longer side.

    Regions of interest lie far apart on the sky, and arrays as read have gaps: the picture can be
    larger than its arrays are. Errors are those of `layout_of`.
    """
    ny, nx = int(frame.sizes["y"]), int(frame.sizes["x"])
    count = int(frame.sizes["detector"])
    step = step_for(frame, pixels, 2 if count > 1 else 1)
    while True:
        shapes = [(-(-ny // step), -(-nx // step))] * count
        layout = layout_of(frame, shapes, step, on_sky=on_sky)
        longest = max(layout.shape)
        if longest <= pixels or step >= max(ny, nx):
            return step, layout
        step = max(step + 1, step * longest // pixels)


def celestial(frame: Frame) -> list[Any]:
    """Give the WCS of each array; an empty list where one has no sky, or no finite scale."""
    try:
        systems = wcs(frame)
    except Exception:  # noqa: BLE001 (astropy's errors are of many kinds)
        return []
    usable = all(
        system.has_celestial and system.naxis == 2 and _jacobian(system, 0.0, 0.0) is not None
        for system in systems
    )
    return systems if usable else []


def directions(system: Any, x: float, y: float) -> tuple[Any, Any, Arcsec]:
    """Give North, East (unit vectors in pixels) and the scale (arcsec per pixel) at a pixel."""
    jacobian = _jacobian(system, x, y)
    if jacobian is None:
        raise GdaskError("the WCS has no scale")
    back = np.linalg.inv(jacobian)
    north, east = (back[:, axis] / np.hypot(*back[:, axis]) for axis in (1, 0))
    scale = 3600 * math.sqrt(abs(np.linalg.det(jacobian)))
    return _pair(north), _pair(east), scale


def _pair(vector: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(vector[0]), float(vector[1])


def _jacobian(system: Any, x: float, y: float) -> npt.NDArray[np.float64] | None:
    """Give degrees on the sky (East, North) per pixel (x, y); None where they are not regular."""
    try:
        ra, dec = system.all_pix2world([x, x + 1, x], [y, y, y + 1], 0)
    except Exception:  # noqa: BLE001 (wcslib's errors are of many kinds)
        return None
    turned = (np.asarray(ra[1:]) - ra[0] + 180) % 360 - 180
    found = np.array([turned * math.cos(math.radians(dec[0])), np.asarray(dec[1:]) - dec[0]])
    if not np.isfinite(found).all():
        return None
    regular = 1e-18 < abs(np.linalg.det(found)) < LARGEST_PIXEL**2
    return found if regular else None


# As read ---------------------------------------------------------------------------------------


def _read_layout(
    frame: Frame, shapes: Sequence[tuple[int, int]], step: int, systems: list[Any]
) -> Layout:
    """Put arrays side by side in the order in which the detector has them."""
    ny, nx = shapes[0]
    gap = max(2, int(GAP * max(ny, nx)))
    cells = _cells(frame, len(shapes))
    places = []
    for (row, column), shape in zip(cells, shapes, strict=True):
        y, x = row * (ny + gap), column * (nx + gap)
        places.append(Place(y, x, shape, None, None, _shifted(y, x)))
    height = max(place.y + place.shape[0] for place in places)
    width = max(place.x + place.shape[1] for place in places)
    if not systems:
        return Layout((height, width), tuple(places), None, None, None)
    middle = (frame.sizes["x"] / 2, frame.sizes["y"] / 2)
    try:
        north, east, scale = directions(systems[0], *middle)
    except GdaskError:
        return Layout((height, width), tuple(places), None, None, None)
    return Layout((height, width), tuple(places), north, east, scale * step)


def _shifted(y: float, x: float) -> Any:
    return lambda row, column: (row + y - 0.5, column + x - 0.5)


def _cells(frame: Frame, count: int) -> list[tuple[int, int]]:
    """Give row and column of each array in the detector; in one row where it is not known."""
    in_a_row = [(0, number) for number in range(count)]
    try:
        sections = np.array(descriptor(frame, "detector_section"), float)
    except (GdaskError, TypeError, ValueError, KeyError):
        return in_a_row
    if sections.shape != (count, 4):
        return in_a_row
    rows = _ranks(sections[:, 2], sections[:, 3])
    columns = _ranks(sections[:, 0], sections[:, 1])
    cells = list(zip(rows, columns, strict=True))
    return cells if len(set(cells)) == count else in_a_row


def _ranks(starts: npt.NDArray[np.float64], stops: npt.NDArray[np.float64]) -> list[int]:
    """Give the place of sections along an axis; those that overlap are at the same place."""
    ranks, rank, end = [0] * len(starts), -1, -math.inf
    for number in np.argsort(starts, kind="stable"):
        if starts[number] >= end:
            rank, end = rank + 1, stops[number]
        ranks[number] = rank
    return ranks


# As on the sky ---------------------------------------------------------------------------------


def _sky_layout(
    systems: list[Any], shapes: Sequence[tuple[int, int]], size: tuple[int, int], step: int
) -> Layout:
    """Put each array where its WCS puts it, in the plane that touches the sky in the middle."""
    y, x = (
        points.ravel()
        for points in np.meshgrid(
            *(np.linspace(-0.5, n - 0.5, FIT_POINTS) for n in size), indexing="ij"
        )
    )
    sky = [np.array(system.all_pix2world(x, y, 0)) for system in systems]
    scale = directions(systems[0], size[1] / 2, size[0] / 2)[2] * step
    middle = _middle(np.concatenate(sky, axis=1))
    plane = [_tangent(points[0], points[1], *middle) * 3600 / scale for points in sky]
    low = np.min([points.min(axis=1) for points in plane], axis=0)
    high = np.max([points.max(axis=1) for points in plane], axis=0)
    shape = math.ceil(high[1] - low[1]), math.ceil(high[0] - low[0])
    places = []
    for points, one in zip(plane, shapes, strict=True):
        pixels = (y + 0.5) / step, (x + 0.5) / step
        places.append(_sky_place(points - low[:, None], pixels, one, shape))
    picture_wcs = _tangent_wcs(middle, (-0.5 - low[0], -0.5 - low[1]), scale)
    return Layout(shape, tuple(places), (0.0, 1.0), (-1.0, 0.0), scale, picture_wcs)


def _tangent_wcs(sky: tuple[float, float], pixel: tuple[float, float], scale: Arcsec) -> Any:
    """Make a WCS, North up and East left, in which a point of the sky has this pixel (0-based)."""
    from astropy.wcs import WCS

    made = WCS(naxis=2)
    made.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    made.wcs.crval, made.wcs.cunit = list(sky), ["deg", "deg"]
    made.wcs.crpix = [pixel[0] + 1, pixel[1] + 1]
    made.wcs.cdelt = [-scale / 3600, scale / 3600]
    made.wcs.radesys = "FK5"
    return made


def _middle(sky: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Give the mean direction of points (ra, dec; degrees)."""
    ra, dec = np.radians(sky)
    vector = np.mean([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    return (
        float(np.degrees(np.arctan2(vector[1], vector[0]))),
        float(np.degrees(np.arctan2(vector[2], np.hypot(vector[0], vector[1])))),
    )


def _tangent(
    ra: npt.NDArray[np.float64], dec: npt.NDArray[np.float64], ra0: float, dec0: float
) -> npt.NDArray[np.float64]:
    """Give the gnomonic projection about a point: (to the right = West, up = North), degrees."""
    a, d, d0 = np.radians(ra - ra0), np.radians(dec), math.radians(dec0)
    cosine = np.sin(d) * math.sin(d0) + np.cos(d) * math.cos(d0) * np.cos(a)
    east = np.cos(d) * np.sin(a) / cosine
    north = (np.sin(d) * math.cos(d0) - np.cos(d) * math.sin(d0) * np.cos(a)) / cosine
    return np.degrees(np.array([-east, north]))


def _sky_place(
    points: npt.NDArray[np.float64],
    pixels: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    plane_shape: tuple[int, int],
    shape: tuple[int, int],
) -> Place:
    """Give the place of an array from points of it in the picture (right, up) and in its plane."""
    right, up = points
    x1, x2 = max(0, math.floor(right.min())), min(shape[1], math.ceil(right.max()))
    y1, y2 = max(0, math.floor(up.min())), min(shape[0], math.ceil(up.max()))
    to_plane = [_polynomial(right, up, values) for values in pixels]
    ahead = [_polynomial(*pixels, values) for values in (up, right)]
    rows_up, columns_right = np.ogrid[y1:y2, x1:x2]
    row, column = (np.floor(fit(columns_right + 0.5, rows_up + 0.5)) for fit in to_plane)
    inside = (row >= 0) & (row < plane_shape[0]) & (column >= 0) & (column < plane_shape[1])
    rows, columns = (np.where(inside, values, -1).astype("i4") for values in (row, column))
    return Place(
        y1,
        x1,
        (y2 - y1, x2 - x1),
        rows,
        columns,
        lambda row, column: tuple(fit(row, column) - 0.5 for fit in ahead),
    )


def _polynomial(
    u: npt.NDArray[np.float64], v: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> Any:
    """Fit values by a polynomial of u and v; gives a function of arrays (u, v)."""
    centre_u, centre_v, unit = u.mean(), v.mean(), max(np.ptp(u), np.ptp(v), 1e-9) / 2
    terms = [(i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]

    a, b = (u - centre_u) / unit, (v - centre_v) / unit
    matrix = np.stack([a**i * b**j for i, j in terms], axis=1)
    solution, *_ = np.linalg.lstsq(matrix, values, rcond=None)
    coefficients = dict(zip(terms, solution, strict=True))

    def evaluate(u: Any, v: Any) -> Any:
        a, b = (u - centre_u) / unit, (v - centre_v) / unit
        return sum(
            a**i * sum(coefficients[i, j] * b**j for j in range(ORDER + 1 - i))
            for i in range(ORDER + 1)
        )

    return evaluate


# Pictures of all arrays ------------------------------------------------------------------------


def compose(planes: Sequence[Image], layout: Layout) -> Image:
    """Put planes of numbers together; NaN between them."""
    picture = np.full(layout.shape, np.nan, "f4")
    for plane, place in zip(planes, layout.places, strict=True):
        box = _box(picture, place)
        if place.rows is None or place.columns is None:
            box[...] = plane
        else:
            shown = plane[place.rows, place.columns]
            box[...] = np.where(place.rows >= 0, shown, box)
    return picture


def compose_flags(planes: Sequence[Flags], layout: Layout) -> Flags:
    """Put planes of bits together; a block with bits is shown at one pixel at least."""
    picture = np.zeros(layout.shape, "u2")
    for plane, place in zip(planes, layout.places, strict=True):
        box = _box(picture, place)
        if place.rows is None or place.columns is None:
            box |= plane
            continue
        box |= np.where(place.rows >= 0, plane[place.rows, place.columns], np.uint16(0))
        rows, columns = np.nonzero(plane)
        y, x = place.forward(rows + 0.5, columns + 0.5)
        y, x = (
            np.clip(np.rint(values), 0, n - 1).astype(int)
            for values, n in zip((y, x), layout.shape, strict=True)
        )
        np.bitwise_or.at(picture, (y, x), plane[rows, columns])
    return picture


def _box(picture: npt.NDArray[Any], place: Place) -> npt.NDArray[Any]:
    return picture[place.y : place.y + place.shape[0], place.x : place.x + place.shape[1]]
