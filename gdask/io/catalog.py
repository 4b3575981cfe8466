"""Reference catalogues that the user gives as a file: FITS, ECSV, VOTable or plain CSV."""

from __future__ import annotations

import os

import numpy as np
from astropy.table import Table

from gdask.model import GdaskError

_FORMATS = {".fits": "fits", ".fit": "fits", ".ecsv": "ascii.ecsv", ".xml": "votable", ".vot": "votable", ".csv": "ascii.csv"}
_NAMES = {
    "RAJ2000": ("raj2000", "ra", "ra_icrs", "radeg", "_raj2000", "alpha_j2000", "x_world", "ramean"),
    "DEJ2000": ("dej2000", "dec", "de_icrs", "dedeg", "_dej2000", "delta_j2000", "y_world", "decmean", "de"),
}
_UCDS = {"RAJ2000": "pos.eq.ra", "DEJ2000": "pos.eq.dec"}


def read_catalog(path: str) -> Table:
    """A reference catalogue with columns Id, RAJ2000, DEJ2000 (degrees, float64) and the file's magnitude columns.

    Columns are found by name (ra, RAJ2000, ra_icrs ...) or by UCD (pos.eq.ra); a sexagesimal text is not taken.

    Raises
    ------
    GdaskError
        The file is missing or of no known form, or has no RA or Dec column.
    """
    table = _read(path)
    columns = {wanted: _find(table, wanted, path) for wanted in _NAMES}
    good = np.ones(len(table), bool)
    values = {}
    for wanted, name in columns.items():
        values[wanted] = _degrees(table, name, path)
        good &= np.isfinite(values[wanted])
    catalog = Table({"Id": np.arange(1, len(table) + 1)} | values)
    for name in table.colnames:
        if "mag" in name.lower() and np.issubdtype(table[name].dtype, np.floating):
            catalog[name] = np.ma.filled(table[name], np.nan)
    return catalog[good]


def _read(path: str) -> Table:
    if not os.path.isfile(path):
        raise GdaskError(f"{path}: no such catalogue file")
    kind = _FORMATS.get(os.path.splitext(path.removesuffix(".gz"))[1].lower())
    if kind is None:
        raise GdaskError(f"{path}: not a known catalogue form; expected one of {', '.join(_FORMATS)}")
    try:
        return Table.read(path, format=kind)
    except Exception as error:
        raise GdaskError(f"{path}: cannot be read as {kind}: {error}") from error


def _find(table: Table, wanted: str, path: str) -> str:
    by_name = {name.lower(): name for name in table.colnames}
    for name in _NAMES[wanted]:
        if name in by_name:
            return by_name[name]
    for name in table.colnames:
        ucd = str(table[name].info.meta.get("ucd", "") if table[name].info.meta else "")
        if ucd.lower().startswith(_UCDS[wanted]):
            return name
    raise GdaskError(f"{path}: no column for {wanted}; it has {', '.join(table.colnames)}; name it {wanted}")


def _degrees(table: Table, name: str, path: str) -> np.ndarray:
    column = table[name]
    if not np.issubdtype(column.dtype, np.number):
        raise GdaskError(f"{path}: column {name} is text; expected degrees as numbers")
    unit = str(column.unit or "deg").lower()
    factor = {"rad": np.degrees(1.0), "hourangle": 15.0, "h": 15.0}.get(unit, 1.0)
    return np.asarray(np.ma.filled(column.astype(float), np.nan)) * factor
