"""Tests of which frames are sky, which sky belongs to which frame, and what is subtracted."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from helpers import BANDS, assert_same, computed, on_disk, raw, shape_of, with_pixels

import gdask
from gdask import steps
from gdask.instruments import descriptor
from gdask.io.frames import geometries, primary_header, sky_names, with_geometries, with_headers
from gdask.kernels.geometry.projection import tangent_sky
from gdask.model import DQ, GdaskError, UsageError
from gdask.reduction.screening import with_names_listed
from gdask.steps.sky import sky_levels, transfer_objects
from gdask.steps.sky_frames import _groups, far_apart, separation
from gdask.types import Frame, Frames


def placed(
    path: str, name: str, east: float, north: float = 0.0, seconds: float = 0.0, **primary: object
) -> Frame:
    """Make a frame with this name, pointed so many arcsec from its target.

    It is begun so many seconds after 02:00 UT.
    """
    start = datetime(2017, 5, 5, 2) + timedelta(seconds=seconds)
    clock = {
        "DATE-OBS": f"{start:%Y-%m-%d}",
        "UT": f"{start:%H:%M:%S.%f}",
        "UTSTART": f"{start:%H:%M:%S.%f}",
    }
    frame = with_headers(raw(path), primary=clock | primary)
    centre = float(descriptor(frame, "target_ra")), float(descriptor(frame, "target_dec"))
    ra, dec = tangent_sky(east, north, *centre)
    moved = tuple(geometry._replace(ra=float(ra), dec=float(dec)) for geometry in geometries(frame))
    return with_geometries(frame.assign_attrs(name=name), moved)


def names(frames: Frames) -> str:
    return " ".join(frame.attrs["name"].removesuffix(".fits") for frame in frames)


@pytest.fixture
def guided(night: object) -> str:
    return night.science[0]


@pytest.fixture
def unguided(night: object) -> str:
    return night.sky[0]


# ---- separate_sky


def test_nothing_on_target_is_an_error(unguided: str) -> None:
    with pytest.raises(GdaskError, match="all 2 frames are on sky .*ref_obj"):
        steps.separate_sky((placed(unguided, "S0.fits", 0), placed(unguided, "S1.fits", 0)))


def test_unguided_frames_are_sky(night: object, no_compute: None) -> None:
    frames = steps.prepare(gdask.open_many(night.sequence), bad_wcs="fix")
    targets, skies = steps.separate_sky(frames)
    assert [f.attrs["path"] for f in targets] == night.science and [
        f.attrs["path"] for f in skies
    ] == night.sky
    assert (
        {primary_header(f)["OBJFRAME"] for f in targets}
        == {primary_header(f)["SKYFRAME"] for f in skies}
        == {"TRUE"}
    )
    assert "not guided" in targets[0].attrs["note"] and "OBJFRAME" not in primary_header(frames[0])


def test_one_kind_spreads_over_its_group_and_the_rest_is_the_other(guided: str) -> None:
    frames = tuple(
        placed(guided, f"S{n}.fits", east) for n, east in enumerate((0, 5, 200, 205, 400))
    )
    assert tuple(map(names, steps.separate_sky(frames, ref_obj="S1"))) == ("S0 S1", "S2 S3 S4")
    assert tuple(map(names, steps.separate_sky(frames, ref_sky="S0,S4_prepared.fits"))) == (
        "S2 S3",
        "S0 S1 S4",
    )
    assert tuple(map(names, steps.separate_sky(frames, ref_obj="S0", ref_sky="S2"))) == (
        "S0 S1 S4",
        "S2 S3",
    )


def test_keywords_say_what_a_frame_is(guided: str) -> None:
    frames = [placed(guided, f"S{n}.fits", east) for n, east in enumerate((0, 5, 200, 205))]
    frames[3] = with_headers(frames[3], primary={"SKYFRAME": "TRUE"})
    assert tuple(map(names, steps.separate_sky(tuple(frames)))) == ("S0 S1", "S2 S3")
    frames[2] = with_headers(frames[2], primary={"OBJFRAME": True})
    assert tuple(map(names, steps.separate_sky(tuple(frames)))) == ("S0 S1 S2 S3", "S2 S3")


def test_users_lists_win_over_guiding(guided: str, unguided: str) -> None:
    frames = (placed(guided, "S0.fits", 0), placed(unguided, "S1.fits", 300))
    assert tuple(map(names, steps.separate_sky(frames))) == ("S0", "S1")
    assert tuple(map(names, steps.separate_sky(frames, ref_obj="S1", ref_sky="S0"))) == ("S1", "S0")


@pytest.mark.parametrize(
    ("places", "targets", "skies"),
    [
        ((0, 5, 10), "S0 S1 S2", "S0 S1 S2"),  # dithered on target: all are both
        ((300, 0, 305, 5), "S1 S3", "S0 S2"),  # two fields: the one at the target's position
        (
            (0, 5, 300, 600, 605, 610),
            "S0 S1 S2",
            "S3 S4 S5",
        ),  # nearest to the target, until they are half
        ((-60, 0, 60, 120), "S0 S1 S2 S3", "S0 S1 S2 S3"),  # a chain of neighbours is one group
    ],
)
def test_what_nothing_is_known_of_goes_by_distance(
    guided: str, places: tuple, targets: str, skies: str
) -> None:
    frames = tuple(placed(guided, f"S{n}.fits", east) for n, east in enumerate(places))
    assert tuple(map(names, steps.separate_sky(frames))) == (targets, skies)


@pytest.mark.parametrize(
    "text",
    [
        "S2,S3",
        "S2 S3",
        " raw/S2.fits ,\tS3_prepared.fits",
        "S2.fits.gz\nS3",
        "/data/x/S[23].fits",
        "'S2', S3",
    ],
)
def test_ways_to_name_frames(guided: str, text: str) -> None:
    frames = tuple(placed(guided, f"S{n}.fits", 300 * n) for n in range(5))
    assert tuple(map(names, steps.separate_sky(frames, ref_sky=text))) == ("S0 S1 S4", "S2 S3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S20170505S0O12", "no frame 'S20170505S0O12' .*did you mean S20170505S0012"),
        ("S20170505S0011 xyz.fits", "no frame 'xyz.fits' among the 4"),
        ("S20170505S0011, @sky.list", "no frame '@sky.list'"),
        ("night_3", "'night_3' fits 2 frames .night_1.fits, night_2.fits"),
        ("nothing*", "no frame 'nothing"),
    ],
)
def test_a_name_that_is_no_frame_is_refused(guided: str, text: str, message: str) -> None:
    known = ("S20170505S0011", "S20170505S0012", "night_1", "night_2")
    frames = tuple(placed(guided, f"{name}.fits", 300 * n) for n, name in enumerate(known))
    for parameter in ("ref_sky", "ref_obj"):
        with pytest.raises(UsageError, match=f"separate_sky:{parameter}: {message}"):
            steps.separate_sky(frames, **{parameter: text})


def test_a_named_frame_that_was_set_aside_is_warned_of(guided: str) -> None:
    frames = tuple(placed(guided, f"S{n}.fits", 300 * n) for n in range(4))
    frames = with_names_listed(frames, ["S8.fits"])
    targets, skies = steps.separate_sky(frames, ref_sky="S8,S3")
    assert (names(targets), names(skies)) == ("S0 S1 S2", "S3")
    assert "S8.fits of ref_obj or ref_sky: set aside" in targets[0].attrs["warning"]
    with pytest.raises(UsageError, match="no frame 'S9'"):
        steps.separate_sky(frames, ref_sky="S9")


def test_frac_FOV_sets_what_one_field_is(guided: str) -> None:
    frames = tuple(placed(guided, f"S{n}.fits", east) for n, east in enumerate((0, 60)))
    assert names(steps.separate_sky(frames)[1]) == "S0 S1"
    assert names(steps.separate_sky(frames, frac_FOV=0.6)[1]) == "S1"


def test_separation_of_positions() -> None:
    assert separation((10.0, -60.0), (10.0, -60.0 + 1 / 3600)) == pytest.approx(1.0, abs=1e-9)
    assert separation((359.9999, 60.0), (0.0001, 60.0)) == pytest.approx(0.36, abs=1e-6)


def test_positions_are_far_apart_as_pairs_of_them_are() -> None:
    random = np.random.default_rng(4)
    others = np.array([10.0, -40.0]) + random.normal(0, 3 / 3600, (300, 2))
    first = (10.0, -40.0)
    alone = [separation(tuple(other), first) for other in others]
    for limit in (0.0, 2.0, *alone[:5]):  # some exactly at the limit
        far = far_apart(first, others, limit)
        assert far.tolist() == [distance >= limit for distance in alone]


def test_groups_are_what_can_be_reached_in_steps() -> None:
    random = np.random.default_rng(5)
    positions = [(10.0 + ra / 3600, dec / 3600) for ra, dec in random.uniform(0, 60, (80, 2))]
    limit = 5.0
    near = [[separation(one, other) < limit for other in positions] for one in positions]
    reached = np.array(near)
    for _ in range(7):
        reached = reached @ reached
    firsts = [int(np.flatnonzero(row)[0]) for row in reached]
    numbers = sorted(set(firsts))
    assert 1 < len(numbers) < len(positions)
    assert _groups(positions, limit) == [numbers.index(n) for n in firsts]


# ---- associate_sky


def skies_of(frames: Frames) -> list[str]:
    """Give the names of the sky frames of each frame that is not set aside."""
    return [
        " ".join(name.removesuffix(".fits") for name in sky_names(frame))
        for frame in frames
        if "set_aside" not in frame.attrs
    ]


@pytest.fixture
def dithered(guided: str) -> Frames:
    """Make five frames, 2 arcsec and 100 s from one to the next."""
    return tuple(placed(guided, f"S{n}.fits", 2.0 * n, seconds=100.0 * n) for n in range(5))


def test_a_frame_is_never_its_own_sky(dithered: Frames) -> None:
    result = steps.associate_sky(dithered, dithered, distance=0.0)
    assert [frame.attrs["name"] in sky_names(frame) for frame in result] == [False] * 5
    assert skies_of(result) == [" ".join(f"S{m}" for m in range(5) if m != n) for n in range(5)]
    assert all("skies" not in frame.attrs for frame in dithered)


def test_skies_are_far_enough_and_near_in_time(dithered: Frames) -> None:
    assert skies_of(steps.associate_sky(dithered, dithered, distance=3.0)) == [
        "S2 S3 S4",
        "S3 S4",
        "S0 S4",
        "S0 S1",
        "S0 S1 S2",
    ]
    assert skies_of(
        steps.associate_sky(dithered, dithered, distance=1.0, time=150.0, min_skies=1)
    ) == ["S1", "S0 S2", "S1 S3", "S2 S4", "S3"]
    assert skies_of(
        steps.associate_sky(dithered, dithered, distance=1.0, time=0.0, min_skies=2)
    ) == ["S1 S2", "S0 S2", "S1 S3", "S2 S4", "S2 S3"]
    assert skies_of(steps.associate_sky(dithered, dithered, distance=1.0, max_skies=1)) == [
        "S1",
        "S0",
        "S1",
        "S2",
        "S3",
    ]
    assert skies_of(
        steps.associate_sky(dithered, dithered, distance=3.0, time=0.0, min_skies=1, use_all=True)
    ) == ["S2 S3 S4", "S3 S4", "S0 S4", "S0 S1", "S0 S1 S2"]


def test_an_excluded_frame_is_no_sky_for_others_and_has_skies_itself(dithered: Frames) -> None:
    result = steps.associate_sky(dithered, dithered, distance=0.0, exclude="raw/S1.fits, S3")
    assert skies_of(result) == ["S2 S4", "S0 S2 S4", "S0 S4", "S0 S2 S4", "S0 S2"]


def test_skies_are_taken_alike(dithered: Frames) -> None:
    others = (
        with_headers(dithered[1], primary={"FILTER1": "J_G1101"}),
        with_headers(dithered[2], primary={"EXPTIME": 30.0}),
        with_headers(dithered[3], primary={"LNRS": 2}),
        dithered[4],
    )
    assert skies_of(steps.associate_sky(dithered[:1], others)) == ["S4"]


def test_skies_are_of_the_same_night_where_it_has_one(dithered: Frames) -> None:
    """At least three are wanted, and the night has two others: none of another night comes in."""
    later = tuple(
        with_headers(frame, primary={"DATE-OBS": "2019-08-03"}).assign_attrs(name=f"T{number}.fits")
        for number, frame in enumerate(dithered[2:])
    )
    both = (*dithered[:3], *later)
    result = steps.associate_sky(both, both, distance=0.0)
    assert skies_of(result) == ["S1 S2", "S0 S2", "S0 S1", "T1 T2", "T0 T2", "T0 T1"]
    (alone,) = steps.associate_sky(later[:1], dithered[:2], distance=0.0)
    assert skies_of((alone,)) == ["S0 S1"]
    assert "1 of 1 frames have sky frames of other nights only" in alone.attrs["warning"]
    assert not any(frame.attrs.get("warning") for frame in result)


def test_a_frame_without_sky_is_set_aside_with_the_reason(dithered: Frames) -> None:
    (alone,) = steps.associate_sky(dithered[:1], dithered, distance=50.0)
    assert "at least 50 arcsec away" in alone.attrs["set_aside"]
    (kept,) = steps.associate_sky(dithered[:1], dithered, distance=50.0, keep_lonely=True)
    assert "set_aside" not in kept.attrs and sky_names(kept) == ()


# ---- sky_correct

LEVELS = np.array([2000.0, 2600.0, 3100.0, 2300.0, 2800.0])  # of the sky in each frame
ARRAYS = np.array([1.0, 1.1, 0.9, 1.05])[:, None, None]  # one sky is not as bright on all arrays


def structure(shape: tuple[int, ...]) -> np.ndarray:
    """Make the structure of all sky frames: a pattern of +-60 e- with median zero."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    return np.broadcast_to(60 * np.sin(x / 17.0) * np.cos(y / 23.0), shape)


@pytest.fixture(scope="module")
def sky_frames(night: object, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """Write five files with sky of several levels, a structure and noise of 5 e-.

    The last has a bright source on a fifth of it.
    """
    frames = []
    for number, level in enumerate(LEVELS):
        frame = placed(night.std[0], f"S{number}.fits", 5.0 * number, seconds=100.0 * number)
        shape = shape_of(frame)
        noise = np.random.default_rng(number).normal(0, 5, shape)
        data = level * ARRAYS + structure(shape) + noise
        objects = np.zeros(shape, bool)
        if number == 4:
            objects[:, 60:100, 60:140] = True
            data[objects] += 500
        planes = {
            "data": data.astype("f4"),
            "variance": np.full(shape, 25, "f4"),
            "dq": np.zeros(shape, "u2"),
            "objects": objects,
        }
        frames.append(with_pixels(frame, **planes))
    return on_disk(tuple(frames), tmp_path_factory.mktemp("sky"))


def corrected(
    frames: Frames, skies: Frames, number: int, **parameters: object
) -> tuple[np.ndarray, Frame]:
    associated = steps.associate_sky(frames, skies, distance=1.0)
    result = steps.sky_correct(associated, skies, **parameters)[number]
    return computed(result)["data"], result


def test_levels_are_those_of_each_array(sky_frames: Frames, tmp_path: Path) -> None:
    for frame, level in zip(sky_frames, LEVELS, strict=True):
        found = sky_levels(frame).compute()
        np.testing.assert_allclose(found, level * ARRAYS.ravel(), atol=6)
    data, objects = sky_frames[0].data.data.compute(), np.zeros(shape_of(sky_frames[0]), bool)
    objects[:, :110] = True
    data[objects] += 300
    (frame,) = on_disk((with_pixels(sky_frames[0], data=data, objects=objects),), tmp_path)
    np.testing.assert_allclose(sky_levels(frame).compute(), LEVELS[0] * ARRAYS.ravel(), atol=30)
    assert (
        sky_levels(frame, mask_objects=False).compute() > LEVELS[0] * ARRAYS.ravel() + 200
    ).all()


@pytest.mark.parametrize(
    "levelling",
    [{"offset_sky": True, "scale_sky": False}, {"offset_sky": False, "scale_sky": False}],
)
def test_the_structure_goes_and_the_level_as_asked(sky_frames: Frames, levelling: dict) -> None:
    data, frame = corrected(sky_frames, sky_frames, 2, **levelling)
    level = (
        0.0
        if levelling["offset_sky"]
        else LEVELS[2] - np.interp(2, [0, 1, 3, 4], LEVELS[[0, 1, 3, 4]])
    )
    assert np.std(data - np.median(data, axis=(1, 2), keepdims=True)) < 5 * np.sqrt(1 + 1.5 / 4) + 1
    np.testing.assert_allclose(np.median(data, axis=(1, 2)), level * ARRAYS.ravel(), atol=8)
    pattern = structure(data.shape)
    pattern = pattern - pattern.mean()
    assert abs((data * pattern).sum() / (pattern**2).sum()) < 0.02
    assert primary_header(frame)["SKYFRMS"] == 4


def test_a_scaled_sky_takes_out_multiplicative_structure(night: object, tmp_path: Path) -> None:
    frames = []
    for number, level in enumerate(LEVELS):
        frame = placed(night.std[0], f"S{number}.fits", 5.0 * number, seconds=100.0 * number)
        shape = shape_of(frame)
        data = level * ARRAYS * (1 + structure(shape) / 1000) + np.random.default_rng(
            number
        ).normal(0, 2, shape)
        frames.append(
            with_pixels(
                frame,
                data=data.astype("f4"),
                variance=np.full(shape, 4, "f4"),
                dq=np.zeros(shape, "u2"),
            )
        )
    frames = on_disk(tuple(frames), tmp_path)
    data, _ = corrected(frames, frames, 2, offset_sky=False, scale_sky=True)
    assert np.std(data) < 3.5 and np.abs(np.median(data, axis=(1, 2))).max() < 8
    wrong, _ = corrected(frames, frames, 0, offset_sky=True, scale_sky=False)
    assert np.std(wrong) > 10


def test_sources_on_sky_frames_leave_no_holes_where_they_are_masked(sky_frames: Frames) -> None:
    hole = np.s_[:, 65:95, 65:135]
    skies = sky_frames[3:]  # two skies: the source is in half of them
    for mask, worst in ((True, 5.0), (False, 1e9)):
        data, _ = corrected(
            sky_frames[:1], skies, 0, offset_sky=True, scale_sky=False, mask_objects=mask
        )
        inside = np.median(data[hole]) - np.median(data[:, :50])
        assert abs(inside) < worst
    assert inside < -200  # without the mask the source is subtracted from the frame


def test_a_frame_is_not_part_of_its_own_sky(sky_frames: Frames, tmp_path: Path) -> None:
    """A star that only this frame has keeps its flux exactly: no copy of it is in the sky."""
    stars = sky_frames[1].data.data.compute()
    stars[:, 50:60, 50:60] += 4000
    changed = list(sky_frames)
    (changed[1],) = on_disk((with_pixels(sky_frames[1], data=stars),), tmp_path)
    (with_star, _), (without, _) = (
        corrected(
            tuple(f),
            tuple(f),
            1,
            operation="mean",
            reject_method="none",
            offset_sky=False,
            scale_sky=False,
        )
        for f in (changed, list(sky_frames))
    )
    np.testing.assert_allclose((with_star - without)[:, 50:60, 50:60], 4000, atol=0.01)
    assert "S1.fits" not in [
        value
        for key, value in primary_header(corrected(sky_frames, sky_frames, 1)[1]).items()
        if key.startswith("SKYFR")
    ]


def test_variance_and_flags_of_the_sky_arrive(sky_frames: Frames, tmp_path: Path) -> None:
    skies = []
    for frame in sky_frames[1:]:
        dq = np.zeros(shape_of(frame), "u2")
        dq[:, 7, 7] = DQ.NO_DATA  # in every sky frame
        skies += on_disk((with_pixels(frame, dq=dq),), tmp_path)
    associated = steps.associate_sky(sky_frames[:1], tuple(skies))
    (result,) = steps.sky_correct(
        associated,
        tuple(skies),
        offset_sky=True,
        scale_sky=False,
        operation="mean",
        reject_method="none",
        mask_objects=False,
    )
    planes = computed(result)
    assert (planes["dq"][:, 7, 7] == DQ.NO_DATA).all() and (planes["dq"] != 0).sum() == 4
    np.testing.assert_allclose(planes["variance"][:, 20:, 20:], 25 + 25 / 4, rtol=1e-5)


def test_few_skies_are_combined_without_rejection(sky_frames: Frames) -> None:
    for count in (1, 2):
        data, _ = corrected(
            sky_frames[:1], sky_frames[1 : 1 + count], 0, offset_sky=True, scale_sky=False
        )
        assert np.std(data) < 12 and np.abs(np.median(data)) < 8


def test_without_any_sky_only_the_level_goes(sky_frames: Frames) -> None:
    (lonely,) = steps.associate_sky(sky_frames[:1], sky_frames[:1], keep_lonely=True)
    before, after = (
        computed(lonely)["data"],
        computed(steps.sky_correct((lonely,), sky_frames[:1])[0])["data"],
    )
    level = (before - after).mean(axis=(1, 2))
    np.testing.assert_allclose(level, LEVELS[0] * ARRAYS.ravel(), atol=6)
    np.testing.assert_allclose(
        before - after, np.broadcast_to(level[:, None, None], before.shape), atol=0.01
    )


@pytest.mark.parametrize("name", ["data", "variance", "dq"])
@pytest.mark.parametrize("is_sky", [True, False])
def test_the_same_bits_of_frames_that_are_not_on_disk(
    sky_frames: Frames, name: str, is_sky: bool
) -> None:
    """The frame itself, or one of its sky frames, with a variable in memory."""
    number = 1 if is_sky else 0
    changed = with_pixels(sky_frames[number], 97, **{name: computed(sky_frames[number])[name]})
    frames = tuple(changed if n == number else frame for n, frame in enumerate(sky_frames))
    in_memory, stored = (computed(corrected(f, f, 0)[1]) for f in (frames, sky_frames))
    assert_same(in_memory, stored)


@pytest.mark.parametrize("ending", ["gz", "fz"])
def test_the_same_bits_from_files_that_are_compressed(
    sky_frames: Frames, tmp_path: Path, ending: str
) -> None:
    packed = []
    for frame in sky_frames:
        name = frame.attrs["name"]
        with fits.open(frame.attrs["path"]) as hdus:
            if ending == "fz":
                images = [
                    fits.CompImageHDU(
                        hdu.data,
                        hdu.header,
                        name=hdu.name,
                        compression_type="GZIP_1",
                        quantize_level=0,
                    )
                    for hdu in hdus[1:]
                    if isinstance(hdu, fits.ImageHDU)
                ]
                hdus = fits.HDUList([hdus[0], *images])
            hdus.writeto(tmp_path / f"{name}.{ending}")
        again = gdask.open(tmp_path / f"{name}.{ending}")
        packed.append(with_geometries(again.assign_attrs(name=name), geometries(frame)))
    plain, compressed = (corrected(f, f, 1)[1] for f in (sky_frames, tuple(packed)))
    assert_same(computed(plain), computed(compressed))


def test_one_array_for_each_group_of_skies(sky_frames: Frames) -> None:
    """Few tasks and few layers: what the client and the scheduler have to hold for each frame."""
    frames = steps.sky_correct(
        steps.associate_sky(sky_frames, sky_frames, distance=1.0), sky_frames
    )
    graph = frames[0]["data"].data.dask
    assert len(graph.layers) <= 4 + 3 + len(
        sky_frames
    )  # a level for each sky frame and its own; sky, difference, field
    assert len(dict(graph)) <= 4 * (3 + len(sky_frames)) + 4 * 3


def test_offset_and_scale_exclude_each_other(sky_frames: Frames) -> None:
    with pytest.raises(GdaskError, match="offset_sky and scale_sky are both True"):
        steps.sky_correct(sky_frames, sky_frames, offset_sky=True, scale_sky=True)


@pytest.mark.parametrize("scale", [False, True])
def test_the_same_bits_however_the_frames_are_chunked(
    sky_frames: Frames, scale: bool, no_compute: None
) -> None:
    built = []
    for rows in BANDS:
        chunked = tuple(frame.chunk({"y": rows or -1}) for frame in sky_frames)
        associated = steps.associate_sky(chunked[:1], chunked)
        built.append(
            steps.sky_correct(associated, chunked, offset_sky=not scale, scale_sky=scale)[0]
        )
    with dask.config.set(scheduler="threads"):
        whole, *banded = (computed(frame) for frame in built)
    for frame in banded:
        assert_same(whole, frame)


def test_masks_found_on_corrected_frames_go_back_to_the_frames(sky_frames: Frames) -> None:
    bare = tuple(frame.drop_vars("objects") for frame in sky_frames)
    carried = transfer_objects(bare, sky_frames[3:])
    assert ["objects" in frame for frame in carried] == [False] * 3 + [True] * 2
    np.testing.assert_array_equal(
        computed(carried[4])["objects"], computed(sky_frames[4])["objects"]
    )
