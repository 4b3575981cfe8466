"""Pictures of raw files, calibrations and products.

On matplotlib axes, for scripts and notebooks: `image`, `dq`, `arrays`, `catalog`, `depth`,
`background`, `noise`, `fwhm`, `residuals`, `frames`. As a picture of pillow: `draw`. `show` gives
what a notebook displays of a file or Frame. `make_pictures` writes those of a product into a
folder, for reports.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name -> module. They are imported when first used: matplotlib is heavy.
_IMPORTED_ON_USE = {
    **dict.fromkeys(
        (
            "image",
            "dq",
            "arrays",
            "catalog",
            "depth",
            "background",
            "noise",
            "fwhm",
            "residuals",
            "frames",
        ),
        "gdask.plot.axes",
    ),
    "draw": "gdask.plot.show",
    "show": "gdask.plot.notebook",
    **dict.fromkeys(
        ("Picture", "make_pictures", "read_pictures", "read_notes"), "gdask.plot.product"
    ),
}

__all__ = [*_IMPORTED_ON_USE]  # noqa: PLE0604 (the names are strings: keys of the table)


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module 'gdask.plot' has no attribute {name!r}")
    return getattr(importlib.import_module(_IMPORTED_ON_USE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
