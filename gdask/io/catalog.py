"""Reference catalogues from the user's files, and their positions at an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gdask.io.catalog_files import read_table
from gdask.model import GdaskError, late

if TYPE_CHECKING:
    import astropy.units as u
    from astropy import table as astable
else:
    astable = late("astropy.table")
    u = late("astropy.units")

#: Error per axis (arcsec) of a catalogue that tells none: that of a ground-based survey tied to
#: Gaia. (2MASS: 0.08.)
DEFAULT_ERROR_ARCSEC = 0.02
#: Names of the position columns, in lower case; the first that the file has is taken.
_POSITION_NAMES = {
    "RAJ2000": (
        "raj2000",
        "ra",
        "ra_icrs",
        "radeg",
        "_raj2000",
        "alpha_j2000",
        "x_world",
        "ramean",
    ),
    "DEJ2000": (
        "dej2000",
        "dec",
        "de_icrs",
        "dedeg",
        "_dej2000",
        "delta_j2000",
        "y_world",
        "decmean",
        "de",
    ),
}
_POSITION_UCDS = {"RAJ2000": "pos.eq.ra", "DEJ2000": "pos.eq.dec"}
#: What a catalogue may tell beside positions: the column here, the names of Gaia and VizieR, and
#: the unit where the file gives none (theirs). Proper motions along RA are those on the sky (with
#: the cosine of the declination), as in both.
_OPTIONAL_COLUMNS: dict[str, tuple[tuple[str, ...], str]] = {
    "e_RA": (("ra_error", "e_ra_icrs", "e_raj2000", "e_ra"), "mas"),
    "e_DE": (("dec_error", "e_de_icrs", "e_dej2000", "e_dec", "e_de"), "mas"),
    "pmRA": (("pmra", "pm_ra", "pm_ra_cosdec"), "mas / yr"),
    "pmDE": (("pmdec", "pmde", "pm_dec", "pm_de"), "mas / yr"),
    "e_pmRA": (("pmra_error", "e_pmra"), "mas / yr"),
    "e_pmDE": (("pmdec_error", "e_pmde", "e_pmdec"), "mas / yr"),
    "Epoch": (("ref_epoch", "epoch", "refepoch"), "yr"),
}


def read_catalog(path: str) -> astable.Table:
    """Read a reference catalogue.

    The table has the columns Id, RAJ2000, DEJ2000 (degrees, float64) and the file's magnitude
    columns. Columns are found by name (ra, RAJ2000, ra_icrs ...) or by UCD (pos.eq.ra); a
    sexagesimal text is not taken. Where the file has them, errors (e_RA, e_DE, mas), proper motions
    and their errors (pmRA, pmDE, e_pmRA, e_pmDE, mas / yr) and the epoch of the positions (Epoch,
    Julian year) come with them.

    Raises
    ------
    GdaskError
        The file is missing or of no known form, or has no RA or Dec column.
    """
    table = read_table(path)
    columns = {wanted: _position_column(table, wanted, path) for wanted in _POSITION_NAMES}
    has_position = np.ones(len(table), bool)
    values = {}
    for wanted, name in columns.items():
        values[wanted] = _degrees(table, name, path)
        has_position &= np.isfinite(values[wanted])
    catalog = astable.Table({"Id": np.arange(1, len(table) + 1)} | values)
    for wanted, (names, unit) in _OPTIONAL_COLUMNS.items():
        found = _numeric_column(table, names, unit)
        if found is not None:
            catalog[wanted] = found
    for name in table.colnames:
        if "mag" in name.lower() and np.issubdtype(table[name].dtype, np.floating):
            catalog[name] = np.ma.filled(table[name], np.nan)
    return catalog[has_position]


def _position_column(table: astable.Table, wanted: str, path: str) -> str:
    by_name = {name.lower(): name for name in table.colnames}
    for name in _POSITION_NAMES[wanted]:
        if name in by_name:
            return by_name[name]
    for name in table.colnames:
        ucd = str(table[name].info.meta.get("ucd", "") if table[name].info.meta else "")
        if ucd.lower().startswith(_POSITION_UCDS[wanted]):
            return name
    raise GdaskError(
        f"{path}: no column for {wanted}; it has {', '.join(table.colnames)}; name it {wanted}"
    )


def _numeric_column(table: astable.Table, names: tuple[str, ...], unit: str) -> np.ndarray | None:
    """Give the first of these columns that holds numbers, in `unit`; None where there is none.

    Masked values are NaN.
    """
    by_name = {name.lower(): name for name in table.colnames}
    for name in names:
        column = table[by_name[name]] if name in by_name else None
        if column is None or not np.issubdtype(column.dtype, np.number):
            continue
        try:
            factor = (column.unit or u.Unit(unit)).to(unit)
        except u.UnitConversionError:
            continue
        return np.asarray(np.ma.filled(column.astype(float), np.nan)) * factor
    return None


def at_epoch(
    catalog: astable.Table, year: float, error: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Give the positions of a catalogue's stars in a Julian year.

    Stars without a proper motion stay where they are. `error` is that of all stars in arcsec; None:
    the catalogue's own (a star without one gets DEFAULT_ERROR_ARCSEC), grown by the errors of the
    proper motions over the years.

    Returns RA and Dec (degrees), the error per axis (arcsec), and how they were found, in words.
    """
    ra, dec = (np.array(catalog[name], float) for name in ("RAJ2000", "DEJ2000"))
    error_square = _mean_square(catalog, "e_RA", "e_DE")
    known = np.isfinite(error_square)
    square = (
        np.where(known, error_square / 1e6, DEFAULT_ERROR_ARCSEC**2)
        if error is None
        else np.full(len(ra), error**2)
    )
    text = (
        f"errors of {1000 * (error or DEFAULT_ERROR_ARCSEC):g} mas"
        if error is not None or not known.any()
        else "its own errors"
    )
    if not {"pmRA", "pmDE", "Epoch"} <= set(catalog.colnames):
        return ra, dec, np.sqrt(square), f"{text}, no proper motions"
    years = year - np.asarray(catalog["Epoch"], float)
    east, north = (
        np.nan_to_num(np.asarray(catalog[name], float) * years) / 3.6e6 for name in ("pmRA", "pmDE")
    )
    if error is None:
        square = square + np.nan_to_num(_mean_square(catalog, "e_pmRA", "e_pmDE") * years**2) / 1e6
    moved = int(np.count_nonzero((east != 0) | (north != 0)))
    epoch = np.nanmedian(catalog["Epoch"])
    text += f", {moved} of {len(ra)} stars moved from {epoch:.2f} to {year:.2f}"
    return ra + east / np.cos(np.radians(dec)), dec + north, np.sqrt(square), text


def _mean_square(catalog: astable.Table, *names: str) -> np.ndarray:
    """Give the mean of the squares of columns; NaN where one is missing."""
    if not set(names) <= set(catalog.colnames):
        return np.full(len(catalog), np.nan)
    return np.mean([np.square(np.asarray(catalog[name], float)) for name in names], axis=0)


def _degrees(table: astable.Table, name: str, path: str) -> np.ndarray:
    """Give a column of angles in degrees; NaN where masked. Raises GdaskError where it is text."""
    column = table[name]
    if not np.issubdtype(column.dtype, np.number):
        raise GdaskError(f"{path}: column {name} is text; expected degrees as numbers")
    unit = str(column.unit or "deg").lower()
    factor = {"rad": np.degrees(1.0), "hourangle": 15.0, "h": 15.0}.get(unit, 1.0)
    return np.asarray(np.ma.filled(column.astype(float), np.nan)) * factor
