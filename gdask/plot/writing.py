"""Small files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from gdask.model import owner


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name, then give it its own. Raises OSError with this name."""
    hidden = path.with_name(f".{path.name}.{owner()}")
    try:
        hidden.write_bytes(content)
        os.replace(hidden, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        hidden.unlink(missing_ok=True)
