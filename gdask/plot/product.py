"""All pictures of a product, as PNG in a folder, for reports."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gdask.headers.numbers import read_numbers
from gdask.io.frames import primary_header
from gdask.io.whole import write_whole
from gdask.model import GdaskError, clean, read_json
from gdask.plot import charts, views
from gdask.plot.layout import celestial, layout_of
from gdask.plot.material import Made, Material, Missing, Picture
from gdask.plot.planes import frame_of, read_planes, step_for
from gdask.plot.tables import read_tables
from gdask.types import Frame

__all__ = ["Picture", "make_pictures", "read_notes", "read_pictures"]

#: Longer side of the preview in pixels. Frames are many: of one with four arrays of 2048 pixels it
#: takes 0.15 s of a processor, 5 % of the time in which the frame is made; a graph takes as much.
PREVIEW_PIXELS, FRAME_PIXELS = 1600, 640
#: Name of the list of a folder's pictures; it is written last.
LIST = "pictures.json"


def make_pictures(
    product: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    raw: bool = False,
    predecessor: str | os.PathLike[str] | None = None,
) -> tuple[Picture, ...]:
    """Make the pictures of a product and write them into a folder.

    Pixels are read in strips of rows; what is kept is of the size of the pictures. The same product
    gives the same bytes. `pictures.json` lists them, and is written last: without it a folder has
    none. A picture that cannot be made is left out; `read_notes` says why.

    Parameters
    ----------
    product
        An image (stack), sky-subtracted frame, flat, dark or bad-pixel mask made by gdask.
    folder
        Made where it does not exist. Of an earlier call, pictures are replaced.
    raw
        Whether a file that is no product is shown as well.
    predecessor
        An earlier flat of the same arrays: a picture of the ratio to it is added.

    Returns
    -------
    tuple of Picture
        In the order in which they are looked at; the first is the preview.

    Raises
    ------
    GdaskError
        The file cannot be read, has no image, or is no product and `raw` is not set.
    """
    path, folder = Path(product), Path(folder)
    frame = frame_of(path)
    numbers = dict(read_numbers(primary_header(frame)))
    kind = str(numbers.get("kind", ""))
    if not kind and not raw:
        raise GdaskError(f"{path}: no product of gdask (no PROCSCI, PROCFLAT ...); a raw file?")
    made, notes = _all_pictures(frame, kind, numbers, Path(predecessor) if predecessor else None)
    _write(folder, path.name, made, notes)
    return tuple(picture for picture, _ in made)


def read_pictures(folder: str | os.PathLike[str]) -> tuple[Picture, ...]:
    """Read which pictures a folder has; none where they were not made, or not to the end."""
    return tuple(Picture(**row) for row in _read_list(Path(folder)).get("pictures", ()))


def read_notes(folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read why pictures of a product are missing: a line for each reason."""
    return tuple(_read_list(Path(folder)).get("notes", ()))


def _read_list(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / LIST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(folder: Path, product: str, made: list[Made], notes: list[str]) -> None:
    """Write PNGs and, last, their list; remove pictures that an earlier list had."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier = {picture.file for picture in read_pictures(folder)}
    (folder / LIST).unlink(missing_ok=True)
    for picture, content in made:
        write_whole(folder / picture.file, content, durable=False)
    for name in earlier - {picture.file for picture, _ in made}:
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    rows = [picture._asdict() for picture, _ in made]
    text = json.dumps({"product": product, "pictures": rows, "notes": notes}, indent=1)
    write_whole(folder / LIST, text + "\n", durable=False)


# Which pictures --------------------------------------------------------------------------------


def _all_pictures(
    frame: Frame, kind: str, numbers: dict[str, Any], predecessor: Path | None
) -> tuple[list[Made], list[str]]:
    """Make all pictures of a Frame; with notes of those that were not."""
    notes: list[str] = []
    if kind == "frame":  # no picture shows variance or objects: they are not read
        frame = frame[[name for name in ("data", "dq") if name in frame.variables]]
    across = 2 if frame.sizes["detector"] > 1 else 1
    step = step_for(frame, FRAME_PIXELS if kind == "frame" else PREVIEW_PIXELS, across)
    planes = read_planes(frame, step)
    shapes = [plane.mean.shape for plane in planes]
    on_sky = kind in ("image", "frame") and bool(celestial(frame))
    layout = layout_of(frame, shapes, step, on_sky=on_sky)  # type: ignore[arg-type]
    try:
        tables = read_tables(frame.attrs.get("tables", ""), _TABLES) if kind == "image" else {}
    except GdaskError as error:
        tables, notes = {}, [str(error)]
    material = Material(frame, kind, planes, layout, tables, numbers, predecessor)
    made: list[Made] = []
    with contextlib.nullcontext() if kind == "frame" else _plain_style():
        for name, make in _makers(kind):
            try:
                made += make(material)
            except Missing as reason:
                notes.append(f"{name}: {reason}")
            except Exception as error:  # noqa: BLE001 (one must not cost the others, nor the job)
                notes.append(clean(f"{name}: {type(error).__name__}: {error}"))
    return made, notes


_TABLES = ("OBJCAT", "RESIDUALS", "FRAMES", "ASTROM")


def _makers(kind: str) -> list[tuple[str, Callable[[Material], list[Made]]]]:
    first: list[tuple[str, Callable[[Material], list[Made]]]] = [
        ("preview", views.preview),
        ("dq", views.dq_overlay),
    ]
    if kind == "image":
        return [
            *first,
            ("depth", views.depth_overlay),
            ("noise", charts.noise),
            ("depth_map", charts.depth_map),
            ("background", charts.background),
            ("fwhm", charts.fwhm),
            ("residuals", charts.residuals),
            ("frames", charts.frames),
        ]
    if kind in ("frame", "bpm"):
        return first
    return [*first, ("histogram", charts.histogram), ("ratio", views.ratio)]


def _plain_style() -> Any:
    """Give the context in which graphs look alike whatever the user's matplotlibrc says.

    It loads matplotlib, which takes longer than to draw two frames.
    """
    import matplotlib.style

    return matplotlib.style.context(["default", {"axes.titlesize": "medium"}])
