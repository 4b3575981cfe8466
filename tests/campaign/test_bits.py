"""Bits numbers: when the pixels of products change, the number of their recipe must be raised."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.io import fits
from conftest import Night

from gdask import Reduce
from gdask.campaign.job import BITS, RECIPES

STORED = Path(__file__).with_name("bits.toml")


def sums(path: Path) -> str:
    """Give the checksums of all pixels of a product."""
    with fits.open(path) as units:
        return "-".join(
            f"{int(unit.header['DATASUM']):08x}"
            for unit in units
            if unit.name in ("SCI", "VAR", "DQ")
        )


def in_whole_counts(paths: Iterable[str]) -> list[str]:
    """Copy raw files here with their pixels rounded to whole counts.

    A pixel of a simulated night in some ten million has another last bit on another processor.
    """
    made = []
    for path in paths:
        made.append(shutil.copy(path, "."))
        with fits.open(made[-1], mode="update") as units:
            for unit in units[1:]:
                unit.data = np.round(unit.data)
                unit.add_checksum()
    return made


def products(files: list[str], recipe: str, flat: str = "") -> list[str]:
    """Give the products of a recipe; for raw science frames with a flat."""
    reduction = Reduce()
    reduction.files.extend(files)
    reduction.recipename = recipe
    if flat:
        reduction.uparms["prepare:bad_wcs"] = "fix"
        reduction.ucals = {"processed_flat": flat}
    reduction.runr()
    return reduction.output_filenames


def test_products_have_the_stored_bits_or_another_number(night: Night, calibrated: Path) -> None:
    """If this fails: raise BITS of these recipes in gdask/campaign/job.py, store the new sums."""
    (flat,) = products(in_whole_counts([*night.flat_on, *night.flat_off]), RECIPES["flat"])
    frames = products(in_whole_counts(night.sequence), RECIPES["frames"], flat)
    (stack,) = products(frames, RECIPES["stack"])
    made = {"flat": [flat], "frames": frames, "stack": [stack]}
    now = {
        kind: {"bits": BITS[kind], "sums": [sums(calibrated / name) for name in names]}
        for kind, names in made.items()
    }
    stored = tomllib.loads(STORED.read_text())
    lines = "".join(
        f"[{kind}]\nbits = {one['bits']}\nsums = [\n"
        + "".join(f'    "{text}",\n' for text in one["sums"])
        + "]\n"
        for kind, one in now.items()
    )
    assert now == stored, f"{STORED.name} would be:\n{lines}"
