"""Bits numbers: when the pixels of products change, the number of their recipe must be raised."""

from __future__ import annotations

import tomllib
from pathlib import Path

from astropy.io import fits
from conftest import Night

from gdask import Reduce
from gdask.campaign.job import BITS, RECIPES
from gdask.campaign.jobs import SUFFIXES

STORED = Path(__file__).with_name("bits.toml")


def sums(path: Path) -> str:
    """Give the checksums of all pixels of a product."""
    with fits.open(path) as units:
        return "-".join(
            f"{int(unit.header['DATASUM']):08x}"
            for unit in units
            if unit.name in ("SCI", "VAR", "DQ")
        )


def test_products_have_the_stored_bits_or_another_number(
    night: Night, reduced: Path, tmp_path: Path, calibrated: Path
) -> None:
    """If this fails: raise BITS of these recipes in gdask/campaign/job.py, store the new sums."""
    frames = Reduce()
    frames.files.extend(night.sequence)
    frames.recipename = RECIPES["frames"]
    frames.uparms["prepare:bad_wcs"] = "fix"
    frames.runr()
    stack = Reduce()
    stack.files.extend(frames.output_filenames)
    stack.recipename = RECIPES["stack"]
    stack.runr()
    (flat,) = reduced.glob(f"*{SUFFIXES['flat']}.fits")
    found = {
        "flat": sums(flat),
        "frames": sums(calibrated / frames.output_filenames[0]),
        "stack": sums(calibrated / stack.output_filenames[0]),
    }
    stored = tomllib.loads(STORED.read_text())
    now = {kind: {"bits": BITS[kind], "sums": text} for kind, text in found.items()}
    lines = "".join(f'[{k}]\nbits = {v["bits"]}\nsums = "{v["sums"]}"\n' for k, v in now.items())
    assert now == stored, f"{STORED.name} would be:\n{lines}"
