"""Raw files on a disk that cannot be written to: nothing is needed beside them, nothing is left."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Night

#: In a mount namespace of its own: the folder of raw files, read only.
_READ_ONLY = (
    "mount --bind {raw} {raw} && mount -o remount,ro,bind {raw} "
    "&& ! touch {raw}/x 2>/dev/null && exec {command}"
)


def namespace() -> list[str]:
    """Give the command that makes a mount namespace; skips the test where none may be made."""
    for options in (["-m"], ["-rm"]):
        line = ["unshare", *options]
        try:
            tried = subprocess.run([*line, "mount", "--bind", "/tmp", "/tmp"], check=False,
                                   capture_output=True, text=True)  # fmt: skip
        except FileNotFoundError:
            pytest.skip("no command unshare")
        if tried.returncode == 0:
            return line
    pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def test_raw_files_on_a_read_only_mount(night: Night, tmp_path: Path) -> None:
    raw, out = night.folder / "raw", tmp_path / "out"
    before = state_of(raw)
    command = [sys.executable, "-m", "gdask.cli.run", str(raw), "-o", str(out)]
    command += ["--until", "calibrations", "--threads", "1"]
    text = _READ_ONLY.format(raw=shlex.quote(str(raw)), command=shlex.join(command))
    done = subprocess.run(
        [*namespace(), "sh", "-c", text],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert len(list((out / "calibrations").rglob("*_flat.fits"))) == 1
    assert state_of(raw) == before
