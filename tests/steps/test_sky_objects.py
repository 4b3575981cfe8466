"""Tests of stars that must not be in a sky: known stars, dithered so that they hide one another."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest
from helpers import on_disk, raw, shape_of, with_pixels

from gdask import steps
from gdask.io.frames import geometries, small, with_fetched, with_geometries
from gdask.kernels.geometry.projection import from_sky, tangent_sky, to_sky
from gdask.kernels.sky.shared_masks import OUTLINE_PIXELS
from gdask.model import DQ
from gdask.steps.sources import _with_blocks
from gdask.types import Frame, Frames

#: Sky and noise (e-), and peaks (e-) and sigma (pixels) of four stars, of which each frame has
#: another one on the same pixels.
SKY, NOISE, PEAKS, SIGMA = 2000.0, 5.0, (1000.0, 2000.0, 3000.0, 4000.0), 2.5
#: Pixel of the first array where the stars are, and arcsec of the dithers.
PLACE, DITHERS = (90.0, 100.0), ((0.0, 0.0), (1.1, 0.2), (0.3, 1.2), (-0.9, -0.8))
#: Arcsec by which the header of each frame is off.
ERRORS = ((0.0, 0.0), (0.1, -0.05), (-0.08, 0.1), (0.05, 0.12))


@pytest.fixture
def hidden(night: object, tmp_path: Path) -> tuple[Frames, np.ndarray]:
    """Make four frames, each its own sky's, and the true light of their stars."""
    frames, lights = [], []
    pointed = [at(raw(night.std[0]), dither) for dither in DITHERS]
    stars = [to_sky(geometries(frame)[0], *PLACE) for frame in pointed]
    for number, frame in enumerate(pointed):
        shape = shape_of(frame)
        y, x = np.mgrid[: shape[1], : shape[2]]
        light = np.zeros(shape)
        for peak, star in zip(PEAKS, stars, strict=True):
            cx, cy = from_sky(geometries(frame)[0], *star)
            light[0] += peak * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * SIGMA**2))
        noise = np.random.default_rng(number).normal(0, NOISE, shape)
        named = at(frame, ERRORS[number]).assign_attrs(name=f"S{number}.fits")
        planes = {
            "data": (SKY + light + noise).astype("f4"),
            "variance": np.full(shape, NOISE**2, "f4"),
            "dq": np.zeros(shape, "u2"),
        }
        frames.append(with_pixels(named, **planes))
        lights.append(light)
    return on_disk(tuple(frames), tmp_path), np.array(lights)


def at(frame: Frame, offset: tuple[float, float]) -> Frame:
    """Point a frame so many arcsec east and north of where it points."""
    ra, dec = tangent_sky(*offset, geometries(frame)[0].ra, geometries(frame)[0].dec)
    moved = (each._replace(ra=float(ra), dec=float(dec)) for each in geometries(frame))
    return with_geometries(frame, tuple(moved))


def masked(frames: Frames) -> Frames:
    """Find objects after a first sky subtraction, as recipes do, and share them."""
    associated = steps.associate_sky(frames, frames, distance=0.0)
    first = steps.sky_correct(associated, frames, mask_objects=False, offset_sky=True)
    found = [steps.detect_sources(frame, products="mask", min_pixels=9) for frame in first]
    (outlines,) = dask.compute([frame["outline"].data for frame in found])
    found = [with_fetched(f, {"outline": o}) for f, o in zip(found, outlines, strict=True)]
    shared = steps.share_objects(tuple(found))
    return steps.transfer_objects(associated, shared)


def test_no_star_is_in_a_sky(hidden: tuple[Frames, np.ndarray]) -> None:
    frames, lights = hidden
    targets = masked(frames)
    result = steps.sky_correct(targets, targets, offset_sky=True)
    for frame, light in zip(result, lights, strict=True):
        data, dq = dask.compute(frame.data.data, frame.dq.data)
        rest = data[0] - light[0]
        # Wings of a star below the limit of detection are in the sky, as far as the noise goes.
        assert rest.min() > -8 * NOISE and rest.max() < 8 * NOISE
        assert not (dq & DQ.NO_DATA).any()


def test_pixels_with_few_skies_are_flagged_and_counted(hidden: tuple[Frames, np.ndarray]) -> None:
    frames, _ = hidden
    targets = masked(frames)
    result = steps.sky_correct(targets, targets, offset_sky=True)
    objects = [target["objects"].data.compute() for target in targets]
    for number, frame in enumerate(result):
        others = np.sum([mask for n, mask in enumerate(objects) if n != number], axis=0)
        variance, dq, counts = dask.compute(
            frame.variance.data, frame.dq.data, frame["sky_counts"].data
        )
        np.testing.assert_array_equal((dq & DQ.OVERLAP) != 0, others >= 2)
        assert counts[0].tolist() == [others[0].size, *((others[0] == n).sum() for n in (2, 3))]
        one, none = variance[others == 2], variance[others == 3]
        assert len(one) and len(none)
        np.testing.assert_allclose(one, 2 * NOISE**2, rtol=1e-5)
        np.testing.assert_allclose(none, NOISE**2, rtol=1e-5)
    fetched = [with_fetched(f, {"sky_counts": f["sky_counts"].data.compute()}) for f in result]
    (checked, *_) = steps.check_sky(tuple(fetched))
    share = 100 * np.sum([small(f, "sky_counts") for f in fetched], axis=(0, 1))
    assert f"{(share[1] + share[2]) / share[0] * 100:.2g} % of the pixels" in checked.attrs["note"]
    (warned, *_) = steps.check_sky(tuple(fetched), few=0.0)
    assert "more or larger dithers" in warned.attrs["warning"]


@pytest.mark.parametrize(
    "window", [(0, 90, 0, 70), (16, 32, 0, 70), (5, 6, 3, 66), (87, 90, 69, 70)]
)
def test_blocks_of_a_window_are_those_of_the_array(window: tuple[int, int, int, int]) -> None:
    """Rows of blocks begin anywhere within a byte: 18 blocks in a row."""
    rng = np.random.default_rng(5)
    blocks, mask = rng.random((23, 18)) < 0.4, rng.random((90, 70)) < 0.1
    whole = blocks.repeat(OUTLINE_PIXELS, axis=0).repeat(OUTLINE_PIXELS, axis=1)[:90, :70]
    part = np.s_[window[0] : window[1], window[2] : window[3]]
    found = _with_blocks(mask[part], np.packbits(blocks), blocks.shape, window)
    assert found.dtype == bool and np.array_equal(found, (mask | whole)[part])
