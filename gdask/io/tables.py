"""Tables that go with a Frame on disk, written and read: sources, reference stars, geometry."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gdask.headers import RECORD_BYTES, open_hdus
from gdask.io.catalog import read_catalog
from gdask.io.frames import array_numbers, geometries, grid_of, small
from gdask.io.star_tables import add_star_columns, in_steps, solution_tables
from gdask.kernels.geometry.grid import grid_to_sky
from gdask.kernels.geometry.projection import Geometry, to_sky
from gdask.model import GdaskError, late, why_no_file
from gdask.types import Frame

if TYPE_CHECKING:
    from astropy import table as astable
    from astropy.io import fits
else:
    fits = late("astropy.io.fits")
    astable = late("astropy.table")

#: Unit of OBJCAT columns by their ending or beginning, the first that fits. (Fluxes are in
#: electrons as the image is, a unit that FITS tables do not have.)
_UNITS_BY_AFFIX = (
    ("ERRX2_IMAGE", "pix2"),
    ("ERRY2_IMAGE", "pix2"),
    ("ERRXY_IMAGE", "pix2"),
    ("ISOAREA", "pix2"),
    ("THETA", "deg"),
    ("_WORLD", "deg"),
    ("FLUX_RADIUS", "pix"),
    ("_IMAGE", "pix"),
    ("MAG", "mag"),
)
#: What columns are in the words of the Virtual Observatory (UCD1+), which TOPCAT reads as TUCD.
_UCDS = {
    "NUMBER": "meta.id;meta.main",
    "X_WORLD": "pos.eq.ra",
    "Y_WORLD": "pos.eq.dec",
    "RA": "pos.eq.ra;meta.main",
    "DEC": "pos.eq.dec;meta.main",
    "RA_ERR": "stat.error;pos.eq.ra",
    "DEC_ERR": "stat.error;pos.eq.dec",
    "X_IMAGE": "pos.cartesian.x;instr.det",
    "Y_IMAGE": "pos.cartesian.y;instr.det",
    "FLUX_AUTO": "phot.flux",
    "FLUX_PSF": "phot.flux;meta.main",
    "FLUX_APER": "phot.flux",
    "MAG_AUTO": "phot.mag",
    "MAG_PSF": "phot.mag;meta.main",
    "MAG_APER": "phot.mag",
    "FLAGS": "meta.code.qual",
}
#: Keywords of ASTROM that tell how the group was tied to a reference catalogue.
_TIE_KEYWORDS = {
    "n": ("REFSTARS", "stars that tie the group to the catalogue"),
    "rms": ("REFRMS", "[mas] rms per axis from the catalogue"),
    "stated": ("REFERR", "[mas] error per axis that was given"),
    "used": ("REFERRUS", "[mas] error by the residuals, as used"),
    "terms": ("REFTERMS", "terms of the tie"),
    "place_error": ("TIE_ERR", "[mas] error per axis of the group's place"),
    "years": ("REFYEARS", "[yr] by which the motions contradict the epoch"),
}


def source_tables(frame: Frame) -> dict[str, Any]:
    """Give the tables of what a Frame holds in memory.

    They are OBJCAT of each array (with sky positions; of a stack, with fitted stars), REFCAT,
    ASTROM, and of a stack RESIDUALS, FRAMES and EPOCHS, as far as the Frame has them.
    """
    tables: dict[str, Any] = {}
    catalogs = small(frame, "objcat")
    if catalogs is not None:
        tables["OBJCAT"] = [
            _with_units(astable.Table(_with_sky_positions(frame, number, catalog)))
            for number, catalog in enumerate(catalogs)
        ]
        stars = small(frame, "stars")
        if grid_of(frame) and stars is not None and len(stars[0]) == len(catalogs[0]) > 0:
            tables["OBJCAT"] = [add_star_columns(tables["OBJCAT"][0], stars[0], frame)]
    if frame.attrs.get("refcat"):
        tables["REFCAT"] = read_catalog(frame.attrs["refcat"])
    inputs = small(frame, "inputs") or ()
    if geometries(frame):
        tables["ASTROM"] = geometry_table(geometries(frame))
    elif any(source["geometry"] for source in inputs):
        tables["ASTROM"] = _inputs_table(inputs)
        tables |= solution_tables(inputs)
    return tables


def stored_tables(frame: Frame) -> dict[str, Any]:
    """Give the tables of the file from which a Frame was opened, by name.

    A table is one for the file, or a list with one for each array; where the Frame has only some of
    the file's arrays, the lists have the tables of these. Raises GdaskError where a table cannot be
    read.
    """
    path = frame.attrs.get("tables", "")
    found: dict[str, Any] = {}
    if not path:
        return found
    numbers = [
        number
        for number in range(1, frame.attrs["file_shape"][0] + 1)
        if number in array_numbers(frame)
    ]
    try:
        with open_hdus(path, memmap=False) as hdus:
            for hdu in hdus:
                if not isinstance(hdu, fits.BinTableHDU) or isinstance(hdu, fits.CompImageHDU):
                    continue
                table = astable.Table.read(hdu)
                for keyword in ("EXTNAME", "EXTVER", "CHECKSUM", "DATASUM"):
                    table.meta.pop(keyword, None)
                if "EXTVER" not in hdu.header:
                    found[hdu.name] = table
                elif hdu.ver in numbers:
                    found.setdefault(hdu.name, []).append(table)
    except Exception as error:  # astropy's errors are of many kinds
        raise GdaskError(
            f"{path}: its tables cannot be read ({error}); copy the file again"
        ) from error
    return found


def _inputs_table(inputs: Sequence[dict[str, Any]]) -> astable.Table:
    """Give the table of the geometry of every array of every frame in a stack.

    It has the frame's name, its matches and residuals (mas), how it was placed among the others,
    the error of that (mas), the number of the group of frames that its stars tie it to (0: none),
    and what ties it, in words.
    """
    rows = [(source, number) for source in inputs for number in range(len(source["geometry"]))]
    table = geometry_table([source["geometry"][number] for source, number in rows])
    table.add_column([source["name"] for source, _ in rows], name="NAME", index=0)
    table.add_column([number + 1 for _, number in rows], name="ARRAY", index=1)
    for name, column in (("matches", "MATCHES"), ("rms_mas", "RMS_MAS"), ("terms", "TERMS")):
        table[column] = [source.get(name, 0) for source, _ in rows]
    table["RMS_MAS"] = in_steps(table["RMS_MAS"], "mas")
    if any("map_px" in source for source, _ in rows):
        map_errors = [float(source.get("map_px", np.nan)) for source, _ in rows]
        table["MAP_ERR"] = in_steps(map_errors, "pix")
    if any("placed" in source for source, _ in rows):
        table["PLACED"] = [str(source.get("placed", "")) for source, _ in rows]
        place_errors = [float(source.get("error_mas", np.nan)) for source, _ in rows]
        table["PLACE_ERR"] = in_steps(place_errors, "mas")
        table["GROUP"] = [int(source.get("group", 0)) for source, _ in rows]
        table["TIE"] = [str(source.get("tie", "")) for source, _ in rows]
    if any("throughput" in source for source, _ in rows):
        for name, column in (
            ("throughput", "THRUPUT"),
            ("throughput_error", "THRU_ERR"),
            ("throughput_factor", "SCALED_BY"),
            ("core_share", "CORE"),
            ("core_error", "CORE_ERR"),
        ):
            table[column] = [float(source.get(name, np.nan)) for source, _ in rows]
    table.meta |= _tie_keywords(
        next((source["reference_tie"] for source in inputs if source.get("reference_tie")), {})
    )
    return table


def _tie_keywords(tie: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keywords of ASTROM about the tie; none without one, no number that is unknown."""
    if not tie.get("ok"):
        return {}
    found = {}
    for name, (keyword, comment) in _TIE_KEYWORDS.items():
        if np.isfinite(tie[name]):
            found[keyword] = (round(float(tie[name]), 4), comment)
    return found


def geometry_table(geometries: Sequence[Geometry]) -> astable.Table:
    """Give a table with a row for each array: the fields of Geometry.

    Polynomials are vectors, padded with zeros to one length.
    """
    columns: dict[str, Any] = {}
    for name in Geometry._fields:
        values = [getattr(geometry, name) for geometry in geometries]
        if isinstance(values[0], tuple):
            length = max(len(value) for value in values)
            if length == 0:
                continue
            values = [tuple(value) + (0.0,) * (length - len(value)) for value in values]
        columns[name.upper()] = np.array(values, np.float64)
    return astable.Table(columns)


def geometries_of(table: astable.Table) -> tuple[Geometry, ...]:
    """Give the geometries that `geometry_table` wrote."""
    columns: dict[str, list[Any]] = {}
    for name in Geometry._fields:
        if name.upper() in table.colnames:
            column = np.asarray(table[name.upper()], np.float64)
            columns[name] = [
                tuple(row.tolist()) if column.ndim > 1 else float(row) for row in column
            ]
    return tuple(
        Geometry(**{name: values[row] for name, values in columns.items()})
        for row in range(len(table))
    )


def read_rows(path: str, name: str) -> list[dict[str, str]]:
    """Read the rows of a table of texts in a file; none where the file has no such table.

    Raises GdaskError where it cannot be read.
    """
    if problem := why_no_file(path):
        raise GdaskError(f"{path}: {problem}; a FITS file was expected")
    try:
        with open_hdus(path, memmap=False) as hdus:
            table = astable.Table(hdus[name].data) if name in hdus else astable.Table()
            return [
                {column: str(row[column]).strip() for column in table.colnames} for row in table
            ]
    except Exception as error:  # astropy's errors are of many kinds
        raise GdaskError(
            f"{path}: table {name} cannot be read ({error}); copy the file again"
        ) from error


def _with_units(table: astable.Table) -> astable.Table:
    """Give OBJCAT with the unit of each column."""
    for name in table.colnames:
        known = [
            unit
            for affix, unit in _UNITS_BY_AFFIX
            if name.endswith(affix) or name.startswith(affix)
        ]
        if known:
            table[name].unit = known[0]
    return table


def _with_sky_positions(frame: Frame, number: int, catalog: np.ndarray) -> np.ndarray:
    """Give the catalogue of an array (number from 0) with right ascension and declination."""
    filled = catalog.copy()
    x, y = filled["X_IMAGE"] - 1.0, filled["Y_IMAGE"] - 1.0
    grid, geometry = grid_of(frame), geometries(frame)
    if grid is not None:
        filled["X_WORLD"], filled["Y_WORLD"] = grid_to_sky(grid, x, y)
    elif geometry:
        filled["X_WORLD"], filled["Y_WORLD"] = to_sky(geometry[number], x, y)
    return filled


def each_table(
    tables: Mapping[str, astable.Table | Sequence[astable.Table]],
) -> list[tuple[str, tuple[astable.Table, int | None]]]:
    """Give (name, (table, EXTVER)) of each table.

    A table of the whole file has no EXTVER, those of its arrays have 1, 2 ... (as in astrodata).
    """
    flat: list[tuple[str, tuple[astable.Table, int | None]]] = []
    for name, value in tables.items():
        if isinstance(value, (list, tuple)):
            flat += [
                (name, (astable.Table(table), number)) for number, table in enumerate(value, 1)
            ]
        else:
            flat.append((name, (astable.Table(value), None)))
    return flat


def table_bytes(name: str, table: astable.Table, version: int | None) -> bytes:
    """Give a table as the records of an extension, with a checksum and descriptions as TCOMM."""
    hdu = fits.table_to_hdu(table)
    hdu.name = name
    if version is not None:
        hdu.ver = version
    for number, column in enumerate(table.colnames, 1):
        if table[column].description:
            hdu.header[f"TCOMM{number}"] = table[column].description
        if name == "OBJCAT" and column in _UCDS:
            hdu.header[f"TUCD{number}"] = _UCDS[column]
    hdu.add_checksum(when="checksum")  # else its comment is the time, and no two files are the same
    memory = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(memory)
    return memory.getvalue()[RECORD_BYTES:]
