"""Arrays that are stored in files, as sources, and how the bytes of a file become pixels."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gdask.headers import each_unit, is_tiled, open_hdus, open_stream
from gdask.kernels.surfaces import Surface
from gdask.model import BadFile, late
from gdask.types import Memo, Window

if TYPE_CHECKING:
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")

#: Bytes of windows of calibrations that a process keeps. A strip of a flat (data, variance, DQ) and
#: a bad-pixel mask of GSAOI takes 0.4 MB; what is read of them to sample levels 13 to 50 MB; flat,
#: dark and mask of F2, which nine frames read one after another, 92 MB.
KEPT_BYTES = 96e6
#: FITS BITPIX -> NumPy type on disk (FITS standard 4.0, section 5).
FITS_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


class Plane(NamedTuple):
    """Where the pixels of one array lie in a file.

    Attributes
    ----------
    path
        The file.
    identity
        Its size (bytes) and modification time (ns) when its headers were read.
    extension
        Number of the array's extension, 0 for the primary unit.
    offset
        First byte of the pixels; -1 where the file is compressed and the extension is decoded.
    fits_type
        NumPy type of the pixels on disk.
    zero, scale
        BZERO and BSCALE.
    shape
        (ny, nx).
    """

    path: str
    identity: tuple[int, int]
    extension: int
    offset: int
    fits_type: str
    zero: float
    scale: float
    shape: tuple[int, int]


@dataclass(frozen=True)
class StoredArray:
    """One variable of a file: the planes of its arrays, as a source of shape (detector, y, x).

    Attributes
    ----------
    planes
        The place of each array's pixels.
    dtype
        Type that pixels are given in, native byte order.
    changes
        For each array, what is applied to its pixels in this order, in the arithmetic of `dtype`:
        (scale, offset) pairs, or surfaces to be subtracted.
    is_kept
        Whether windows stay in memory for the next task: those of a calibration, which many frames
        read.
    """

    planes: tuple[Plane, ...]
    dtype: np.dtype
    changes: tuple[tuple[tuple[float, float] | Surface, ...], ...] = ()
    is_kept: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.planes), *self.planes[0].shape)

    @property
    def ndim(self) -> int:
        """Give the number of axes: detector, y, x."""
        return 3

    @property
    def is_windowed(self) -> bool:
        """Tell whether a window costs no more than its pixels.

        It costs more in a compressed file, whose arrays are decoded whole.
        """
        return all(plane.offset >= 0 for plane in self.planes)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read the pixels that an index of an array of this shape selects.

        `key` has whole numbers or slices, for the detector also lists of whole numbers; axes that
        it leaves out are taken whole.
        """
        keys = (
            (*key, *[slice(None)] * 3)[:3]
            if isinstance(key, tuple)
            else (key, slice(None), slice(None))
        )
        detectors = np.arange(len(self.planes))[keys[0]]
        rows, columns = (
            _span_of(axis_key, size)
            for axis_key, size in zip(keys[1:], self.shape[1:], strict=True)
        )
        window = (rows[0], rows[1], columns[0], columns[1])
        pixels = [self.read(int(number), window, {}) for number in np.atleast_1d(detectors)]
        cut = (
            np.stack(pixels)[:, rows[2], :][:, :, columns[2]]
            if pixels
            else np.empty((0, *self.shape[1:]), self.dtype)
        )
        picked = (
            0 if np.ndim(detectors) == 0 else slice(None),
            *(
                0 if isinstance(axis_key, (int, np.integer)) else slice(None)
                for axis_key in keys[1:]
            ),
        )
        return cut[picked]

    def read(self, detector: int, window: Window, memo: Memo) -> np.ndarray:
        """Read the pixels [y1:y2, x1:x2] of one array.

        Raises BadFile where the file is not the one whose headers were read.
        """
        if self.is_kept:
            return kept_window(self, detector, window)
        near = memo.get((id(self), detector))
        if near is not None and _contains(near[0], window):
            (top, _, left, _), plane = near
            y1, y2, x1, x2 = window
            return plane[y1 - top : y2 - top, x1 - left : x2 - left]
        return self._read(detector, window)

    def prepare(self, detector: int, window: Window, memo: Memo) -> None:
        """Read the whole window, so that the strips of it need no access to the file."""
        if not self.is_kept and (id(self), detector) not in memo:
            memo[id(self), detector] = window, self._read(detector, window)

    def _read(self, detector: int, window: Window) -> np.ndarray:
        pixels = read_window(self.planes[detector], *window, self.dtype)
        for change in self.changes[detector] if self.changes else ():
            if isinstance(change, Surface):
                pixels = minus_surface(pixels, change, window)
            else:
                pixels = pixels * change[0] + change[1]
        return pixels

    def changed(self, scales: Sequence[float], offsets: Sequence[float]) -> StoredArray:
        """Give the array whose pixels are multiplied and then shifted when they are read.

        There is one scale and one offset for each detector.
        """
        return self._with_changes(list(zip(scales, offsets, strict=True)))

    def minus(self, surfaces: Sequence[Surface]) -> StoredArray:
        """Give the array from whose pixels surfaces, one for each detector, are subtracted."""
        return self._with_changes(surfaces)

    def _with_changes(self, added: Sequence[tuple[float, float] | Surface]) -> StoredArray:
        earlier = self.changes or ((),) * len(self.planes)
        changes = tuple((*pairs, pair) for pairs, pair in zip(earlier, added, strict=True))
        return replace(self, changes=changes)


def minus_surface(pixels: np.ndarray, surface: Surface, window: Window) -> np.ndarray:
    """Subtract a surface from the pixels of a window of an array."""
    return (pixels - surface.values(window)).astype(pixels.dtype)


def _contains(outer: Window, inner: Window) -> bool:
    """Tell whether a window lies within another one."""
    return (
        outer[0] <= inner[0]
        and inner[1] <= outer[1]
        and outer[2] <= inner[2]
        and inner[3] <= outer[3]
    )


class _Kept:
    """Windows of calibrations that this process keeps: those read last, up to KEPT_BYTES."""

    def __init__(self) -> None:
        self.lock, self.bytes = threading.Lock(), 0
        self.windows: OrderedDict[object, np.ndarray] = OrderedDict()

    def find(self, key: object) -> np.ndarray | None:
        with self.lock:
            if key in self.windows:
                self.windows.move_to_end(key)
            return self.windows.get(key)

    def keep(self, key: object, pixels: np.ndarray) -> None:
        with self.lock:
            if key not in self.windows:
                self.windows[key] = pixels
                self.bytes += pixels.nbytes
            while self.bytes > KEPT_BYTES:
                self.bytes -= self.windows.popitem(last=False)[1].nbytes


_KEPT = _Kept()


def kept_window(stored: StoredArray, detector: int, window: Window) -> np.ndarray:
    """Give a window of a stored array from memory, or read it and keep it; nobody may write to it.

    The identity of the file is part of what a window is found by.
    """
    changes = stored.changes[detector] if stored.changes else ()
    key = stored.planes[detector], stored.dtype.str, changes, window
    pixels = _KEPT.find(key)
    if pixels is None:
        pixels = stored._read(detector, window)
        pixels.flags.writeable = False
        _KEPT.keep(key, pixels)
    return pixels


def _span_of(key: Any, size: int) -> tuple[int, int, Any]:
    """Give first and last + 1 of the pixels of an axis that a key takes, and the key in them."""
    pixels = np.arange(size)[key]
    if np.ndim(pixels) == 0:
        return int(pixels), int(pixels) + 1, slice(None)
    if not len(pixels):
        return 0, 0, slice(None)
    first, last = int(pixels.min()), int(pixels.max()) + 1
    return first, last, pixels - first


# Bytes of a file as pixels ---------------------------------------------------------------------


def read_window(plane: Plane, y1: int, y2: int, x1: int, x2: int, dtype: np.dtype) -> np.ndarray:
    """Read the pixels [y1:y2, x1:x2] of one array, in native byte order as `dtype`.

    Raises BadFile where the file is not the one whose headers were read.
    """
    if plane.offset < 0:
        _check_unchanged(plane, plane.path)
        return _decoded_window(plane, y1, y2, x1, x2, dtype)
    width, item = plane.shape[1], np.dtype(plane.fits_type).itemsize
    try:
        # The open file is checked, not its name: a network file system asks its server when a
        # file is opened, and not each time that a name is looked up.
        with open(plane.path, "rb", buffering=0) as file:
            _check_unchanged(plane, file.fileno())
            if 2 * (x2 - x1) < width:
                # A tile of an image: of whole rows, the tiles beside it would read the rest again.
                start, step = plane.offset + (y1 * width + x1) * item, width * item
                width, x1, x2 = x2 - x1, 0, x2 - x1
                raw = np.empty((y2 - y1) * width, plane.fits_type)
                count = _read_rows(file.fileno(), raw.view("B").data, width * item, start, step)
            else:
                start = plane.offset + y1 * width * item
                raw = np.empty((y2 - y1) * width, plane.fits_type)
                count = _read_rows(file.fileno(), raw.view("B").data, raw.nbytes, start, raw.nbytes)
    except FileNotFoundError as error:
        raise BadFile(
            plane.path, f"vanished during the run ({error.strerror}); put it back and run again"
        ) from None
    except OSError as error:
        raise BadFile(
            plane.path,
            f"cannot be read during the run ({error.strerror}); make it readable and run again",
        ) from None
    if count != raw.nbytes:
        raise BadFile(
            plane.path,
            f"extension {plane.extension} ends before row {y2}: it was cut short; copy it again",
        )
    return _to_type(raw.reshape(y2 - y1, width)[:, x1:x2], plane, dtype)


def _read_rows(handle: int, room: memoryview, length: int, start: int, step: int) -> int:
    """Read rows of `length` bytes, `step` bytes apart in a file, into `room`; give the bytes read.

    They go to their places at once: read as texts and joined they took three times as long.
    """
    starts = itertools.count(start, step)
    rows = [room[first : first + length] for first in range(0, len(room), max(length, 1))]
    count = sum([os.preadv(handle, [row], at) for row, at in zip(rows, starts)])
    if count < len(room):  # a read may end early, for a signal or on a network
        starts = itertools.count(start, step)
        count = sum(_read_whole(handle, row, at) for row, at in zip(rows, starts))
    return count


def _read_whole(handle: int, room: memoryview, start: int) -> int:
    done = 0
    while done < len(room):
        count = os.preadv(handle, [room[done:]], start + done)
        if not count:
            break
        done += count
    return done


def _to_type(raw: np.ndarray, plane: Plane, dtype: np.dtype) -> np.ndarray:
    """Give pixels as they are on disk in another type, with BZERO and BSCALE applied."""
    if plane.zero == 32768 and plane.scale == 1 and raw.dtype.itemsize == 2:
        unsigned = raw.astype(np.int16).view(np.uint16) ^ np.uint16(0x8000)
        return unsigned.astype(dtype, copy=False)
    if plane.zero == 0 and plane.scale == 1:
        # A copy in another byte order is three times as fast as swapping bytes in place.
        return raw if raw.dtype == dtype and raw.flags.c_contiguous else raw.astype(dtype)
    return (raw * plane.scale + plane.zero).astype(dtype)


def _check_unchanged(plane: Plane, file: str | int) -> None:
    """Raise BadFile where a file (name or descriptor) is not as it was when it was opened first."""
    try:
        stat = os.stat(file)
    except OSError as error:
        raise BadFile(
            plane.path, f"vanished during the run ({error.strerror}); put it back and run again"
        ) from None
    if (stat.st_size, stat.st_mtime_ns) != plane.identity:
        raise BadFile(plane.path, "changed during the run; run again with the file at rest")


def _decoded_window(
    plane: Plane, y1: int, y2: int, x1: int, x2: int, dtype: np.dtype
) -> np.ndarray:
    """Read a window of an array in a compressed file; the whole array is decoded for it."""
    try:
        pixels = _decoded_plane(plane, dtype)
    except Exception as error:  # decompressors raise errors of many kinds
        raise BadFile(
            plane.path,
            f"extension {plane.extension} cannot be decompressed ({error}); copy it again",
        ) from error
    return np.ascontiguousarray(pixels.reshape(plane.shape)[y1:y2, x1:x2].astype(dtype))


def _decoded_plane(plane: Plane, dtype: np.dtype) -> np.ndarray:
    """Give all pixels of an array in a file that is packed, or whose images are tile-compressed."""
    with open_stream(plane.path) as stream:
        for unit in each_unit(stream, plane.path):
            if is_tiled(unit.header):
                break
            if unit.number == plane.extension:
                raw = np.frombuffer(bytearray(stream.read(unit.size)), plane.fits_type)
                return _to_type(raw, plane, dtype)
    with open_hdus(plane.path, memmap=False) as hdus:
        return np.asarray(hdus[plane.extension].data)
