"""Pictures of pixels against known answers: grey levels, blocks, flags, directions, scale bar."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.wcs import WCS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from products import noisy, sky_header, write_product

import gdask
from gdask.model import DQ, GdaskError
from gdask.plot import raster
from gdask.plot.layout import celestial, compose, compose_flags, directions, layout_of
from gdask.plot.planes import frame_of, means_on_one_level, read_planes
from gdask.plot.show import Look, draw, grey_limits, view_of

ARROW = raster.MARK_COLOUR


def test_a_value_has_its_grey_level() -> None:
    limits = raster.Limits(low=10.0, high=110.0, soft=5.0)
    values = np.array([[5.0, 10.0, 35.0, 110.0, 1e9, np.nan]], "f4")
    levels = raster.grey_levels(values, limits)
    part = math.asinh(25 / 5) / math.asinh(100 / 5)
    expected = round(1 + (raster.LEVELS - 1) * part)
    assert levels.tolist() == [[1, 1, expected, raster.LEVELS, raster.LEVELS, 0]]
    picture = raster.grey_picture(levels).convert("RGB")
    assert picture.getpixel((0, 0)) == (0, 0, 0) and picture.getpixel((3, 0)) == (255,) * 3
    assert picture.getpixel((5, 0)) == raster.NO_DATA_COLOUR
    linear = raster.Limits(0.0, 10.0, math.inf)
    assert raster.grey_levels(np.array([[5.0]], "f4"), linear)[0, 0] == round(1 + 63 / 2)


def test_limits_are_about_the_sky_and_bear_any_pixels() -> None:
    sky = noisy((200, 200))
    sky[:3] = 1e6
    limits = raster.limits_of(sky)
    assert limits.low == pytest.approx(100 - 3 * 5, abs=0.5) and limits.high == 1e6
    for values in ([np.nan] * 4, [7.0] * 4, [0.0], [-1e30, 1e30], [np.inf, 1.0, 2.0]):
        for linear in (True, False):
            found = raster.limits_of(np.array(values, "f4"), linear=linear)
            assert found.high > found.low and math.isfinite(found.low + found.high)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    step=st.integers(1, 9),
    where=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)
def test_blocks_are_means_and_no_flag_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    step: int,
    where: tuple[float, float],
) -> None:
    path = tmp_path_factory.mktemp("p") / "p.fits"
    data = np.arange(shape[0] * shape[1], dtype="f4").reshape(shape)
    dq = np.zeros(shape, "u2")
    place = int(where[0] * shape[0]), int(where[1] * shape[1])
    dq[place] = DQ.COSMIC_RAY
    data[place] = np.nan
    write_product(path, data, variance=np.ones(shape), dq=dq)
    (planes,) = read_planes(frame_of(path), step)
    (rows, columns) = np.nonzero(planes.flags)
    assert (rows.tolist(), columns.tolist()) == ([place[0] // step], [place[1] // step])
    assert planes.counts[DQ.COSMIC_RAY] == 1 and sum(planes.counts.values()) == 1
    for row, column in ((0, 0), (place[0] // step, place[1] // step)):
        block = data[row * step : (row + 1) * step, column * step : (column + 1) * step]
        found = planes.mean[row, column]
        if np.isfinite(block).any():
            assert found == pytest.approx(np.nanmean(block), rel=1e-5)
        else:
            assert np.isnan(found)


def test_pixels_without_data_do_not_count() -> None:
    frame = _frame_in_memory(np.array([[1.0, 99.0], [3.0, 99.0]]), [[0, 16], [1, 16]])
    (planes,) = read_planes(frame, 2)
    assert planes.mean.tolist() == [[2.0]] and planes.flags is not None
    assert planes.flags.tolist() == [[17]]


def _frame_in_memory(data: np.ndarray, dq: list[list[int]]) -> object:
    import xarray as xr

    dims = ("detector", "y", "x")
    variables = {
        "data": (dims, np.asarray(data, "f4")[None]),
        "dq": (dims, np.array([dq], "u2")),
    }
    return xr.Dataset(variables)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_one_bad_pixel_of_a_large_array_is_coloured_where_it_is(tmp_path: Path, step: int) -> None:
    shape, place = (300, 210), (203, 17)
    dq = np.zeros(shape, "u2")
    dq[place] = DQ.BAD_PIXEL
    path = write_product(tmp_path / "p.fits", noisy(shape), variance=np.ones(shape), dq=dq)
    picture = np.asarray(draw(path, Look(pixels=-(-300 // step), dq=True)).convert("RGB"))
    colour = next(colour[:3] for bit, _, colour in raster.DQ_COLOURS if bit == DQ.BAD_PIXEL)
    rows, columns = np.nonzero((picture == colour).all(axis=2))
    assert len(rows) == 1
    assert (len(picture) - 1 - rows[0], columns[0]) == (place[0] // step, place[1] // step)


@pytest.mark.parametrize("turn", [0.0, 37.0, 90.0, 200.0])
@pytest.mark.parametrize("flip", [False, True])
def test_arrows_point_to_north_and_east(tmp_path: Path, turn: float, flip: bool) -> None:
    shape = (301, 301)
    header = sky_header(shape, turn=turn, flip=flip)
    path = write_product(tmp_path / "p.fits", noisy(shape), header=header)
    (system,) = celestial(frame_of(path))
    north, east, scale = directions(system, 150, 150)
    angle = math.radians(turn)
    assert north == pytest.approx((-math.sin(angle), math.cos(angle)), abs=1e-6)
    sign = 1 if flip else -1
    assert east == pytest.approx((sign * math.cos(angle), sign * math.sin(angle)), abs=1e-6)
    assert scale == pytest.approx(0.1, rel=1e-5)
    # The arrow to North is drawn from its foot in that direction.
    picture = np.asarray(draw(path).convert("RGB"))
    unit = max(10, 301 // 60)
    foot = np.array([301 - 8 * unit, 301 - 8 * unit])
    place = np.rint(foot + 2.5 * unit * np.array([north[0], -north[1]])).astype(int)
    near = picture[place[1] - 2 : place[1] + 3, place[0] - 2 : place[0] + 3]
    assert (near == ARROW).all(axis=2).any()
    back = np.rint(foot - 2.5 * unit * np.array([north[0], -north[1]])).astype(int)
    behind = picture[back[1] - 2 : back[1] + 3, back[0] - 2 : back[0] + 3]
    assert not (behind == ARROW).all(axis=2).any()


@pytest.mark.parametrize(("scale", "pixels"), [(0.02, 800), (0.18, 800), (0.18, 256)])
def test_the_scale_bar_has_its_length(tmp_path: Path, scale: float, pixels: int) -> None:
    shape = (800, 800)
    header = sky_header(shape, scale=scale)
    path = write_product(tmp_path / "p.fits", np.zeros(shape), header=header)
    picture = np.asarray(draw(path, Look(pixels=pixels)).convert("RGB"))
    step = -(-800 // pixels)
    length = raster.bar_length(picture.shape[1], scale * step)
    unit = max(10, len(picture) // 60)
    row = len(picture) - 2 * unit
    (columns,) = np.nonzero((picture[row] == ARROW).all(axis=1))
    columns = columns[columns < len(picture) / 2]
    assert len(columns) == round(length / (scale * step))
    assert length <= len(picture) * scale * step / 4 < 2.6 * length
    assert raster.bar_text(120.0) == "2'" and raster.bar_text(0.5) == '0.5"'


def test_arrays_lie_where_their_wcs_puts_them(tmp_path: Path) -> None:
    """Four arrays, one turned by 90 degrees, each with a star: the picture has them on the sky."""
    shape, scale = (60, 60), 0.1
    data = np.zeros((4, *shape), "f4")
    data += noisy(shape, level=0, sigma=1)
    headers, sky = [], []
    for number, (dx, dy, turn) in enumerate(
        [(35, -35, 0), (-35, -35, 90), (-35, 35, 0), (35, 35, 0)]
    ):
        header = sky_header(shape, turn=turn, scale=scale)
        header["CRVAL1"] = 150 - dx * scale / 3600 / math.cos(math.radians(35))
        header["CRVAL2"] = -35 + dy * scale / 3600
        headers.append(header)
        star = (10 + 5 * number, 20)
        data[number, star[0], star[1]] = 1e4
        sky.append(WCS(header).all_pix2world(star[1], star[0], 0))
    path = write_product(tmp_path / "p.fits", data, variance=np.ones_like(data), kind="FWHMSTAR")
    _set_headers(path, headers)
    frame = frame_of(path)
    planes = read_planes(frame, 1)
    layout = layout_of(frame, [one.mean.shape for one in planes], 1, on_sky=True)
    picture = compose([one.mean for one in planes], layout)
    assert layout.north == (0.0, 1.0) and layout.east == (-1.0, 0.0)
    for ra, dec in sky:
        x, y = (int(np.rint(v)) for v in layout.wcs.all_world2pix(ra, dec, 0))
        assert np.nanmax(picture[y - 1 : y + 2, x - 1 : x + 2]) == 1e4
    gap = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    assert np.isnan(gap)
    # A flag is forwarded, so that turning the array does not lose it.
    for place in ((0, 0), (59, 59), (31, 7)):
        flags = [np.zeros(shape, "u2") for _ in planes]
        flags[1][place] = 1
        assert 1 <= (compose_flags(flags, layout) != 0).sum() <= 2


def _set_headers(path: Path, headers: list) -> None:
    from astropy.io import fits

    with fits.open(path, mode="update") as hdus:
        for hdu in hdus[1:]:
            for card in headers[hdu.ver - 1].cards:
                hdu.header[card.keyword] = card.value


def test_gsaoi_as_read_and_as_on_the_sky(night: object) -> None:
    """DETSEC of array 2 is at the lower left; on the sky East is to the left, so it lies right."""
    frame = gdask.open(night.science[0])  # type: ignore[attr-defined]
    planes = read_planes(frame, 4)
    shapes = [one.mean.shape for one in planes]
    read = layout_of(frame, shapes, 4, on_sky=False)
    assert [(p.y > 0, p.x > 0) for p in read.places] == [
        (False, True),
        (False, False),
        (True, False),
        (True, True),
    ]
    sky = layout_of(frame, shapes, 4, on_sky=True)
    for number, system in enumerate(gdask.wcs(frame)):
        middle = system.all_pix2world(159.5, 159.5, 0)
        x, y = sky.wcs.all_world2pix(*middle, 0)
        place = sky.places[number]
        assert abs(x - (place.x + place.shape[1] / 2)) < 1.5
        assert abs(y - (place.y + place.shape[0] / 2)) < 1.5


@pytest.mark.parametrize("as_read", [False, True])
@pytest.mark.parametrize("pixels", [16, 50, 150])
def test_a_picture_has_the_size_asked_for(tmp_path: Path, pixels: int, as_read: bool) -> None:
    """Regions of interest of four arrays, 300 pixels apart on the sky; as read there are gaps."""
    shape, scale, headers = (40, 50), 0.02, []
    for dx, dy in ((150, -150), (-150, -150), (-150, 150), (150, 150)):
        header = sky_header(shape, scale=scale)
        header["CRVAL1"] = 150 - dx * scale / 3600 / math.cos(math.radians(35))
        header["CRVAL2"] = -35 + dy * scale / 3600
        headers.append(header)
    path = write_product(tmp_path / "p.fits", np.ones((4, *shape)), kind="FWHMSTAR")
    _set_headers(path, headers)
    assert pixels / 2 < max(draw(path, Look(pixels, as_read)).size) <= pixels


def test_an_array_without_sky_is_refused_on_the_sky(tmp_path: Path) -> None:
    path = write_product(tmp_path / "p.fits", np.zeros((2, 8, 8)))
    frame = frame_of(path)
    with pytest.raises(GdaskError, match=r"p\.fits: no WCS"):
        layout_of(frame, [(8, 8)] * 2, 1, on_sky=True)
    assert draw(path).size == (18, 8)


def test_pictures_have_the_same_bytes_and_no_text(tmp_path: Path) -> None:
    path = write_product(tmp_path / "p.fits", noisy((90, 70)), header=sky_header((90, 70)))
    first, second = (raster.png_bytes(draw(path)) for _ in range(2))
    assert first == second
    (tmp_path / "p.png").write_bytes(first)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (70, 90) and not getattr(picture, "text", {})


def test_arrays_of_a_raw_file_are_seen_whatever_their_levels(tmp_path: Path) -> None:
    """Their biases differ by many times the noise; in one grey scale some would be black."""
    noise = np.random.default_rng(1).normal(0, 5, (4, 40, 60))
    levels = np.array([400.0, 900.0, 1500.0, 6000.0])
    data = noise + levels[:, None, None]
    data[3] = np.nan  # an array without data moves nothing
    path = write_product(tmp_path / "raw.fits", data, kind="RAWFILE")
    frame = frame_of(path)
    read = read_planes(frame, 1)
    moved = means_on_one_level(read, "")
    assert [np.median(one) for one in moved[:3]] == pytest.approx([900] * 3, abs=1)
    assert np.isnan(moved[3]).all()
    kept = means_on_one_level(read, "frame")
    assert all(one is plane.mean for one, plane in zip(kept, read, strict=True))
    view = view_of(path, Look(as_read=True))
    shown = raster.grey_levels(np.array(means_on_one_level(view.planes, "")), grey_limits(view))
    for level in shown[:3]:
        assert 2 < np.median(level) < 40 and len(np.unique(level)) > 10
