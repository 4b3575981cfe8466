"""Small files that are there whole or not at all; nothing with another name is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gdask.model import owner


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a hidden name beside `path` to write to; at the end the file gets its own.

    After an error or a signal the hidden file is removed. Raises OSError with the name `path`.
    """
    path = Path(path)
    hidden = path.with_name(f".{path.name}.{owner()}.part")
    try:
        yield hidden
        os.replace(hidden, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        hidden.unlink(missing_ok=True)


def write_whole(
    path: str | os.PathLike[str], content: str | bytes, *, durable: bool = True
) -> None:
    """Write a file, and its folder where there is none. durable: also if the machine stops then."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with whole_file(path) as hidden, open(hidden, "wb") as stream:
        stream.write(content if isinstance(content, bytes) else content.encode())
        if durable:
            stream.flush()
            os.fsync(stream.fileno())
