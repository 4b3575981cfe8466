"""gdask: lazy, out-of-core, distributed reduction of Gemini near-infrared imaging.

`open` and `open_many` give lazy Frames (xarray Datasets), `tags` and `descriptor` say what a file
is, `wcs` gives the sky coordinates of each array, `tables` its tables, `write` computes and saves;
the steps are in `gdask.steps`, the recipes in `gdask.recipes`. `Reduce`, `cal_service`,
`dataselect` and `logutils` are the scripting interface that the field knows from DRAGONS.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Public name -> (module, name there). They are imported when first used, so that commands which
#: read only headers start fast.
_IMPORTED_ON_USE = {
    "open": ("gdask.io.read", "open_frame"),
    "open_many": ("gdask.io.read", "open_many"),
    "write": ("gdask.io.write", "write"),
    "tags": ("gdask.instruments", "tags"),
    "descriptor": ("gdask.io.describe", "descriptor"),
    "wcs": ("gdask.io.describe", "wcs"),
    "tables": ("gdask.io.describe", "tables"),
    "Run": ("gdask.reduction.run", "Run"),
    "Reduce": ("gdask.reduction.reduce", "Reduce"),
    "show": ("gdask.plot.notebook", "show"),
    "plot": ("gdask.plot", None),
    "GdaskError": ("gdask.model", "GdaskError"),
    "cal_service": ("gdask.cal_service", None),
    "dataselect": ("gdask.dataselect", None),
    "logutils": ("gdask.logutils", None),
}

__all__ = [  # noqa: PLE0604 (the names are strings: keys of the table)
    "__version__",
    *_IMPORTED_ON_USE,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return globals().setdefault(name, _installed_version())
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module 'gdask' has no attribute {name!r}")
    module, attribute = _IMPORTED_ON_USE[name]
    found = importlib.import_module(module)
    return found if attribute is None else getattr(found, attribute)


def _installed_version() -> str:
    """Give the version of this installation, which is that of the tag that it was built from."""
    from importlib import metadata  # here: commands that read headers need none

    try:
        return metadata.version("gdask")
    except metadata.PackageNotFoundError:  # files that were copied, not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
