"""gdask show: a picture of a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gdask.cli import existing_file, parser_for, run_command
from gdask.cli.lists import expand_files
from gdask.model import GdaskError, UsageError, clean, clean_lines, why_no_file

DESCRIPTION = """\
Make a picture of a raw file, a calibration or a product: FILE.png beside the file, or on the screen
where the terminal can show pictures (kitty, iTerm2, sixel). The four arrays of GSAOI lie as on the
sky, North up and East left, with a scale bar and arrows; flats, darks and masks as the detector has
them. Grey levels: the sky is dark, asinh brings out faint sources; the arrays of a raw file, whose
skies and biases differ, are moved to one level."""

EXAMPLES = """\
  gdask show S20170505S0095.fits                       S20170505S0095.png
  gdask show S20170505S0095_image.fits --dq --objects -o stack.png
  gdask show S20170505S0095_image.fits --catalog gaia.ecsv
  gdask show raw/S20170505S009*.fits --blink -o blink.gif
  gdask show raw/S20170505S0030.fits --as-read"""

#: Longer side of a picture in pixels: in a file, on the screen; and the bounds of --size.
FILE_PIXELS, SCREEN_PIXELS, LEAST, MOST = 1600, 800, 16, 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gdask show`; 0 done, 1 a file could not be shown, 2 wrong usage."""
    return run_command(build_parser(), argv, show)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `gdask show`."""
    parser = parser_for("gdask show", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="FITS files with images, or @LIST of them"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="name of the PNG; of several files, a folder for them; with --blink, NAME.gif or .png",
    )
    parser.add_argument(
        "--as-read",
        action="store_true",
        help="arrays side by side as the detector has them, not turned to the sky",
    )
    parser.add_argument(
        "--dq",
        action="store_true",
        help="flagged pixels in colours: orange bad, purple saturated, yellow cosmic ray, light "
        "blue non-linear, blue not lit, green overlap, grey no data",
    )
    parser.add_argument(
        "--objects", action="store_true", help="rings around the sources of the file's own OBJCAT"
    )
    parser.add_argument(
        "--catalog",
        metavar="TABLE",
        help="rings at the positions of a catalogue (columns RA, Dec in degrees; FITS, VOTable, "
        "ECSV, CSV)",
    )
    parser.add_argument(
        "--blink",
        action="store_true",
        help="all files one after another in a moving picture (GIF, or APNG by its name)",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.5, metavar="S", help="time of each (default: 0.5)"
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help=f"longer side of the picture, at most (default: {FILE_PIXELS}, on the screen "
        f"{SCREEN_PIXELS})",
    )
    return parser


def show(options: argparse.Namespace) -> int:
    """Make the pictures; one that fails does not keep the others from being made."""
    files = [existing_file(path) for path in expand_files(options.files)]
    _check(options, files)
    from gdask.plot.show import Look, draw
    from gdask.plot.terminal import escape, protocol

    screen = "" if options.output or options.blink else protocol(os.environ, sys.stdout)
    pixels = options.size or (SCREEN_PIXELS if screen else FILE_PIXELS)
    look = Look(pixels, options.as_read, options.dq, options.objects, options.catalog)
    if options.blink:
        return _blink(options, files, look)
    failed = 0
    taken: set[Path] = set()
    for path in files:
        try:
            picture = draw(path, look)
        except GdaskError as error:
            failed += 1
            print(clean_lines(f"gdask show: {error}"), file=sys.stderr)
            continue
        if screen:
            print(clean(path))
            sys.stdout.write(escape(picture, screen))
            continue
        target = _target(path, options.output, len(files), taken)
        _save(picture, target)
        print(clean(target))
    return 1 if failed else 0


def _check(options: argparse.Namespace, files: list[str]) -> None:
    """Raise UsageError for what does not go together, before any pixel is read."""
    if not files:
        raise UsageError("no file to show; the list is empty")
    if options.size is not None and not LEAST <= options.size <= MOST:
        raise UsageError(f"--size {options.size}: {LEAST} to {MOST} pixels are possible")
    if not 0.02 <= options.seconds <= 60:
        raise UsageError(f"--seconds {options.seconds:g}: 0.02 to 60 are possible")
    if options.catalog and (problem := why_no_file(options.catalog)):
        raise UsageError(f"--catalog {options.catalog}: {problem}")
    output = Path(options.output) if options.output else None
    if options.blink:
        if len(files) < 2:
            raise UsageError("--blink needs two files or more")
        if output and output.suffix.lower() not in (".gif", ".png", ".apng"):
            raise UsageError(f"-o {output}: a moving picture is NAME.gif, NAME.png or NAME.apng")
    elif output and not output.is_dir():
        if len(files) > 1:
            raise UsageError(f"-o {output}: of {len(files)} files, name a folder that exists")
        if output.suffix.lower() != ".png":
            raise UsageError(f"-o {output}: NAME.png or a folder that exists was expected")
    if output and not output.is_dir() and not output.parent.is_dir():
        raise UsageError(f"-o {output}: no folder {output.parent}; make it first")


def _blink(options: argparse.Namespace, files: list[str], look: object) -> int:
    from gdask.plot.show import Look, blink, blink_views

    assert isinstance(look, Look)
    pictures, names = blink_views(files, look)
    target = Path(options.output or "blink.gif")
    if target.is_dir():
        target = target / "blink.gif"
    blink(pictures, names, target, options.seconds)
    print(clean(target))
    return 0


def _target(path: str, output: str | None, count: int, taken: set[Path]) -> Path:
    """Give the name of a file's picture: beside it, in a folder, or as asked for.

    Two files of one name in one folder: the second is called NAME_2.png.
    """
    if output and not os.path.isdir(output):
        return Path(output)
    from gdask.plot.show import png_name

    name, number = png_name(Path(path).name), 1
    folder = Path(output) if output else Path(path).parent
    target = folder / name
    while target in taken:
        number += 1
        target = folder / f"{name.removesuffix('.png')}_{number}.png"
    taken.add(target)
    return target


def _save(picture: object, target: Path) -> None:
    from gdask.io.whole import write_whole
    from gdask.plot.raster import png_bytes

    write_whole(target, png_bytes(picture))  # type: ignore[arg-type]
