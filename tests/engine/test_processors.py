"""The same bits on processors of other kinds: other linear algebra, other loops, no fused sums."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits
from helpers import TIME_OF_RUN, content

#: Processors, as libraries can be told to take this one for: by the variables of an environment.
PROCESSORS: dict[str, dict[str, str]] = {
    "OpenBLAS of 2004": {"OPENBLAS_CORETYPE": "Prescott"},
    "OpenBLAS of 2009": {"OPENBLAS_CORETYPE": "Nehalem"},
    "OpenBLAS of 2013": {"OPENBLAS_CORETYPE": "Haswell"},
    "NumPy without what this processor adds": {"NPY_DISABLE_CPU_FEATURES": "all"},
    "C library without fused sums": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F"},
    "compiled for any": {"NUMBA_CPU_NAME": "generic"},
}
#: Does the work and then says how this process computes, where libraries take the environment.
COMMAND = """
import hashlib, sys
import numpy as np
x = np.random.default_rng(1).normal(size=(40, 200))
found = (x.T @ x, np.arctan2(x, 1.7), np.sin(x))
print(*(hashlib.sha256(each.tobytes()).hexdigest()[:8] for each in found))
from gdask.cli.reduce import main
sys.exit(main(sys.argv[1:]))
"""


def features_of_numpy() -> str:
    """Give what NumPy uses of this processor beyond what it needs anywhere."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])


def reduced_on(processor: Mapping[str, str], night: Any, folder: Path) -> tuple[str, dict]:
    """Reduce in a process of its own; give how it computes, and all of the image but times."""
    variables = dict(processor)
    if "NPY_DISABLE_CPU_FEATURES" in variables:
        variables["NPY_DISABLE_CPU_FEATURES"] = features_of_numpy()
    parameters = ["-p", "prepare:bad_wcs=fix", "skyCorrect:offset_sky=False"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "-q", *night.sequence, *parameters],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("*_image.fits")
    with fits.open(path) as hdus:
        cards = [str(card) for hdu in hdus for card in hdu.header.cards]
    found: dict[Any, object] = dict(content(path))
    # Sums of tables that hold times are not alike, and no product says what it was made on.
    found["cards"] = [
        card
        for card in cards
        if not TIME_OF_RUN.search(card) and not card.startswith(("CHECKSUM", "DATASUM", "DATE"))
    ]
    path.unlink()
    for left in (folder / ".gdask").glob("*"):
        assert not left.is_dir() or not list(left.glob("*/fetched.npz")), "a checkpoint is used"
    return done.stdout.splitlines()[0], found


@pytest.fixture
def image_here(calibrated: Path, night: Any) -> tuple[str, dict]:
    return reduced_on({}, night, calibrated)


def assert_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


def test_another_processor_gives_the_same_image(
    image_here: tuple[str, dict], calibrated: Path, night: Any
) -> None:
    """All at once but what is compiled, which takes long; it computes otherwise, indeed."""
    other = {
        name: value
        for kind in ("OpenBLAS of 2004", "NumPy without what this processor adds")
        for name, value in PROCESSORS[kind].items()
    } | PROCESSORS["C library without fused sums"]
    way, found = reduced_on(other, night, calibrated)
    if way == image_here[0]:
        pytest.skip("libraries compute here as on any processor")
    assert_alike(found, image_here[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROCESSORS)
def test_each_kind_of_processor_gives_the_same_image(
    kind: str, image_here: tuple[str, dict], calibrated: Path, night: Any, tmp_path: Path
) -> None:
    other = dict(PROCESSORS[kind])
    if kind == "compiled for any":
        other["NUMBA_CACHE_DIR"] = str(tmp_path / "compiled")
    assert_alike(reduced_on(other, night, calibrated)[1], image_here[1])
