"""Where compiled code is kept on disk, and who of many processes compiles what all need.

Files are written whole under names that say what they depend on, and never changed: the folder is
named after the text of all kernels, the versions of Python, numba and LLVM, and the processor; the
file after the function and the types of its arguments.

It is the folder NUMBA_CACHE_DIR if that is set; else beside this module if one may write there;
else in ~/.cache/gdask. Without NUMBA_CACHE_DIR both are looked at, so that what an installer has
put beside this module is found.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gdask.model import host

#: Seconds after which another process that compiles a function is not waited for any more.
LONGEST_WAIT = 60.0
#: Bytes of the digest at the beginning of a file.
_DIGEST_BYTES = 32
#: Sources that compiled code depends on, below the package: kernels, and the constants they use.
_SOURCES = ("kernels/**/*.py", "model.py", "types.py")


class Use(NamedTuple):
    """A compiled function and the types of its arguments, as texts."""

    module: str
    function: str
    types: str


# Folders --------------------------------------------------------------------------------------


def folder() -> Path:
    """Give the folder that compiled code is written to, for this version and machine."""
    return _folders()[0] / f"gdask-{version()}"


def _folders() -> list[Path]:
    """Give the folders that may hold compiled code; it is written to the first."""
    beside = Path(__file__).parent / "__pycache__"
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdask"
    return [beside, home] if _is_writable(beside) else [home, beside]


@functools.cache
def _is_writable(path: Path) -> bool:
    """Tell whether files can be made in a folder, which is made where there is none."""
    try:
        path.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return False
    return True


@functools.cache
def version() -> str:
    """Give a digest of all that compiled code depends on, but for function and types."""
    import llvmlite
    import numba
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    found = hashlib.sha256()
    package = Path(__file__).parents[1]
    for pattern in _SOURCES:
        for path in sorted(package.glob(pattern)):
            found.update(path.read_bytes())
    with global_compiler_lock:  # threads must not make two of what compiles for this processor
        machine = cpu_target.target_context.codegen().magic_tuple()
    versions = (sys.version_info[:2], platform.python_implementation(), numba.__version__)
    found.update(repr((*versions, llvmlite.__version__, machine)).encode())
    return found.hexdigest()[:16]


def _name(use: Use) -> str:
    digest = hashlib.sha256("\n".join(use).encode()).hexdigest()[:20]
    return f"{use.module.rpartition('.')[2]}.{use.function}-{digest}.nbc"


def path_of(use: Use) -> Path:
    return folder() / _name(use)


def is_kept(use: Use) -> bool:
    """Tell whether a function has been compiled for these types, in any of the folders."""
    name = f"gdask-{version()}/{_name(use)}"
    return any((root / name).exists() for root in _folders())


def read_kept(use: Use) -> bytes | None:
    """Read what is kept; None where there is nothing, or a file that is not whole."""
    name = f"gdask-{version()}/{_name(use)}"
    for root in _folders():
        with suppress(OSError):
            content = (root / name).read_bytes()
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() == content[:_DIGEST_BYTES]:
                return content[_DIGEST_BYTES:]
    return None


def write_kept(use: Use, content: bytes) -> None:
    """Write a file whole or not at all."""
    path = path_of(use)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{host()}.{os.getpid()}.part")
    try:
        part.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# One compiles, the others wait ----------------------------------------------------------------


def _claim_path(use: Use) -> Path:
    path = path_of(use)
    return path.with_name(f"{path.name}.claim")


def claim_or_wait(use: Use) -> bytes | None:
    """Wait while another process compiles this; give its result, or None: it is ours to compile.

    Claims save work and nothing else: two that compile the same write the same.
    """
    claim = _claim_path(use)
    deadline = time.monotonic() + LONGEST_WAIT
    while not _claim(claim):
        if _is_abandoned(claim) or time.monotonic() > deadline:
            claim.unlink(missing_ok=True)
        time.sleep(0.01)
    content = read_kept(use)  # it may have come between the first look and the claim
    if content is not None:
        release(use)
    return content


def _claim(claim: Path) -> bool:
    """Make the claim; False where another process has it."""
    try:
        claim.parent.mkdir(parents=True, exist_ok=True)
        with open(claim, "x", encoding="ascii") as file:
            file.write(f"{host()} {os.getpid()}")
    except FileExistsError:
        return False
    except OSError:  # nobody can write here, and nobody waits
        return True
    return True


def _is_abandoned(claim: Path) -> bool:
    """Tell whether the process of a claim is gone, or is this one, whose compilation has failed."""
    try:
        name, pid = claim.read_text("ascii").split()
        if name != host():
            return False
        if int(pid) == os.getpid():
            return True
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # gone, being written, or of another user
        return False
    return False


def is_claimed(use: Use) -> bool:
    """Tell whether a process is compiling this."""
    claim = _claim_path(use)
    return claim.exists() and not _is_abandoned(claim)


def release_all(pid: int) -> None:
    """Remove all claims of a process of this host, which has ended or is about to."""
    for claim in folder().glob("*.claim"):
        with suppress(OSError):
            if claim.read_text("ascii").split() == [host(), str(pid)]:
                claim.unlink()


def release(use: Use) -> None:
    with suppress(OSError):
        _claim_path(use).unlink(missing_ok=True)
