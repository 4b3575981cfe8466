"""An instrument that gdask does not know, from a TOML and a few rules: raw frames to a stack."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gdask import Reduce, instruments
from gdask.instruments import tags

#: The instrument of docs/extending.md.
PAGE = (
    (Path(__file__).parents[2] / "docs" / "extending.md").read_text().split("## An instrument")[1]
)
(FACTS,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
RULES, RECIPES, REGISTERING = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

SIZE, SCALE, TARGET = 192, 0.25, (150.0, 20.0)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the instrument and its recipes; forget them afterwards."""
    for name, text in (("tiny.toml", FACTS), ("tiny.py", RULES), ("recipes.py", RECIPES)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(instruments, "_BY_INSTRUME", dict(instruments._BY_INSTRUME))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "tiny", None)  # to be taken away afterwards
    del sys.modules["tiny"]
    monkeypatch.chdir(tmp_path)
    exec(REGISTERING, {})  # noqa: S102  (the page is the project's)
    return str(tmp_path / "recipes.py")


def wcs(east: float, north: float) -> WCS:
    """Give the true WCS of a frame at the target plus an offset (arcsec); North up, East left."""
    found = WCS(naxis=2)
    found.wcs.ctype = "RA---TAN", "DEC--TAN"
    found.wcs.crpix = 96.5, 96.5
    found.wcs.cd = [[-SCALE / 3600, 0], [0, SCALE / 3600]]
    found.wcs.crval = (
        TARGET[0] + east / 3600 / np.cos(np.radians(TARGET[1])),
        TARGET[1] + north / 3600,
    )
    return found


def write(
    path: Path,
    pixels: np.ndarray,
    minute: int,
    frame: WCS | None = None,
    error: tuple[float, float] = (0, 0),
    **cards: object,
) -> str:
    phu = fits.Header(
        {
            "INSTRUME": "TINY",
            "OBJECT": "x",
            "OBSTYPE": "OBJECT",
            "OBSID": "GS-1",
            "FILTER1": "J",
            "FILTER2": "open",
            "EXPTIME": 10.0,
            "DATE-OBS": "2020-05-05",
            "UT": f"03:{minute:02d}:00",
            "RA": TARGET[0],
            "DEC": TARGET[1],
            "PA": 0.0,
            "FRAME": "FK5",
        }
        | cards
    )
    header = frame.to_header() if frame else fits.Header()
    if frame:
        header = fits.Header(
            {f"CD{i}_{j}": frame.wcs.cd[i - 1, j - 1] for i in (1, 2) for j in (1, 2)}
            | {key: header[key] for key in ("CTYPE1", "CTYPE2", "CRPIX1", "CRPIX2")}
            | {
                "CRVAL1": frame.wcs.crval[0] + error[0] / 3600,
                "CRVAL2": frame.wcs.crval[1] + error[1] / 3600,
            }
        )
    header["DETSEC"] = f"[1:{SIZE},1:{SIZE}]"
    fits.HDUList(
        [fits.PrimaryHDU(header=phu), fits.ImageHDU(pixels.astype("f4"), header, name="SCI")]
    ).writeto(path)
    return str(path)


def stars(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give RA, Dec (degrees), flux (e-) of 40 stars around the target, at least 3 arcsec apart."""
    places: list[np.ndarray] = []
    while len(places) < 40:
        new = random.uniform(-21, 21, 2)
        if all(np.hypot(*(new - old)) > 3 for old in places):
            places.append(new)
    east, north = np.array(places).T
    return (
        TARGET[0] + east / 3600 / np.cos(np.radians(TARGET[1])),
        TARGET[1] + north / 3600,
        10 ** random.uniform(4.3, 5.3, 40),
    )


def image(frame: WCS, catalog: tuple[np.ndarray, ...], width: float = 1.6) -> np.ndarray:
    """Render the stars of a frame in electrons, as Gaussians of `width` pixels (sigma)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    found = np.zeros((SIZE, SIZE))
    for ra, dec, flux in zip(*catalog, strict=True):
        px, py = frame.wcs_world2pix(ra, dec, 0)
        found += (
            flux
            / (2 * np.pi * width**2)
            * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2))
        )
    return found


def test_a_new_instrument_from_raw_to_stack(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(7)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    catalog, flat = (
        stars(random),
        np.linspace(0.8, 1.2, SIZE)[None, :]
        * np.ones((SIZE, 1))
        * random.normal(1, 0.02, (SIZE, SIZE)),
    )

    def detector(electrons: np.ndarray) -> np.ndarray:
        return (random.poisson(electrons) + random.normal(0, 8, electrons.shape)) / 2.0

    lamps = [
        write(
            folder / f"T{n}.fits",
            detector(flat * (40000 if n < 4 else 0) + 500),
            n,
            OBSTYPE="FLAT",
            LAMP="on" if n < 4 else "off",
        )
        for n in range(6)
    ]
    science = []
    for n, (east, north) in enumerate(((0, 0), (5, 0), (0, 5), (-5, 0), (0, -5), (4, 4), (-4, 4))):
        true = wcs(east, north)
        pixels = detector((image(true, catalog) + 4000 + 30 * n) * flat)
        science.append(
            write(
                folder / f"T{10 + n}.fits",
                pixels,
                10 + n,
                true,
                tuple(random.normal(0, 0.2, 2)),
                POFFSET=float(east),
                QOFFSET=float(north),
            )
        )
    assert {"TINY", "FLAT", "LAMPON"} <= tags(lamps[0]) and "FLAT" not in tags(science[0])
    for files, recipe in ((lamps, "make_processed_flat"), (science, "reduce")):
        reduction = Reduce()
        reduction.files, reduction.recipename = files, f"{tiny}:{recipe}"
        reduction.runr()
        assert not reduction.set_aside
    check_stack(reduction.output_filenames[-1], catalog)


def check_stack(path: str, catalog: tuple[np.ndarray, ...]) -> None:
    """Check positions (up to the pointing's mean error) and fluxes of all stars, and the sky."""
    with fits.open(path) as hdus:
        data, dq, where = hdus["SCI"].data, hdus["DQ"].data, WCS(hdus["SCI"].header)
    y, x = np.mgrid[: data.shape[0], : data.shape[1]]
    miss, ratio = [], []
    for ra, dec, flux in zip(*catalog, strict=True):
        px, py = where.wcs_world2pix(ra, dec, 0)
        near = np.hypot(x - px, y - py) < 7
        if (dq[near] == 0).all() and near.sum() > 150:
            total = data[near].sum()
            miss.append(
                [
                    (data[near] * (x[near] - px)).sum() / total,
                    (data[near] * (y[near] - py)).sum() / total,
                ]
            )
            ratio.append(total / flux)
    miss = np.array(miss)
    assert len(miss) > 25
    assert np.abs(np.median(miss, axis=0)).max() * SCALE < 0.3
    assert (np.median(np.abs(miss - np.median(miss, axis=0)), axis=0) * SCALE).max() < 0.03
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
    assert abs(np.median(data[dq == 0])) < 5


def test_it_takes_few_lines() -> None:
    assert len(FACTS.strip().splitlines()) + len(RULES.strip().splitlines()) < 60
