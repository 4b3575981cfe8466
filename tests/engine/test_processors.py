"""The same bits on processors of other kinds: other linear algebra, other loops, no fused sums."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def reduced_from(
    files: Sequence[str], processor: Mapping[str, str], folder: Path, options: Sequence[str]
) -> tuple[str, dict]:
    """Reduce in a process of its own; give how it computes, and all of the image but times."""
    variables = dict(processor)
    if "NPY_DISABLE_CPU_FEATURES" in variables:
        variables["NPY_DISABLE_CPU_FEATURES"] = features_of_numpy()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "-q", *files, *options],
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
    # Sums of tables that hold times are not alike.
    found["cards"] = [
        card
        for card in cards
        if not TIME_OF_RUN.search(card) and not card.startswith(("CHECKSUM", "DATASUM", "DATE"))
    ]
    path.unlink()
    for left in (folder / ".gdask").glob("*"):
        assert not left.is_dir() or not list(left.glob("*/fetched.npz")), "a checkpoint is used"
    return done.stdout.splitlines()[0], found


def reduced_on(processor: Mapping[str, str], night: Any, folder: Path) -> tuple[str, dict]:
    """Reduce the night of GSAOI."""
    options = ["-p", "prepare:bad_wcs=fix", "skyCorrect:offset_sky=False"]
    return reduced_from(night.sequence, processor, folder, options)


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


@pytest.fixture(scope="module")
def crowded_f2(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Science frames of a crowded night of FLAMINGOS-2, sky on target; its dark and flat."""
    from astropy.table import Table

    from gdask import Reduce
    from gdask.simulate import simulate_f2

    folder = tmp_path_factory.mktemp("crowded")
    simulate_f2(folder, size=384, field="crowded", n_science=6, n_darks=3, n_short_darks=3)
    rows = Table.read(folder / "truth" / "frames.ecsv")
    files: dict[str, list[str]] = {}
    for row in rows:
        kind = f"dark of {row['exptime']:g} s" if row["kind"] == "dark" else str(row["kind"])
        files.setdefault(kind, []).append(str(folder / "raw" / row["file"]))
    darks = sorted((name for name in files if "dark" in name), key=lambda name: float(name[8:-2]))
    options = ["--user_cal"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, names in (
            ("processed_dark", files[darks[-1]]),
            ("processed_flat", [*files["flat_on"], *files["flat_off"]]),
        ):
            reduction = Reduce()
            reduction.files.extend(names)
            reduction.runr()
            options.append(f"{kind}:{folder / reduction.output_filenames[0]}")
    return files["science"], options


@pytest.mark.slow
def test_a_crowded_field_has_the_same_bits_on_each_kind_of_processor(
    crowded_f2: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """A stack's light is taken out of its sky frames: what differs early is carried around."""
    files, options = crowded_f2
    here = reduced_from(files, {}, tmp_path, options)
    for kind, variables in PROCESSORS.items():
        other = dict(variables)
        if kind == "compiled for any":
            other["NUMBA_CACHE_DIR"] = str(tmp_path / "compiled")
        assert_alike(reduced_from(files, other, tmp_path, options)[1], here[1])
