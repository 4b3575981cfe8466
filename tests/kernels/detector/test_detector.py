"""Detector kernels against known answers and noise: linearity, variance, data quality, flat."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.kernels.detector import flat as flats
from gdask.kernels.detector import linearity, quality, saturation
from gdask.model import GdaskError

CUBIC = (0.9947237, 3.040362e-07, 4.2870263e-12)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


# linearity


def test_linearize_ramp() -> None:
    data = np.linspace(-500, 60000, 999, dtype=np.float32).reshape(27, 37)
    electrons = data.astype(float) * 2.434 / 3
    truth = (CUBIC[0] * electrons + CUBIC[1] * electrons**2 + CUBIC[2] * electrons**3) * 3 / 2.434
    out = linearity.linearize(data, CUBIC, 2.434, coadds=3)
    assert out.dtype == np.float32 and out.shape == data.shape
    np.testing.assert_allclose(out, truth, rtol=2e-7)
    assert linearity.linearized_level(50000, CUBIC, 2.434) == pytest.approx(54760.98, abs=0.01)
    np.testing.assert_array_equal(linearity.linearize(data.T.astype(">f4"), CUBIC, 2.434, 3), out.T)


def test_linearize_variance_adds_the_photons(rng: np.random.Generator) -> None:
    raw = rng.normal(20000, 8000, (31, 17)).astype(np.float32)
    raw[:2] = -3
    corrected = linearity.linearize(raw, CUBIC, 1.0)
    before = linearity.add_variance(raw, 10.0, coadds=4)
    after = linearity.linearize_variance(before, raw, corrected, coadds_averaged=4)
    np.testing.assert_allclose(after, linearity.add_variance(corrected, 10.0, coadds=4), rtol=1e-6)
    assert (after[:2] == 100).all()


def test_add_variance() -> None:
    data = np.array([[-50, 0, 7, 1000, np.nan]], np.float32)
    np.testing.assert_array_equal(
        linearity.add_variance(data, 5, coadds=2), [[25, 25, 28.5, 525, np.nan]]
    )
    np.testing.assert_array_equal(
        linearity.add_variance(data, 5, coadds=2, read=False), [[0, 0, 3.5, 500, np.nan]]
    )
    np.testing.assert_array_equal(
        linearity.add_variance(data, 5, poisson=False), np.full((1, 5), 25)
    )


# DQ


def test_flag_levels() -> None:
    data = np.array([1, 39999.9, 40000, 49999, 50000, 1e9, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(
        quality.flag_levels(data, None, 40000, 50000), [0, 0, 2, 2, 4, 4, 16, 16, 16]
    )
    bpm = np.full(9, 1, np.uint16)
    np.testing.assert_array_equal(
        quality.flag_levels(data, bpm, np.inf, np.inf), [1] * 6 + [17] * 3
    )
    assert (bpm == 1).all()
    with pytest.raises(GdaskError, match="cut it to the data"):
        quality.flag_levels(data, bpm[:4], 1, 2)


def star_field(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sky with a star at (40, 30), and the pixels of the star's core.

    The core, of radius 5, reads low; around it is a saturated ring of radius 8.
    """
    y, x = np.mgrid[:64, :80]
    radius = np.hypot(x - 40, y - 30)
    data = rng.normal(700, 30, radius.shape).astype(np.float32)
    data[radius < 10] = 45000
    data[radius < 8] = 52000
    data[radius < 5] = 900
    return data, radius < 5


def hidden(data: np.ndarray, bpm: np.ndarray | None = None, **more: int) -> np.ndarray:
    """Where holes are listed on a plane that is non-linear at 40000, saturated at 51000."""
    listed, _ = saturation.saturated_pixels(data, bpm, 40000, 51000, **more)
    assert listed.dtype == np.int32 and (np.diff(listed) > 0).all()
    mask = np.zeros(data.shape, bool)
    mask.reshape(-1)[listed] = True
    return mask


def test_hidden_saturation_finds_the_core(rng: np.random.Generator) -> None:
    data, core = star_field(rng)
    np.testing.assert_array_equal(hidden(data), core)
    assert not hidden(data, max_size=50).any()
    np.testing.assert_array_equal(hidden(data, flag_non_linear=False), core)
    bpm = np.zeros(data.shape, np.uint16)
    bpm[30, 44:60] = 1  # dead pixels cut through the ring: it holds
    data[bpm > 0] = 12
    np.testing.assert_array_equal(hidden(data, bpm), core & (bpm == 0))
    data[25, 40] = 45000  # a bright pixel in the hole is no part of it
    np.testing.assert_array_equal(hidden(data, bpm), core & (bpm == 0) & (data < 40000))


def test_a_hole_is_enclosed_by_a_blob_with_its_diagonals() -> None:
    """A wall that is joined by corners alone encloses; a hole that leaves by a corner does not."""
    data = np.full((9, 9), 5, np.float32)
    wall = [(2, 4), (3, 3), (4, 2), (5, 3), (6, 4), (5, 5), (4, 6), (3, 5)]
    for place in wall:
        data[place] = 60000
    inside = np.zeros((9, 9), bool)
    inside[3:6, 4] = inside[4, 3:6] = True
    np.testing.assert_array_equal(hidden(data), inside)
    data[wall[1]] = 5
    assert not hidden(data).any()
    data[wall[1]] = np.nan  # a defect in the wall, of two sides of twelve
    np.testing.assert_array_equal(hidden(data), inside)


def test_hidden_saturation_flags_nothing_else(rng: np.random.Generator) -> None:
    data, _ = star_field(rng)
    assert not hidden(data[:, 40:]).any()  # cut by the array's edge
    assert not hidden(np.minimum(data, 50000)).any()  # non-linear, never saturated
    bpm = np.zeros(data.shape, np.uint16)
    bpm[data > 40000] = 1  # all of the wall is bad
    assert not hidden(data, bpm).any()
    bpm[:] = 0
    bpm[:, 40:] = 64  # half of it is
    assert not hidden(data, bpm).any()
    bright = np.where(data < 40000, 45000, data)  # a sky beyond linearity, a star and dead pixels
    bright[10:12, 10:12], bpm[:] = 3, 0
    bpm[10:12, 10:12] = 1
    assert not hidden(bright, bpm).any()


def test_bright_pixels_are_listed(rng: np.random.Generator) -> None:
    """Those that may leave persistence are listed whatever the bad-pixel mask says."""
    data, core = star_field(rng)
    data[0, 0], data[0, 1] = np.inf, np.nan
    bpm = np.zeros(data.shape, np.uint16)
    bpm[30, 36], bpm[50:52, 70] = 1, 4
    finite = np.isfinite(data)
    expected = core | ((data >= 40000) & finite)
    for static in (None, bpm):
        for flag_non_linear in (True, False):
            _, lasting = saturation.saturated_pixels(
                data, static, 40000, 51000, flag_non_linear=flag_non_linear
            )
            assert lasting.dtype == np.int32
            np.testing.assert_array_equal(lasting, np.flatnonzero(expected))
    lasting = saturation.saturated_pixels(data, None, np.inf, 45000.001)[1]
    np.testing.assert_array_equal(lasting, np.flatnonzero(core | ((data > 45000) & finite)))
    assert not any(each.size for each in saturation.saturated_pixels(data, bpm, np.inf, np.inf))
    with pytest.raises(GdaskError, match="cut it to the data"):
        saturation.saturated_pixels(data, bpm[:4], 1, 2)


def test_a_failed_readout_is_listed() -> None:
    data = np.full((50, 60), 60000, np.float32)
    data[20, 20:22], data[0, 5] = 3, 3
    holes, lasting = saturation.saturated_pixels(data, None, 40000, 51000)
    np.testing.assert_array_equal(holes, [1220, 1221])
    assert lasting.size == 2999


@pytest.mark.parametrize("offset", [(0, 0), (3, -2), (-40, 25), (99, 0)])
def test_listed_pixels_are_flagged(rng: np.random.Generator, offset: tuple[int, int]) -> None:
    mask = rng.random((37, 53)) < 0.05
    listed = np.flatnonzero(mask).astype(np.int32)
    window, dq = (4, 30, 7, 51), rng.integers(0, 4, (26, 44)).astype(np.uint16)
    before = dq.copy()
    flags = quality.flag_pixels(dq, [listed], 8, window, [53], [offset])
    expected = dq.copy()
    for y, x in np.argwhere(mask):
        row, column = y - offset[1] - 4, x - offset[0] - 7
        if 0 <= row < 26 and 0 <= column < 44:
            expected[row, column] |= 8
    np.testing.assert_array_equal(flags, expected)
    np.testing.assert_array_equal(dq, before)
    assert flags.dtype == np.uint16
    twice = quality.flag_pixels(dq, [listed, listed], 8, window, [53, 53], [offset, (0, 0)])
    alone = quality.flag_pixels(dq, [listed], 8, window, [53], [(0, 0)])
    assert np.array_equal(twice, flags | alone)
    assert np.array_equal(quality.flag_pixels(dq, [listed[:0]], 8, window, [53], [(0, 0)]), dq)


def test_border_is_flagged() -> None:
    dq = np.ones((10, 12), np.uint16)
    full = quality.flag_border(dq, (0, 0), (0, 10, 0, 12), (10, 12), 2)
    assert (full == 65).sum() == 120 - 6 * 8 and (full[2:8, 2:10] == 1).all() and (dq == 1).all()
    part = quality.flag_border(dq[:5, :6], (4, 1), (0, 5, 2, 8), (10, 12), 2)
    np.testing.assert_array_equal(part, full[1:6, 6:12])
    assert (quality.flag_border(dq[:4, :4], (4, 3), (0, 4, 0, 4), (10, 12), 2) == 1).all()
    assert part.dtype == np.uint16


def test_what_the_optics_do_not_light_is_flagged() -> None:
    """The circle has its centre at (6, 4.5); pixels at exactly its radius are lit."""
    y, x = np.mgrid[:10, :12]
    outside = np.hypot(x - 6, y - 4.5) > 4.5
    dq = np.full((10, 12), 2, np.uint16)
    full = quality.flag_outside(dq, (0, 0), (0, 10, 0, 12), (6, 4.5), 4.5)
    np.testing.assert_array_equal(full, np.where(outside, 66, 2))
    assert full[0, 6] == full[9, 6] == 2 and (dq == 2).all()
    part = quality.flag_outside(dq[:5, :6], (4, 1), (2, 7, 1, 7), (6, 4.5), 4.5)
    np.testing.assert_array_equal(part, full[3:8, 5:11])


# flat


def test_divide_by_flat(rng: np.random.Generator) -> None:
    data = rng.normal(1000, 100, (23, 31)).astype(np.float32)
    flat = rng.uniform(0.5, 1.5, data.shape).astype(np.float32)
    var, flat_var = data * 1.1, flat * 1e-4
    dq, flat_dq = np.full(data.shape, 2, np.uint16), np.full(data.shape, 1, np.uint16)
    flat[0, :3] = 0, np.nan, -1
    got = flats.divide(data, var, dq, flat, flat_var, flat_dq)
    good = np.s_[1:]
    np.testing.assert_allclose(got[0][good], data[good] / flat[good], rtol=1e-6)
    expected = (var[good] + (data[good] / flat[good]) ** 2 * flat_var[good]) / flat[good] ** 2
    np.testing.assert_allclose(got[1][good], expected, rtol=1e-6)
    assert (got[2][0, :3] == 19).all() and (got[2][good] == 3).all()
    np.testing.assert_array_equal(got[0][0, :3], data[0, :3])
    np.testing.assert_array_equal(got[1], flats.flat_variance(data, var, flat, flat_var))
    with pytest.raises(GdaskError, match="shapes"):
        flats.flat_data(data, flat[1:])
    with pytest.raises(GdaskError, match="shapes"):
        flats.flat_flags(dq, flat, flat_dq[1:])


def test_flat_variance_is_the_scatter(rng: np.random.Generator) -> None:
    data = rng.normal(500, 20, 200000).astype(np.float32)
    flat = rng.normal(0.8, 0.01, data.size).astype(np.float32)
    out = flats.flat_data(data, flat).astype(float)
    predicted = flats.flat_variance(data, np.full_like(data, 400), flat, np.full_like(flat, 1e-4))
    assert out.var() / predicted.mean() == pytest.approx(1, abs=0.02)


def test_flat_noise_of_the_sky_goes_with_the_sky(rng: np.random.Generator) -> None:
    """The flat's noise on the sky is not in a frame minus a sky frame through the same flat.

    The variance therefore leaves it out at the level of the sky.
    """
    shape, sky, star = (400, 500), 20000.0, 3000.0
    true = rng.uniform(0.7, 1.3, shape)
    flat = (true * rng.normal(1, 0.004, shape)).astype(np.float32)
    frame, sky_frame = (
        rng.normal(light * true, np.sqrt(light * true)).astype(np.float32)
        for light in (sky + star, sky)
    )
    flat_var, dq = (0.004**2 * true**2).astype(np.float32), np.zeros(shape, np.uint16)
    level = flats.sky_level(sky_frame, dq, flat, dq)
    assert level == pytest.approx(sky, rel=1e-3)
    difference = flats.flat_data(frame, flat).astype(float) - flats.flat_data(sky_frame, flat)
    variances = [
        flats.flat_variance(raw, raw, flat, flat_var, level).astype(float)
        for raw in (frame, sky_frame)
    ]
    assert np.var(difference) / np.mean(sum(variances)) == pytest.approx(1, abs=0.015)
    full_variances = [
        flats.flat_variance(raw, raw, flat, flat_var).astype(float) for raw in (frame, sky_frame)
    ]
    assert np.var(difference) / np.mean(sum(full_variances)) < 0.8
    assert flats.sky_level(sky_frame, dq + np.uint16(1), flat, dq) == 0


def test_threshold() -> None:
    flat = np.array([0.5, 0.001, 20, 0.001, 20, np.nan, 1.2], np.float32)
    dq = np.array([0, 0, 0, 1, 1, 0, 64], np.uint16)
    out, bits = flats.threshold(flat, dq)
    np.testing.assert_array_equal(out, np.array([0.5, 1, 1, 1, 20, 1, 1], np.float32))
    np.testing.assert_array_equal(bits, [0, 64, 64, 1, 1, 64, 64])
    assert out.dtype == np.float32 and bits.dtype == np.uint16 and flat[1] == np.float32(0.001)


def test_bad_pixels_from_flat_and_dark() -> None:
    flat = np.array([1, 0.5, 1.5, 0.2, np.nan, 1], np.float32)
    dq = np.array([0, 0, 0, 64, 0, 1], np.uint16)
    np.testing.assert_array_equal(flats.bpm_from_flat(flat, dq, 0.68, 1.28), [0, 1, 1, 64, 1, 1])
    np.testing.assert_array_equal(flats.bpm_from_flat(flat, None, 0.5, None), [0, 0, 0, 1, 1, 0])
    dark = np.array([-151, -150, 0, 3051, 40, 40], np.float32)
    np.testing.assert_array_equal(flats.bpm_from_dark(dark, dq, -150, 3050), [1, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(flats.bpm_from_dark(dark, None, None, 3050), [0, 0, 0, 1, 0, 0])
