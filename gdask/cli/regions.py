"""gdask regions: the sources of products as region files for ds9, ginga and others."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gdask.cli import existing_file, parser_for, run_command
from gdask.cli.lists import expand_files
from gdask.headers import open_hdus
from gdask.model import GdaskError, UsageError, clean

#: Radius of a circle in FWHM of its source: most of the light is inside, and the star in its middle
#: can be seen.
RADIUS_IN_FWHM = 1.5
#: Pixels: a source that is sharper, or of which FWHM is not known, has a circle as of this FWHM.
LEAST_FWHM = 3.0
#: Colours: of sources without flags, and of those that are crowded, blended, saturated or cut.
GOOD, FLAGGED = "green", "red"


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = parser_for(
        "gdask regions",
        "Write the catalogue OBJCAT of each product as a region file of ds9, NAME.reg in this "
        "folder: a circle for each source, in sky coordinates, green, or red where it has FLAGS.",
        "  gdask regions S20170505S0095_image.fits\n"
        "  ds9 S20170505S0095_image.fits -regions S20170505S0095_image.reg",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="products, or @FILE for a list")
    parser.add_argument("-o", "--out", metavar="FILE", help="name of the region file, of one FILE")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 done, 1 a file has no catalogue, 2 usage."""
    return run_command(build_parser(), argv, _write)


def _write(args: argparse.Namespace) -> int:
    paths = expand_files(args.files)
    if args.out and len(paths) != 1:
        raise UsageError(f"--out {args.out}: {len(paths)} files came, one was expected")
    for path in paths:
        name = args.out or f"{os.path.basename(path).removesuffix('.gz').removesuffix('.fits')}.reg"
        lines = list(region_lines(existing_file(path)))
        Path(name).write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        print(clean(f"{name}: {len(lines) - 2} sources of {path}"))
    return 0


def region_lines(path: str) -> Iterator[str]:
    """Give the lines of the region file of a product: two, and one for each source.

    Raises GdaskError where the file cannot be read or has no catalogue.
    """
    try:
        with open_hdus(path, memmap=False) as units:
            catalogues = [unit.data for unit in units if unit.name == "OBJCAT"]
            science = [unit.header for unit in units if unit.name == "SCI"]
    except (OSError, ValueError) as error:
        raise GdaskError(f"{path}: cannot be read ({error}); a FITS file was expected") from None
    if not catalogues or not science:
        raise GdaskError(
            f"{path}: has no catalogue (OBJCAT); an image, or sky-subtracted frames, was expected"
        )
    frame = str(science[0].get("RADESYS", "FK5")).strip().lower()
    yield "# Region file format: DS9 version 4.1"
    yield frame if frame in ("fk5", "fk4", "icrs") else "fk5"
    for catalogue, header in zip(catalogues, science, strict=False):
        cd = [header.get(f"CD{i}_{j}", 0.0) for i in (1, 2) for j in (1, 2)]
        scale = 3600 * abs(cd[0] * cd[3] - cd[1] * cd[2]) ** 0.5  # arcsec a pixel
        for row in catalogue:
            fwhm = float(row["FWHM_IMAGE"])  # not known of sources with too few pixels
            radius = RADIUS_IN_FWHM * scale * max(LEAST_FWHM, fwhm)
            colour = FLAGGED if row["FLAGS"] else GOOD
            yield (
                f'circle({row["X_WORLD"]:.7f},{row["Y_WORLD"]:+.7f},{radius:.3f}") '
                f"# color={colour} text={{{row['NUMBER']}}}"
            )


if __name__ == "__main__":
    sys.exit(main())
