"""The tables of a product that graphs need, read within bounds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gdask.headers import open_hdus
from gdask.model import GdaskError, late

if TYPE_CHECKING:
    from astropy import table as astable
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")
    astable = late("astropy.table")

#: Rows of a table that are read; of a longer one every second, third ... row.
MAX_ROWS = 200_000


def read_tables(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, Any]:
    """Read tables of a file by name, those that it has; where there are several, the first.

    Raises GdaskError where one cannot be read.
    """
    return {name: tables[0] for name, tables in _tables(path, names).items()}


def read_each(path: str | os.PathLike[str], name: str) -> list[Any]:
    """Read all tables of a name, one for each array. Raises GdaskError where one cannot be read."""
    return _tables(path, (name,)).get(name, [])


def _tables(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    if not path:
        return found
    try:
        with open_hdus(path, memmap=True) as hdus:
            for hdu in hdus:
                if isinstance(hdu, fits.BinTableHDU) and hdu.name in names:
                    step = -(-int(hdu.header["NAXIS2"]) // MAX_ROWS) or 1
                    table = astable.Table(hdu.data[::step].copy())
                    found.setdefault(hdu.name, []).append(table)
    except Exception as error:  # astropy's errors are of many kinds
        raise GdaskError(
            f"{os.fspath(path)}: its tables cannot be read ({error}); copy the file again"
        ) from error
    return found
