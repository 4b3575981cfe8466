"""Checksums of what went into a product: each is that of its file, and no other."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from gdask.model import BadFile
from gdask.reduction import provenance
from gdask.reduction.provenance import file_checksums


def files_of(folder: Path, *sizes: int) -> list[str]:
    random = np.random.default_rng(1)
    paths = [str(folder / f"{number}.fits") for number in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Path(path).write_bytes(random.bytes(size))
    return paths


#: Forty raw frames of two lengths, and calibrations of their own sizes among them.
SIZES = (*(7_000, 90_000, 7_100) * 13, 500_000, 3_000)


def test_each_sum_is_that_of_its_file(tmp_path: Path) -> None:
    paths = files_of(tmp_path, *SIZES)
    ordered, lazy = file_checksums(paths)
    assert sorted(ordered) == sorted(paths)
    wanted = [hashlib.md5(Path(path).read_bytes()).hexdigest() for path in ordered]
    assert lazy.compute().tolist() == wanted
    # Files of one size are summed side by side, the others on their own.
    assert sorted(lazy.chunks[0]) == [1, 1, 13, 13, 13]


def test_the_file_that_changed_or_went_is_named(tmp_path: Path) -> None:
    paths = files_of(tmp_path, *(1_000,) * 6)
    known = {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths}
    lazy = file_checksums(paths, known)[1]
    lazy.compute()
    os.utime(paths[3], ns=(1, 1))
    with pytest.raises(BadFile, match=r"3\.fits: changed during the run"):
        lazy.compute()
    os.unlink(paths[4])
    os.utime(paths[3], ns=(known[paths[3]][1],) * 2)
    with pytest.raises(BadFile, match=r"4\.fits: vanished during the run"):
        lazy.compute()


def test_the_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files_of(tmp_path, *(1_000,) * 6)
    sums_of = provenance.md5_sums

    def failing(files: list) -> list[str]:
        if any(os.path.samestat(os.fstat(f.fileno()), os.stat(paths[2])) for f in files):
            raise OSError(errno.EIO, "Input/output error")
        return sums_of(files)

    monkeypatch.setattr(provenance, "md5_sums", failing)
    with pytest.raises(BadFile, match=r"2\.fits: .*Input/output error"):
        file_checksums(paths)[1].compute()
