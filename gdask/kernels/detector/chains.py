"""Chains of kernels that work pixel by pixel, run over a strip of rows in one compiled call.

Called one after another on a strip of 16 rows, the kernels between raw counts and flat-fielded
electrons take as long to be called, with Python's lock held, as to compute. Here a strip goes
through all of them a few rows at a time, by the same compiled loops, and so with the same bits.

A chain is a table of steps. Each has the number of its kernel, its result and its operands. These
are planes, by number: 0 is a work array with rooms for some rows each, others are planes of the
strip that are read or made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gdask.kernels.arrays import INNER
from gdask.kernels.compiled import njit
from gdask.kernels.detector import flat, linearity, quality
from gdask.model import DQ, GdaskError
from gdask.types import Flags, Image, Window

#: Planes of each type that a chain takes at most, the work array among them, those that it makes,
#: and rooms of its work arrays.
INPUTS, OUTPUTS, ROOMS = 8, 3, 12
#: Pixels of a room, if a row has no more: all rooms in use stay in the processor's cache.
ROOM_PIXELS = 4096
#: An operand is the number of its plane, and for the work array this times the number of its room.
PLACES = 16
_UNILLUMINATED = np.uint16(DQ.UNILLUMINATED)
#: Codes: copies of planes; from FIRST_OF_FLAGS on the kernels that give flags.
COPY, FIRST_OF_FLAGS, COPY_FLAGS = 10, 20, 26
#: Operands that are none. Flags begin with no bit there, or are marked where they are made.
NONE, IN_PLACE = -1, -2

Numbers = Sequence[float]
#: Listed pixels of a kernel: flat indices (int32, rising), bit, width of their array, and what to
#: add to (x, y) of a pixel to get theirs.
Listed = tuple[npt.NDArray[np.int32], int, int, int, int]


class Part(NamedTuple):
    """How a chain does what a kernel does.

    Attributes
    ----------
    code
        Number of the kernel in the compiled code.
    takes
        What its planes are, in order: i for data or variance, f for flags.
    numbers
        numbers(*small results, **keywords of the kernel), at most six.
    listed
        listed(*small results, **keywords): the listed pixels to be marked; None for other kernels.
    """

    code: int
    takes: str
    numbers: Callable[..., Numbers]
    listed: Callable[..., Sequence[Listed]] | None = None

    @property
    def marks(self) -> bool:
        """Whether it gives flags by adding bits to its first ones: it does so in place."""
        return self.code > FIRST_OF_FLAGS


def _no_numbers(*_: Any, **__: Any) -> Numbers:
    return ()


def _of_linearize(coefficients: linearity.Coefficients, gain: float, coadds: int = 1) -> Numbers:
    return (gain / coadds, *coefficients)


def _of_shift(gain: float = 1.0, coadds_averaged: int = 1) -> Numbers:
    return (gain * coadds_averaged,)


def _of_variance(
    read_noise: float, coadds: int = 1, poisson: bool = True, read: bool = True
) -> Numbers:
    return read_noise**2 if read else 0.0, 1.0 / coadds, poisson


def _of_levels(non_linear: float, saturated: float) -> Numbers:
    return non_linear, saturated


def _of_border(corner: tuple[int, int], full: tuple[int, int], width: int) -> Numbers:
    (x, y), (ny, nx) = corner, full
    return width - y, ny - width - y, width - x, nx - width - x


def _of_circle(corner: tuple[int, int], centre: tuple[float, float], radius: float) -> Numbers:
    return (*corner, *centre, radius**2)


def _of_factor(factor: float) -> Numbers:
    return (factor,)


def _of_level(level: float = 0.0) -> Numbers:
    return (level,)


def _of_holes(listed: quality.Indices, width: int) -> Sequence[Listed]:
    return [(quality.holes_of(listed), DQ.SATURATED, width, 0, 0)]


def _of_latents(
    *listed: quality.Indices, offsets: Sequence[tuple[int, int]], widths: Sequence[int]
) -> Sequence[Listed]:
    return [
        (quality.bright_of(pixels), DQ.COSMIC_RAY, width, right, up)
        for pixels, width, (right, up) in zip(listed, widths, offsets, strict=True)
    ]


#: What is known of each kernel. Steps use these very functions.
PARTS: dict[Callable[..., Any], Part] = {
    linearity.linearize: Part(11, "i", _of_linearize),
    linearity.times: Part(12, "i", _of_factor),
    linearity.add_variance: Part(13, "i", _of_variance),
    linearity.linearize_variance: Part(14, "iii", _of_shift),
    flat.flat_data: Part(15, "ii", _no_numbers),
    flat.flat_variance: Part(16, "iiii", _of_level),
    np.subtract: Part(17, "ii", _no_numbers),
    np.add: Part(18, "ii", _no_numbers),
    flat.flat_flags: Part(20, "fif", _no_numbers),
    np.bitwise_or: Part(21, "ff", _no_numbers),
    quality.flag_levels: Part(22, "if", _of_levels),
    quality.flag_border: Part(23, "f", _of_border),
    quality.flag_outside: Part(24, "f", _of_circle),
    quality.flag_holes: Part(25, "f", _no_numbers, _of_holes),
    quality.flag_latents: Part(25, "f", _no_numbers, _of_latents),
}


class Chain(NamedTuple):
    """A table of steps, as `run_chain` takes it.

    Attributes
    ----------
    steps
        (n, 6): code, operand of the result, and those that go in: four of data and variance, or for
        a kernel that gives flags one of data and two of flags.
    numbers
        (n, 6) of each step.
    listed
        Flat indices of all listed pixels, one list after another. Of a step that marks pixels,
        `numbers` has the list's begin and end, bit, width, and what to add to x and y.
    """

    steps: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.float64]
    listed: npt.NDArray[np.int32]


@njit(nogil=True, **INNER)
def _begin(operand: int, first: int, room: int) -> int:
    """Give the first pixel of an operand in its plane, or in its room of the work array."""
    return operand // PLACES * room if operand % PLACES == 0 else first


@njit(nogil=True, error_model="numpy", **INNER)
def _make_image(
    code: int, n: npt.NDArray[np.float64], given: tuple[Image, Image, Image, Image], out: Image
) -> None:
    """Do the step of a kernel that gives data or variance."""
    one, two, three, four = given
    if code == COPY:
        for i in range(out.size):
            out[i] = one[i]
    elif code == 11:
        linearity.linearize_row(one, n[0], n[1], n[2], n[3], out)
    elif code == 12:
        linearity.multiply_row(one, np.float32(n[0]), out)
    elif code == 13:
        if n[2]:
            linearity.variance_row(one, n[0], n[1], out)
        else:
            for i in range(out.size):
                out[i] = n[0]
    elif code == 14:
        linearity.shift_row(one, two, three, n[0], out)
    elif code == 15:
        flat.divide_row(one, two, out)
    elif code == 16:
        flat.divide_variance_row(one, two, three, four, n[0], out)
    elif code == 17:
        for i in range(out.size):
            out[i] = one[i] - two[i]
    elif code == 18:
        for i in range(out.size):
            out[i] = one[i] + two[i]


@njit(nogil=True, **INNER)
def _mark(
    code: int,
    n: npt.NDArray[np.float64],
    listed: npt.NDArray[np.int32],
    y: int,
    x: int,
    out: Flags,
) -> None:
    """Do the step of a kernel that adds bits to DQ, rows whose first pixel is (y, x)."""
    ny, nx = out.shape
    if code == 25:
        indices = listed[int(n[0]) : int(n[1])]
        width, right, up = int(n[3]), int(n[4]), int(n[5])
        quality.flag_listed(out, indices, np.uint16(n[2]), width, y + up, x + right)
        return
    for j in range(ny):
        row = out[j]
        if code == 23:
            inside = n[0] <= y + j < n[1]
            begin = min(max(int(n[2]) - x, 0), nx) if inside else nx
            end = max(min(int(n[3]) - x, nx), begin) if inside else nx
            for i in range(begin):
                row[i] |= _UNILLUMINATED
            for i in range(end, nx):
                row[i] |= _UNILLUMINATED
        elif code == 24:
            along = np.float64(y + j + int(n[1])) - n[3]
            for i in range(nx):
                across = np.float64(x + i + int(n[0])) - n[2]
                row[i] |= np.uint16(along * along + across * across > n[4]) * _UNILLUMINATED


@njit(cache=True, nogil=True, borrows=True)
def _run(
    chain: Chain,
    images: tuple[Image, ...],
    flags: tuple[Flags, ...],
    made_images: tuple[Image, ...],
    made_flags: tuple[Flags, ...],
    shape: tuple[int, int],
    corner: tuple[int, int],
    rows: int,
) -> None:
    """Compiled part of `run_chain`; planes are rows of pixels, the first ones the work arrays.

    rows: how many a room of the work arrays has.
    """
    steps, nx = chain.steps, shape[1]
    room = rows * nx
    for y in range(0, shape[0], rows):
        first, size = y * nx, min(rows, shape[0] - y) * nx
        for s in range(steps.shape[0]):
            code, to, a, b, c, d = steps[s]
            n = chain.numbers[s]
            # Where there is no operand the first room stands for it.
            a, c, d, given = max(a, 0), max(c, 0), max(d, 0), max(b, 0)
            at = _begin(a, first, room)
            image = images[a % PLACES][at : at + size]
            begin = _begin(to, first, room)
            if code < FIRST_OF_FLAGS:
                at = _begin(given, first, room)
                second = images[given % PLACES][at : at + size]
                at = _begin(c, first, room)
                third = images[c % PLACES][at : at + size]
                at = _begin(d, first, room)
                fourth = images[d % PLACES][at : at + size]
                out = made_images[to % PLACES][begin : begin + size]
                _make_image(code, n, (image, second, third, fourth), out)
                continue
            at = _begin(given, first, room)
            bits = flags[given % PLACES][at : at + size]
            at = _begin(c, first, room)
            more = flags[c % PLACES][at : at + size]
            marked = made_flags[to % PLACES][begin : begin + size]
            if code == FIRST_OF_FLAGS:
                flat.divide_flags_row(bits, image, more, marked)
                continue
            if b == NONE:
                for i in range(size):
                    marked[i] = 0
            elif b != IN_PLACE:
                for i in range(size):
                    marked[i] = bits[i]
            if code == 21:
                for i in range(size):
                    marked[i] |= more[i]
            elif code == 22:
                quality.flag_levels_row(image, marked, n[0], n[1])
            else:
                rows_of = marked.reshape((size // nx, nx))
                _mark(code, n, chain.listed, corner[0] + y, corner[1], rows_of)


def run_chain(
    chain: Chain,
    images: Sequence[Image],
    flags: Sequence[Flags],
    made_images: Sequence[Image],
    made_flags: Sequence[Flags],
    window: Window,
    rooms: tuple[int, int],
) -> None:
    """Run a chain over a window (y1, y2, x1, x2) of an array.

    images, flags: planes that go in, numbered from 1; contiguous, of the window's shape. At most
    INPUTS - 1 each. made_images, made_flags: planes that are made, at most OUTPUTS - 1 each. rooms:
    of the work arrays of images and of flags, that the chain uses.

    Raises GdaskError where a plane has another shape, type or layout: compiled code would write
    beyond it.
    """
    shape = window[1] - window[0], window[3] - window[2]
    for planes, dtype in ((images, "f4"), (made_images, "f4"), (flags, "u2"), (made_flags, "u2")):
        for plane in planes:
            if plane.shape != shape or plane.dtype != dtype or not plane.flags.c_contiguous:
                raise GdaskError(
                    f"a plane of {plane.dtype} {plane.shape} in a chain of {dtype} {shape}: "
                    "give it contiguous, and cut to the window"
                )
    if not shape[0] or not shape[1]:
        return
    rows = max(ROOM_PIXELS // shape[1], 1)
    work_images = np.empty(max(rooms[0], 1) * rows * shape[1], np.float32)
    work_flags = np.empty(max(rooms[1], 1) * rows * shape[1], np.uint16)
    _run(
        chain,
        _slots(images, _read_only(work_images), INPUTS),
        _slots(flags, _read_only(work_flags), INPUTS),
        (work_images, *(plane.reshape(-1) for plane in made_images))
        + (work_images,) * (OUTPUTS - 1 - len(made_images)),
        (work_flags, *(plane.reshape(-1) for plane in made_flags))
        + (work_flags,) * (OUTPUTS - 1 - len(made_flags)),
        shape,
        (window[0], window[2]),
        rows,
    )


def _read_only(plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View a contiguous plane as a row of pixels that nobody may write to."""
    row = plane.reshape(-1)
    row.setflags(write=False)
    return row


def _slots(
    planes: Sequence[npt.NDArray[Any]], first: npt.NDArray[Any], number: int
) -> tuple[npt.NDArray[Any], ...]:
    """Give planes as compiled code numbers them: the work array first, which also fills up."""
    rows = [_read_only(plane) for plane in planes]
    return (first, *rows, *[first] * (number - 1 - len(rows)))
