"""Pictures of README.md.

    python -m benchmarks.pictures product IMAGE.fits docs/images/stack.png
    python -m benchmarks.pictures chart docs/images/comparison.png

`product` draws a stack (the demo's: `make demo`), `chart` the table of stated measurements,
measurements.toml.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from astropy.visualization import AsinhStretch, ImageNormalize

import gdask

TABLE = Path(__file__).with_name("measurements.toml")
#: Blue and orange of Okabe and Ito's palette, which the colour-blind tell apart.
COLOURS = {"gdask": "#0072b2", "peer": "#e69f00"}
NO_DATA = 16


def draw_product(path: str, out: str) -> None:
    """Draw a stack, and a quarter of it larger, with the bright sources of its catalogue.

    path: an image of `reduce` or `gdask run`; out: the PNG, of 1020 x 442 pixels.
    """
    image = gdask.open(path)
    dq = image.dq.data[0].compute()
    pixels = np.where(dq & NO_DATA, np.nan, image.data.data[0].compute())
    low, high = np.nanpercentile(pixels, (2, 99.7))
    norm = ImageNormalize(vmin=low, vmax=high, stretch=AsinhStretch(0.1))
    catalogue = gdask.tables(image)["OBJCAT"][0]
    figure, axes = plt.subplots(
        1, 2, figsize=(12, 5.2), subplot_kw={"projection": gdask.wcs(image)[0]}
    )
    figure.subplots_adjust(left=0.1, right=0.98, top=0.93, bottom=0.1)
    for axis in axes:
        axis.imshow(pixels, origin="lower", cmap="gray", norm=norm)
        axis.set(xlabel="RA", ylabel="Dec")
        axis.set_facecolor("#d9d9d9")
    rows, columns = (np.flatnonzero(np.isfinite(pixels).any(axis=n)) for n in (1, 0))
    (high_y, low_x), size = (rows.max(), columns.min()), 640
    axes[0].set_title("SCI (electrons): four arrays, nine frames; no data is grey", fontsize=11)
    axes[1].set_title("a part of it, with the brightest sources of OBJCAT", fontsize=11)
    x, y = catalogue["XPSF_IMAGE"] - 1, catalogue["YPSF_IMAGE"] - 1
    inside = (x > low_x) & (x < low_x + size) & (y > high_y - size) & (y < high_y)
    bright = np.flatnonzero(inside)[np.argsort(catalogue["FLUX_PSF"][inside])[-40:]]
    axes[1].scatter(x[bright], y[bright], s=90, facecolors="none", edgecolors=COLOURS["peer"])
    axes[1].set(xlim=(low_x, low_x + size), ylim=(high_y - size, high_y))
    figure.savefig(out, dpi=85)
    plt.close(figure)


def measurements() -> list[dict[str, Any]]:
    """Give the rows of measurements.toml: name, unit, gdask, peer, page and row of the page."""
    return tomllib.loads(TABLE.read_text())["measurement"]


def draw_chart(out: str) -> None:
    """Draw the table of measurements, less is better in each, as a PNG."""
    rows = measurements()
    figure, axes = plt.subplots(2, 3, figsize=(10, 3.6), layout="constrained")
    for axis, row in zip(axes.flat, rows, strict=True):
        for place, who in enumerate(("peer", "gdask")):
            axis.barh(place, row[who], color=COLOURS[who], height=0.7)
            axis.text(row[who], place, f" {row[who]:g} {row['unit']}", va="center", fontsize=10)
        axis.set_yticks([0, 1], ["DRAGONS", "gdask"])
        axis.set_xlim(0, 1.35 * max(row["gdask"], row["peer"]))
        axis.set_xticks([])
        axis.set_title(row["name"], fontsize=11, loc="left")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def main() -> None:
    """Draw what the command line asks for."""
    match sys.argv[1:]:
        case ["product", path, out]:
            draw_product(path, out)
        case ["chart", out]:
            draw_chart(out)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
