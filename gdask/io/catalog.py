"""Reference catalogues from the user's files, and their positions at an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gdask.io.catalog_files import read_table
from gdask.kernels.arithmetic import cosines
from gdask.model import GdaskError, late

if TYPE_CHECKING:
    import astropy.units as u
    from astropy import table as astable
else:
    astable = late("astropy.table")
    u = late("astropy.units")

#: Spread per axis of the motions of field stars (mas / yr), where fewer than MIN_MOVING_STARS of a
#: catalogue have one.
DEFAULT_MOTION_SPREAD, MIN_MOVING_STARS = 6.0, 5
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


class PlacesAtEpoch(NamedTuple):
    """Places of a catalogue's stars in a Julian year; arrays of one value per star.

    ra, dec: degrees. error: arcsec per axis, NaN where none is given. motion_x, motion_y: arcsec
    per year East and North, 0 where there is none. spread: arcsec per axis, by which a place is
    uncertain as its motion is missing. text: how they were found.
    """

    ra: np.ndarray
    dec: np.ndarray
    error: np.ndarray
    motion_x: np.ndarray
    motion_y: np.ndarray
    spread: np.ndarray
    text: str


def at_epoch(catalog: astable.Table, year: float, error: float | None) -> PlacesAtEpoch:
    """Give the places of a catalogue's stars in a Julian year.

    A star without a motion (none, or 0 along both axes where others move) moves as the others do in
    the mean, and its place is uncertain by the spread of their motions over the years. `error` is
    that of all stars in arcsec; None: the catalogue's own, grown by the errors of the motions over
    the years.
    """
    ra, dec = (np.array(catalog[name], float) for name in ("RAJ2000", "DEJ2000"))
    square = _mean_square(catalog, "e_RA", "e_DE") / 1e6
    if error is not None:
        square = np.full(len(ra), float(error) ** 2)
    pm = _motions(catalog)
    years = year - _epochs(catalog)
    if not np.isfinite(years).any() or not len(ra):
        none = np.zeros(len(ra))
        text = "no epoch" if np.isfinite(pm).any() else "no motions"
        text += ": its places are taken as they are"
        return PlacesAtEpoch(ra, dec, np.sqrt(square), none, none, none, text)
    if error is None:
        grown = _mean_square(catalog, "e_pmRA", "e_pmDE") * years**2 / 1e6
        square = square + np.nan_to_num(grown)
    missing = ~np.isfinite(pm).all(axis=0)
    mean, spread = _mean_motion(pm[:, ~missing])
    moves = np.where(missing, mean[:, None], pm) * years / 3.6e6
    epoch = float(np.nanmedian(year - years))
    text = f"{len(ra) - missing.sum()} of {len(ra)} stars moved from {epoch:.2f} to {year:.2f}"
    if missing.any():
        text += (
            f", {missing.sum()} have no motion and took the mean of the others "
            f"({mean[0]:.1f}, {mean[1]:.1f} mas/yr, spread {spread:.1f})"
            if not missing.all()
            else f", no motions: {DEFAULT_MOTION_SPREAD:g} mas/yr taken as their spread"
        )
    motion = np.where(missing, 0.0, np.nan_to_num(pm)) / 1000
    uncertain = np.where(missing, spread * np.abs(years) / 1000, 0.0)
    ra, dec = ra + moves[0] / cosines(dec), dec + moves[1]
    return PlacesAtEpoch(ra, dec, np.sqrt(square), motion[0], motion[1], uncertain, text)


def _motions(catalog: astable.Table) -> np.ndarray:
    """(2, n) motions East and North (mas / yr); NaN where there is none.

    Many catalogues write 0 for a motion that is not known: 0 along both axes is none.
    """
    if not {"pmRA", "pmDE"} <= set(catalog.colnames):
        return np.full((2, len(catalog)), np.nan)
    pm = np.array([np.asarray(catalog[name], float) for name in ("pmRA", "pmDE")])
    unknown = ~np.isfinite(pm).all(axis=0) | (pm == 0).all(axis=0)
    return np.where(unknown, np.nan, pm)


def _epochs(catalog: astable.Table) -> np.ndarray:
    """Julian year of each place: that of the others where it has none; NaN where none is known."""
    if "Epoch" not in catalog.colnames:
        return np.full(len(catalog), np.nan)
    epoch = np.asarray(catalog["Epoch"], float)
    known = np.isfinite(epoch)
    return np.where(known, epoch, np.median(epoch[known]) if known.any() else np.nan)


def _mean_motion(pm: np.ndarray) -> tuple[np.ndarray, float]:
    """Median motion along both axes and its spread per axis (mas / yr), of (2, n) known ones."""
    if pm.shape[1] < MIN_MOVING_STARS:
        return (pm.mean(axis=1) if pm.shape[1] else np.zeros(2)), DEFAULT_MOTION_SPREAD
    mean = np.median(pm, axis=1)
    return mean, 1.4826 * float(np.median(np.abs(pm - mean[:, None])))


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
