"""The engine of `xarray.open_dataset(path, engine="gdask")`.

It opens a FITS file as a Frame of lazily read arrays, without dask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from gdask.io.read import open_with
from gdask.io.stored import StoredArray

#: Endings of names that `open_dataset` takes for FITS files where no engine is named.
ENDINGS = (".fits", ".fits.gz", ".fits.bz2", ".fits.fz", ".fit", ".fts")


class StoredBackendArray(BackendArray):
    """A stored array as xarray's backends index it, by whole numbers and slices.

    Only the windows that an index touches are read.
    """

    def __init__(self, stored: StoredArray) -> None:
        self.stored, self.shape, self.dtype = stored, stored.shape, stored.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        return self.stored[key]


class GdaskBackend(BackendEntrypoint):
    """Opens Gemini multi-extension FITS files as Frames; `chunks=` makes them dask arrays."""

    description = "Gemini near-infrared imaging (GSAOI, FLAMINGOS-2) as multi-extension FITS"
    url = "https://xarray.dev"
    open_dataset_parameters = ("filename_or_obj", "drop_variables")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.Dataset:
        """Open a file; variables are read by window when they are indexed.

        Errors are those of `gdask.open`.
        """
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        return open_with(filename_or_obj, _lazily_indexed).drop_vars(dropped, errors="ignore")

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        return isinstance(filename_or_obj, (str, os.PathLike)) and os.fspath(
            filename_or_obj
        ).lower().endswith(ENDINGS)


def _lazily_indexed(name: str, stored: StoredArray) -> xr.Variable:
    _, ny, nx = stored.shape
    chunks = {"detector": 1, "y": ny, "x": nx}
    data = indexing.LazilyIndexedArray(StoredBackendArray(stored))
    return xr.Variable(("detector", "y", "x"), data, encoding={"preferred_chunks": chunks})
