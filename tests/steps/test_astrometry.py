"""Tests of pointing, alignment, matched levels and resampling, against simulated skies."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from helpers import assert_same, computed, on_disk, raw, shape_of, with_pixels

import gdask
from gdask import steps
from gdask.instruments import descriptor
from gdask.io import gather
from gdask.io.catalog import read_catalog
from gdask.io.frames import (
    array_headers,
    geometries,
    grid_of,
    primary_header,
    small,
    with_fetched,
    with_geometries,
    with_headers,
)
from gdask.io.lazy_arrays import is_stored, source_of
from gdask.io.level_changes import changed_scale, minus_surfaces
from gdask.kernels.geometry.grid import grid_to_sky
from gdask.kernels.geometry.projection import (
    from_sky,
    pixel_area,
    tangent_plane,
    tangent_sky,
    to_plane,
    to_sky,
)
from gdask.kernels.sources.centroids import POSITIONS
from gdask.kernels.surfaces import nodes, surface_of_nodes
from gdask.model import DQ, GdaskError
from gdask.reduction.run import Run
from gdask.steps import sky_surfaces
from gdask.steps.frames import with_arrays
from gdask.steps.pointing import find_bad_wcs
from gdask.steps.resample import unit_area
from gdask.types import Frame, Frames

#: Pointings of the frames of a dither, arcsec East and North of the target.
DITHER = ((0.0, 0.0), (0.7, 0.4), (-0.5, 0.8), (0.3, -0.6))


def centre(frame: Frame) -> tuple[float, float]:
    return float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))


def pointed(path: str, name: str, east: float, north: float) -> Frame:
    frame = raw(path)
    ra, dec = (float(v) for v in tangent_sky(east, north, *centre(frame)))
    geometry = tuple(g._replace(ra=ra, dec=dec) for g in geometries(frame))
    return with_geometries(frame.assign_attrs(name=name), geometry)


# ---- pointing


def truth_of(night: object) -> Table:
    rows = Table.read(night.truth / "frames.ecsv")
    return rows[np.isin(rows["kind"], ["science", "sky"])]


def test_exactly_the_bad_frames_are_found(night: object) -> None:
    rows = truth_of(night)
    bad = {str(row["file"]) for row in rows if row["bad_wcs"]}
    frames = steps.prepare(gdask.open_many(night.sequence), bad_wcs="ignore")
    assert find_bad_wcs(frames, 30.0, 10.0, 60.0).keys() == bad and len(bad) == 3
    checked = steps.check_wcs(gdask.open_many(night.sequence))
    assert all(name in checked[0].attrs["note"] for name in bad)
    with pytest.raises(GdaskError, match="bad_wcs=fix") as error:
        steps.prepare(gdask.open_many(night.sequence))
    assert all(name in str(error.value) for name in bad)


@pytest.mark.parametrize(("bad_wcs", "limit"), [("fix", 2.0), ("new", 2.0)])
def test_rebuilt_pointings_are_where_the_telescope_was(
    night: object, bad_wcs: str, limit: float
) -> None:
    """Check positions to the telescope's pointing.

    That is good to 0.05 arcsec guided, 0.25 unguided, and 1 arcsec of the header's origin.
    """
    rows = {str(row["file"]): row for row in truth_of(night)}
    frames = steps.prepare(gdask.open_many(night.sequence), bad_wcs=bad_wcs)
    for frame in frames:
        row, geometry = rows[frame.attrs["name"]], geometries(frame)[0]
        miss = np.hypot(*tangent_plane(geometry.ra, geometry.dec, row["ra0"], row["dec0"]))
        assert miss < limit, frame.attrs["name"]
    ignored = steps.prepare(gdask.open_many(night.sequence), bad_wcs="ignore")
    for frame, before in zip(frames, ignored, strict=True):
        moved = array_headers(frame)[0]["CRVAL1"] != array_headers(before)[0]["CRVAL1"]
        assert moved == (bad_wcs == "new" or bool(rows[frame.attrs["name"]]["bad_wcs"]))


def test_calibrations_have_no_pointing_to_check(night: object) -> None:
    frames = steps.prepare(gdask.open_many([*night.flat_on, *night.dark]))
    assert len(frames) == 6 and all(
        primary_header(frame)["PROCSOFT"] == "gdask" for frame in frames
    )


# ---- alignment


def seen(
    frames: Frames,
    errors: list[tuple[float, float]],
    stars: int = 200,
    size: int = 2048,
    half: float = 45.0,
) -> Frames:
    """Give each frame the centroids of one field of stars.

    They are where the frame would see them if it pointed so many arcsec off.
    """
    random = np.random.default_rng(4)
    east, north = random.uniform(-half, half, (2, stars))
    flux = 10 ** random.uniform(3.5, 6, stars)
    sky = tangent_sky(east, north, *centre(frames[0]))
    result = []
    for number, (frame, (off_east, off_north)) in enumerate(zip(frames, errors, strict=True)):
        tables = []
        for geometry in geometries(frame):
            ra, dec = (
                float(v) for v in tangent_sky(off_east, off_north, geometry.ra, geometry.dec)
            )
            x, y = from_sky(geometry._replace(ra=ra, dec=dec), *sky)
            inside = np.isfinite(x) & (x > 10) & (y > 10) & (x < size - 10) & (y < size - 10)
            table = np.zeros(inside.sum(), POSITIONS)
            noise = np.random.default_rng((number, len(tables))).normal(0, 0.01, (2, len(table)))
            table["x"], table["y"] = x[inside] + noise[0], y[inside] + noise[1]
            table["ex"] = table["ey"] = 0.01
            table["flux"], table["eflux"], table["fwhm"] = flux[inside], np.sqrt(flux[inside]), 5.0
            tables.append(table)
        result.append(with_fetched(frame, {"stars": tables}))
    return tuple(result)


def from_the_corner(frame: Frame, size: int) -> dict[str, object]:
    """Give coordinates of arrays of size x size pixels from pixel (0, 0) of the full array."""
    nowhere = ("detector", np.zeros(frame.sizes["detector"], int))
    pixels = pd.RangeIndex(size)
    return {"y": pixels, "x": pixels, "y_offset": nowhere, "x_offset": nowhere}


def full(night: object, number: int = 4) -> Frames:
    """Make dithered frames of full arrays without light."""
    frames = []
    for n, (east, north) in enumerate(DITHER[:number]):
        frame = pointed(night.science[0], f"S{n}.fits", east * 10, north * 10)
        frame = frame.drop_vars(["data", "y", "x"]).assign_coords(from_the_corner(frame, 2048))
        frame = frame.assign_attrs(file_shape=[4, 2048, 2048], file_start=[0, 0])
        zeros = da.zeros((4, 2048, 2048), "f4", chunks=(1, 2048, 2048))
        frames.append(with_arrays(frame, data=zeros))
    return tuple(frames)


def positions(frame: Frame) -> np.ndarray:
    """Give East, North (arcsec about the target) of a frame's stars by the frame's solution."""
    parts = [
        tangent_plane(*to_sky(g, s["x"], s["y"]), *centre(frame))
        for g, s in zip(geometries(frame), small(frame, "stars"), strict=True)
    ]
    return np.concatenate([np.column_stack(part) for part in parts])


def test_frames_are_aligned_with_each_other(night: object, no_compute: None) -> None:
    errors = [(0.1, -0.05), (-0.2, 0.1), (0.15, 0.2), (-0.1, -0.15)]
    frames = seen(full(night), errors)
    aligned = steps.adjust_wcs_to_reference(frames)
    assert not any("set_aside" in frame.attrs for frame in aligned)
    from scipy.spatial import cKDTree

    first = cKDTree(positions(aligned[0]))
    for frame, before in zip(aligned[1:], frames[1:], strict=True):
        assert np.median(cKDTree(positions(frames[0])).query(positions(before))[0]) > 0.1
        distance = first.query(positions(frame))[0]
        assert np.median(distance[distance < 0.05]) < 0.0006 and (distance < 0.002).mean() > 0.6
        assert (
            small(frame, "solution")["matches"] > 50 and small(frame, "solution")["rms_mas"] < 0.6
        )
    assert geometries(before)[0].correction_x == ()


def test_a_frame_that_sees_other_stars_is_set_aside(night: object) -> None:
    frames = list(seen(full(night), [(0, 0)] * 4))
    random = np.random.default_rng(9)
    wrong = [table.copy() for table in small(frames[2], "stars")]
    for table in wrong:
        table["x"], table["y"] = random.uniform(10, 2030, (2, len(table)))
    frames[2] = with_fetched(frames[2], {"stars": wrong})
    aligned = steps.adjust_wcs_to_reference(tuple(frames))
    assert [frame.attrs["name"] for frame in aligned if frame.attrs.get("set_aside")] == ["S2.fits"]
    assert aligned[2].attrs["set_aside"]


@pytest.mark.parametrize(
    ("stars", "ways"),
    [(0, {"header"}), (1, {"shift by 1 star"}), (2, {"shift by 1 star", "shift by 2 stars"})],
)
def test_frames_of_a_sparse_field_say_how_they_were_placed(
    night: object, stars: int, ways: set[str]
) -> None:
    """Of two stars one is in the gap between arrays in some frames."""
    errors = [(0.1, -0.05), (-0.2, 0.1), (0.15, 0.2), (-0.1, -0.15)]
    frames = seen(full(night), errors, stars=stars, half=15.0)
    aligned = steps.adjust_wcs_to_reference(frames)
    assert {small(frame, "solution")["placed"] for frame in aligned} == ways
    for frame in aligned:
        placed_by = small(frame, "solution")["placed"]
        error = small(frame, "solution")["error_mas"]
        assert placed_by in frame.attrs["note"] and frame.attrs["name"] in frame.attrs["note"]
        assert (placed_by == "header") == ("warning" in frame.attrs)
        assert placed_by != "header" or (
            frame.attrs["name"] in frame.attrs["warning"] and "0 stars" in frame.attrs["warning"]
        )
        assert error == 250 if not stars else 0 < error < 5
    if stars:
        first = positions(aligned[0])
        nearest = [
            np.hypot(*(p[:, None] - first).transpose(2, 0, 1)).min(axis=0)
            for p in map(positions, aligned)
        ]
        assert (
            np.max(nearest, where=np.array(nearest) < 0.5, initial=0.0) < 0.002
        )  # a tenth of a pixel


def test_a_pointing_that_check_wcs_refuses_places_no_frame(night: object) -> None:
    frames = list(seen(full(night), [(0, 0)] * 4, stars=0))
    wrong = tuple(g._replace(dec=g.dec + 50 / 3600) for g in geometries(frames[1]))
    frames[1] = with_geometries(frames[1], wrong)
    aligned = steps.adjust_wcs_to_reference(tuple(frames))
    assert [frame.attrs["name"] for frame in aligned if frame.attrs.get("set_aside")] == ["S1.fits"]
    assert (
        "cannot be trusted" in aligned[1].attrs["set_aside"]
        and "arcsec from" in aligned[1].attrs["set_aside"]
    )


def test_one_frame_and_frames_without_centroids(night: object) -> None:
    (frame,) = full(night, 1)
    assert "nothing to align" in steps.adjust_wcs_to_reference((frame,))[0].attrs["note"]
    with pytest.raises(GdaskError, match=r"S0\.fits: no centroids; run detect_sources"):
        steps.adjust_wcs_to_reference(full(night, 2))


def test_a_reference_catalogue_ties_the_group(night: object, tmp_path: object) -> None:
    """All frames 0.3 arcsec off in the same way: only a catalogue can tell."""
    frames = seen(full(night), [(0.3, -0.2)] * 4)
    random = np.random.default_rng(4)
    east, north = random.uniform(-45, 45, (2, 200))
    mag = 25 - 2.5 * random.uniform(3.5, 6, 200)
    ra, dec = tangent_sky(east, north, *centre(frames[0]))
    Table({"ra": ra, "dec": dec, "Ksmag": mag}).write(f"{tmp_path}/gaia.ecsv")
    with_catalog = steps.add_reference_catalog(frames, source=f"{tmp_path}/gaia.ecsv")
    assert len(read_catalog(with_catalog[0].attrs["refcat"])) == 200
    solved = steps.determine_astrometric_solution(with_catalog)
    assert geometries(steps.adjust_wcs_to_reference(solved)[0]) == geometries(solved[0])
    from scipy.spatial import cKDTree

    distance, index = cKDTree(np.column_stack([east, north])).query(positions(solved[1]))
    offset = (positions(solved[1]) - np.column_stack([east, north])[index])[distance < 0.1]
    assert len(offset) > 50 and np.abs(np.median(offset, axis=0)).max() < 0.002
    assert not solved[0].attrs.get("warning")
    Table({"ra": ra + 1.0, "dec": dec, "Ksmag": mag}).write(f"{tmp_path}/elsewhere.ecsv")
    elsewhere = steps.determine_astrometric_solution(
        steps.add_reference_catalog(frames, source=f"{tmp_path}/elsewhere.ecsv")
    )
    assert "not tied to the catalogue, positions stay" in elsewhere[0].attrs["warning"]
    untied = steps.determine_astrometric_solution(steps.add_reference_catalog(frames))
    assert all(small(frame, "solution") is None for frame in untied)


# ---- targets that move

#: Rate of the made-up object, arcsec per hour East and North, and hours between frames.
RATE, HOURS = np.array([36.0, -14.4]), np.array([0.0, 0.05, 0.1, 0.2])


def moving(frames: Frames, rate: np.ndarray = RATE) -> Frames:
    """Give frames whose headers say that the telescope follows an object, and when."""
    made = []
    for frame, hours in zip(frames, HOURS, strict=True):
        minutes, seconds = divmod(round(hours * 3600), 60)
        time = f"03:{minutes:02d}:{seconds:02d}.0"
        cosine = np.cos(np.radians(centre(frame)[1]))
        cards = {"RATRACK": rate[0] / 3600 / 15 / cosine, "DECTRACK": rate[1] / 3600}
        made.append(with_headers(frame, primary=cards | {"UT": time, "TIME-OBS": time}))
    return tuple(made)


def object_places(frames: Frames, truth: Frames) -> np.ndarray:
    """Give where frames put the object (arcsec), which moves among the stars of the true frames."""
    places = []
    for frame, true, hours in zip(frames, truth, HOURS, strict=True):
        sky = tangent_sky(*(RATE * hours + 12.0), *centre(frame))
        for geometry, exact in zip(geometries(frame), geometries(true), strict=True):
            x, y = from_sky(exact, *sky)
            if 0 < x < 2047 and 0 < y < 2047:
                places.append(tangent_plane(*to_sky(geometry, x, y), *centre(frame)))
    return np.array(places, float)


def test_frames_of_a_moving_target_follow_it_or_the_stars(night: object) -> None:
    errors = [(0.1, -0.05), (-0.2, 0.1), (0.15, 0.2), (-0.1, -0.15)]
    frames = moving(seen(full(night), errors))
    assert all("NON_SIDEREAL" in gdask.tags(frame) for frame in frames)
    stars = steps.adjust_wcs_to_reference(frames, follow="stars")
    still = steps.adjust_wcs_to_reference(frames)
    on_stars, on_object = object_places(stars, stars), object_places(still, stars)
    assert len(on_stars) == len(on_object) == 4
    assert np.ptp(on_stars, axis=0) == pytest.approx(np.abs(RATE) * 0.2, abs=0.01)
    assert np.ptp(on_object, axis=0).max() < 0.001
    assert "spread over 7.75 arcsec" in stars[0].attrs["warning"]
    assert "aligned on it" in still[0].attrs["warning"]
    given = steps.adjust_wcs_to_reference(
        moving(frames, 0 * RATE), rate_east=RATE[0], rate_north=RATE[1]
    )
    assert np.allclose(object_places(given, stars), on_object, atol=1e-6)
    resting = steps.adjust_wcs_to_reference(moving(frames, 1e-5 * RATE))
    assert geometries(resting[2]) == geometries(stars[2]) and "warning" not in resting[2].attrs


@pytest.mark.parametrize(
    ("share", "says"), [(0.0, "they stay"), (1.0, "they follow it"), (-1.0, "neither follow")]
)
def test_check_wcs_says_whether_headers_follow_a_moving_target(
    night: object, share: float, says: str
) -> None:
    frames = moving(full(night))
    start = geometries(frames[0])
    made = []
    for frame, hours in zip(frames, HOURS, strict=True):
        ra, dec = tangent_sky(*(share * RATE * hours), start[0].ra, start[0].dec)
        moved = tuple(g._replace(ra=float(ra), dec=float(dec)) for g in start)
        made.append(with_geometries(frame, moved))
    checked = steps.check_wcs(tuple(made))[0]
    assert says in checked.attrs["warning"] and "36.00, -14.40 arcsec/h" in checked.attrs["warning"]
    assert "every WCS agrees" in checked.attrs["note"]
    resting = steps.check_wcs(moving(full(night), 0 * RATE))[0]
    assert "warning" not in resting.attrs


# ---- levels


def smooth(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """Give a smooth sky: e- per pixel at a position (arcsec about the target)."""
    return 300 + 4.0 * east + 2.5 * north


@pytest.fixture(scope="module")
def sky_files(night: object, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Write four dithered files of the smooth sky, with noise of 2 e-."""
    frames = []
    for number, (east, north) in enumerate(DITHER):
        frame = pointed(night.std[0], f"S{number}.fits", east, north)
        _, ny, nx = shape_of(frame)
        y, x = np.mgrid[:ny, :nx]
        planes = [
            smooth(*tangent_plane(*to_sky(g, x, y), *centre(frame))) for g in geometries(frame)
        ]
        data = np.stack(planes) + np.random.default_rng(number).normal(0, 2, (4, ny, nx))
        frames.append(
            with_pixels(
                frame,
                data=data.astype("f4"),
                variance=np.full(data.shape, 4, "f4"),
                dq=np.zeros(data.shape, "u2"),
            )
        )
    return on_disk(tuple(frames), tmp_path_factory.mktemp("smooth"))


def test_levels_that_the_test_puts_in_are_taken_out(sky_files: Frames, tmp_path: object) -> None:
    put = np.random.default_rng(3).uniform(-20, 20, (4, 4))
    frames = tuple(
        with_arrays(frame, data=changed_scale(frame.data.data, [1.0] * 4, list(offsets)))
        for frame, offsets in zip(sky_files, put, strict=True)
    )
    run = Run(folder=str(tmp_path))
    matched = steps.match_sky_levels(run.fetch(steps.measure_sky_levels(frames, cell=32.0)))
    left = np.array(
        [
            [np.median(computed(m)["data"][d] - computed(f)["data"][d]) for d in range(4)]
            for m, f in zip(matched, sky_files, strict=True)
        ]
    )
    step = left - left.mean(axis=0)  # arrays do not overlap each other: each has a mean of its own
    assert np.abs(put - put.mean(axis=0)).max() > 10 and np.abs(step).max() < 0.8
    np.testing.assert_allclose(
        left.mean(axis=0), put.mean(axis=0), atol=1.0
    )  # the mean level stays


def test_frames_see_the_same_light_in_a_cell_however_large_their_arrays(
    sky_files: Frames, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waves of light of 24 pixels, as unresolved stars: levels of some rows were off by 2 e-.

    Only arrays of more than 1448 pixels were sampled, so that no small night showed it: here all
    are that may be.
    """
    rows = gather.sampled_rows

    def quarter(ny: int, nx: int, sample: int | None) -> tuple[tuple[int, int], ...]:
        return rows(ny, nx, ny * nx // 4 if sample else None)

    for module in (gather, sky_surfaces):
        monkeypatch.setattr(module, "sampled_rows", quarter, raising=False)
    frames = []
    for frame in sky_files:
        planes = []
        for plane, geometry in zip(computed(frame)["data"], geometries(frame), strict=True):
            y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
            east, north = tangent_plane(*to_sky(geometry, x, y), *centre(frame))
            planes.append(plane + 20 * np.sin(2 * np.pi * (north + 0.3 * east) / 0.48))
        frames.append(with_pixels(frame, data=np.stack(planes).astype("f4")))
    run = Run(folder=str(tmp_path))
    matched = steps.match_sky_levels(run.fetch(steps.measure_sky_levels(tuple(frames), cell=32.0)))
    left = [
        np.median(computed(m)["data"] - computed(f)["data"], axis=(1, 2))
        for m, f in zip(matched, frames, strict=True)
    ]
    step = np.array(left) - np.mean(left, axis=0)
    assert np.abs(step).max() < 1.0, step


def test_planes_that_the_test_puts_in_are_taken_out(sky_files: Frames, tmp_path: object) -> None:
    """A slope of each frame goes, whether pixels are read from files or not, with the same bits."""
    slopes = np.random.default_rng(5).normal(0, 30, (4, 2))
    size = sky_files[0].sizes["y"], sky_files[0].sizes["x"]
    frames = []
    for frame, slope in zip(sky_files, slopes, strict=True):
        put = []
        for geometry in geometries(frame):
            y, x = nodes(2, size)
            u, v = to_plane(geometry, x, y)
            put.append(surface_of_nodes(-(slope[0] * u + slope[1] * v) / 42, 2, size, 2.0**-12))
        data = minus_surfaces(frame.data.data, put)
        assert is_stored(source_of(data))
        frames.append(with_arrays(frame, data=data))
    run = Run(folder=str(tmp_path))
    measured = run.fetch(steps.measure_sky_levels(tuple(frames), cell=32.0))
    matched = steps.match_sky_levels(measured)
    assert all(is_stored(source_of(frame.data.data)) for frame in matched)
    left = np.array(
        [computed(m)["data"] - computed(f)["data"] for m, f in zip(matched, sky_files, strict=True)]
    )
    step = left - left.mean(axis=0)
    before = np.array(
        [computed(f)["data"] - computed(s)["data"] for f, s in zip(frames, sky_files, strict=True)]
    )
    assert (before - before.mean(axis=0)).std() > 8 and step.std() < 0.6
    added = [float((m.variance - f.variance).max()) for m, f in zip(matched, frames, strict=True)]
    assert 0 < min(added) and max(added) < 4.0  # the error of a surface
    loose = tuple(with_arrays(frame, data=frame.data.data + 0) for frame in measured)
    again = steps.match_sky_levels(loose)
    assert source_of(again[0].data.data) is None
    np.testing.assert_array_equal(computed(again[0])["data"], computed(matched[0])["data"])


# ---- resampling


@pytest.mark.parametrize("interpolation", ["bilinear", "cubic", "quintic", "lanczos3"])
def test_the_smooth_sky_comes_out_as_it_is(sky_files: Frames, interpolation: str) -> None:
    (frame,) = steps.resample_to_common_frame(
        sky_files[:1], pixel_scale=0.05, interpolation=interpolation
    )
    planes = computed(frame)
    good = planes["dq"][0] == 0
    y, x = np.nonzero(good)
    grid = grid_of(frame)
    expected = smooth(*tangent_plane(*grid_to_sky(grid, x, y), *centre(sky_files[0])))
    ratio = planes["data"][0][good] / expected
    area = 0.05**2 / np.median(
        [np.abs(np.linalg.det(wcs.pixel_scale_matrix)) * 3600**2 for wcs in gdask.wcs(sky_files[0])]
    )
    assert good.sum() > 10000 and np.median(ratio) == pytest.approx(area, rel=0.01)
    assert np.std(ratio) / area < 0.01
    assert np.all(planes["data"][0][planes["dq"][0] == DQ.NO_DATA] == 0)


@pytest.mark.parametrize("pa", [0.0, 37.0])
def test_the_output_is_upright_or_turned_as_asked(sky_files: Frames, pa: float) -> None:
    frames = steps.resample_to_common_frame(sky_files, pixel_scale=0.05, pa=pa)
    assert len({grid_of(frame) for frame in frames}) == 1 and {
        tuple(f.sizes.values()) for f in frames
    } == {tuple(frames[0].sizes.values())}
    (header,) = array_headers(frames[0])
    c, s = np.cos(np.radians(pa)) * 0.05, np.sin(np.radians(pa)) * 0.05
    np.testing.assert_allclose(WCS(header).pixel_scale_matrix * 3600, [[-c, s], [s, c]], atol=1e-9)
    assert not {"ARRAYID", "CCDSEC", "DETSEC", "RADECSYS"} & set(header)


def test_a_reference_image_gives_its_grid(sky_files: Frames, tmp_path: object) -> None:
    (first,) = steps.resample_to_common_frame(sky_files[:1], pixel_scale=0.05, pa=20.0)
    reference = gdask.write(first, f"{tmp_path}/reference.fits")
    (second,) = steps.resample_to_common_frame(sky_files[1:2], reference=reference)
    assert dict(second.sizes) == dict(first.sizes)
    for keyword in ("CRVAL1", "CRPIX1", "CRPIX2", "CD1_1", "CD1_2", "CD2_1"):
        assert array_headers(second)[0][keyword] == pytest.approx(
            array_headers(first)[0][keyword], abs=1e-9
        )
    with fits.open(reference) as hdus:
        y, x = np.nonzero((hdus["DQ"].data == 0) & (computed(second)["dq"][0] == 0))
        difference = (hdus["SCI"].data - computed(second)["data"][0])[y, x]
    assert len(y) > 5000 and abs(np.median(difference)) < 0.5
    with pytest.raises(GdaskError, match="plain TAN"):
        steps.resample_to_common_frame(sky_files[:1], reference=sky_files[0].attrs["path"])


def test_tiles_do_not_show_in_the_result(
    sky_files: Frames, monkeypatch: pytest.MonkeyPatch, no_compute: None
) -> None:
    (whole,) = steps.resample_to_common_frame(sky_files[:1], pixel_scale=0.05)
    monkeypatch.setattr("gdask.steps.resample.TILE_SIDE", 37)
    (tiled,) = steps.resample_to_common_frame(sky_files[:1], pixel_scale=0.05)
    assert tiled.data.data.chunks != whole.data.data.chunks
    with dask.config.set(scheduler="threads"):
        assert_same(computed(whole), computed(tiled))


def test_the_error_of_the_map_is_kept_and_limited(sky_files: Frames) -> None:
    frames = steps.resample_to_common_frame(sky_files, pixel_scale=0.05)
    assert all(0 < small(frame, "placed")["map_px"] < 1e-6 for frame in frames)
    wild = tuple(
        g._replace(correction_x=(0.0,) * 66 + (5e3,) * 12, correction_y=(0.0,) * 78)
        for g in geometries(sky_files[1])
    )
    with pytest.raises(
        GdaskError, match=r"S1\.fits: the sampled pixel map is wrong by .* px, at most 0\.0001"
    ):
        steps.resample_to_common_frame(
            (sky_files[0], with_geometries(sky_files[1], wild)), pixel_scale=0.05
        )


@pytest.mark.parametrize("name", ["data", "variance", "dq"])
def test_the_same_bits_of_frames_that_are_not_on_disk(sky_files: Frames, name: str) -> None:
    changed = with_pixels(sky_files[0], 97, **{name: computed(sky_files[0])[name]})
    in_memory, stored = (
        computed(steps.resample_to_common_frame((frame,))[0]) for frame in (changed, sky_files[0])
    )
    assert_same(in_memory, stored)


# ---- scales


def test_counts_are_scaled_by_exposure_time(sky_files: Frames) -> None:
    short = with_headers(sky_files[1], primary={"EXPTIME": 15.0})
    first, scaled = steps.scale_counts_to_reference((sky_files[0], short))
    np.testing.assert_allclose(computed(scaled)["data"], 2 * computed(short)["data"], rtol=1e-6)
    np.testing.assert_allclose(
        computed(scaled)["variance"], 4 * computed(short)["variance"], rtol=1e-6
    )
    assert_same(computed(first), computed(sky_files[0]))


def test_or_by_stars_within_the_tolerance(night: object, sky_files: Frames) -> None:
    frames = seen(full(night, 2), [(0, 0)] * 2)
    stars = [table.copy() for table in small(frames[1], "stars")]
    for table in stars:
        table["flux"] /= 1.05
    frames = (frames[0], with_fetched(frames[1], {"stars": stars}))
    frames = tuple(
        with_fetched(
            with_geometries(
                source.assign_coords(from_the_corner(source, source.sizes["x"])), geometries(frame)
            ),
            {"stars": small(frame, "stars")},
        )
        for frame, source in zip(frames, sky_files, strict=False)
    )
    for tolerance, factor in ((0.0, 1.0), (0.02, 1.0), (0.1, 1.05)):
        scaled = steps.scale_counts_to_reference(frames, tolerance=tolerance)[1]
        ratio = computed(scaled)["data"] / computed(sky_files[1])["data"]
        assert np.median(ratio) == pytest.approx(factor, rel=1e-4)


def test_transparency_is_taken_out_where_stars_tell_it(night: object) -> None:
    """Frames of 0.85 to 1.06 of the light; before, exposure times alone scaled them."""
    light = (1.0, 0.85, 1.06, 0.97)
    frames = []
    for frame, share in zip(seen(full(night), [(0, 0)] * 4), light, strict=True):
        tables = [table.copy() for table in small(frame, "stars")]
        for table in tables:
            table["flux"] *= share
            table["wide"] = table["flux"][:, None]
            table["ewide"] = np.hypot(table["eflux"], 0.004 * table["flux"])[:, None]
            table["share"] = 1.0
        frame = with_arrays(frame, variance=frame["data"].data)
        frames.append(with_fetched(frame, {"stars": tables}))
    aligned = steps.adjust_wcs_to_reference(tuple(frames))
    scaled = steps.scale_counts_to_reference(aligned)
    got = np.array([small(frame, "solution")["throughput_factor"] for frame in scaled]) * light
    assert np.ptp(got) < 0.01 and abs(np.mean(got) - np.mean(light)) < 0.02, got
    assert "taken out" in scaled[0].attrs["note"] and "0.8" in scaled[0].attrs["note"]
    for before, after, share in zip(aligned, scaled, light, strict=True):
        pixels = np.s_[0, :4, :4]
        one, other = (np.asarray(f["data"].data[pixels].compute()) for f in (before, after))
        np.testing.assert_allclose(other, one * np.mean(got) / share, rtol=0.012)
    off = steps.scale_counts_to_reference(aligned, throughput="off")
    assert off[1]["data"].data.name == aligned[1]["data"].data.name


def test_fluxes_of_a_star_agree_between_arrays(night: object) -> None:
    """Pixels differ in area by 2.9 per cent, and flats divide by it; before, so did fluxes.

    The standard that each frame has on another array was off by as much from frame to frame.
    """
    offset, frames = [], []
    for frame, place in zip(
        full(night), [(0.0, 0.0), (21.0, 0.0), (0.0, 21.0), (21.0, 21.0)], strict=True
    ):
        moved = []
        for geometry in geometries(frame):
            ra, dec = tangent_sky(*place, geometry.ra, geometry.dec)
            moved.append(geometry._replace(ra=float(ra), dec=float(dec)))
        offset.append(with_geometries(frame, tuple(moved)))
    for frame in seen(tuple(offset), [(0.0, 0.0)] * 4):
        tables = [table.copy() for table in small(frame, "stars")]
        for table, geometry in zip(tables, geometries(frame), strict=True):
            area = pixel_area(geometry, table["x"], table["y"]) / unit_area(frame)
            table["flux"], table["eflux"] = table["flux"] / area, table["eflux"] / area
        frames.append(with_fetched(frame, {"stars": tables}))
    aligned = steps.adjust_wcs_to_reference(tuple(frames))
    rows = np.concatenate([small(frame, "solution")["residuals"] for frame in aligned])
    star, error = rows["star"], rows["eflux"].astype(float)
    mean = np.bincount(star, rows["flux"] / error**2) / np.maximum(
        np.bincount(star, 1 / error**2), 1e-30
    )
    off = rows["flux"] / mean[star] - 1
    bright = error < 0.003 * rows["flux"]
    arrays = np.array([len(np.unique(rows["array"][star == k])) for k in range(star.max() + 1)])
    assert np.count_nonzero(bright & (arrays[star] > 1)) > 20
    assert np.std(off[bright & (arrays[star] > 1)]) < 0.002
