"""The ideal stack of a night: the true stars, each frame with its own image of them.

Where frames end, the mean of those that go on has other wings and another throughput: a model of
one mean profile leaves steps there that the reduction has not made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.interpolate import RectBivariateSpline

from benchmarks.accuracy.inputs import array_size
from benchmarks.accuracy.matched_stack import MatchedStack, frame_names, on_array, stars_image
from gdask.kernels.geometry.projection import Floats, Geometry, from_sky, to_sky
from gdask.types import Image, Mask, Window

#: Pixels between the nodes at which places on an array are computed exactly.
NODE_STEP = 32


class IdealStack(NamedTuple):
    """What the mean of perfect frames shows.

    stars (e-): (ny, nx). depth: arrays of frames that cover each pixel, (ny, nx).
    """

    stars: Image
    depth: Image


def ideal_stack(stack: MatchedStack, displacement: Floats) -> IdealStack:
    """Stars of each frame, by its image and throughput, in the mean of those that cover a pixel.

    displacement: (2, stars), pixels in x and y by which the stack's stars are off.
    """
    names, size = frame_names(stack.astrom), array_size(stack.truth)
    faintest = 0.01 * float(np.sqrt(np.median(stack.variance[stack.variance > 0])))
    x, y = stack.x + displacement[0], stack.y + displacement[1]
    total, depth = np.zeros((2, *stack.data.shape), np.float32)
    for number, name in enumerate(dict.fromkeys(names)):
        flux = stack.frame_flux[name]
        image = stars_image(total.shape, x, y, flux, stack.profiles[number], faintest)
        for other, geometry in zip(names, stack.geometries, strict=True):
            if other == name:
                (y1, y2, x1, x2), covered = _footprint(stack, geometry, size)
                depth[y1:y2, x1:x2] += covered
                total[y1:y2, x1:x2] += image[y1:y2, x1:x2] * covered
    return IdealStack(total / np.maximum(depth, 1), depth)


def _footprint(stack: MatchedStack, geometry: Geometry, size: int) -> tuple[Window, Mask]:
    """The window of the stack about an array, and which of its pixels the array covers."""
    ny, nx = stack.data.shape
    edge = np.linspace(0, size - 1, 9)
    corners = np.array([(a, b) for a in edge for b in (0, size - 1)])
    along = np.concatenate([corners, corners[:, ::-1]])
    gx, gy = stack.wcs.world_to_pixel_values(*to_sky(geometry, along[:, 0], along[:, 1]))
    x1, y1 = max(int(gx.min()) - 2, 0), max(int(gy.min()) - 2, 0)
    x2, y2 = min(int(gx.max()) + 3, nx), min(int(gy.max()) + 3, ny)
    if x1 >= x2 or y1 >= y2:
        return (0, 0, 0, 0), np.zeros((0, 0), bool)
    nodes_y, nodes_x = (
        np.arange(first, last + 4 * NODE_STEP, NODE_STEP) for first, last in ((y1, y2), (x1, x2))
    )
    places = from_sky(geometry, *stack.wcs.pixel_to_world_values(*np.meshgrid(nodes_x, nodes_y)))
    px, py = (
        RectBivariateSpline(nodes_y, nodes_x, place)(np.arange(y1, y2), np.arange(x1, x2))
        for place in places
    )
    return (y1, y2, x1, x2), on_array(px, py, size)
