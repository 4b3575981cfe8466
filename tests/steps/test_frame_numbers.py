"""Numbers of a stack's frames: throughput by shared stars, weights, frames left out for them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Night

from gdask import steps
from gdask.io.frames import array_headers, small, with_headers, with_small
from gdask.io.read import open_frame
from gdask.kernels.astrometry.residuals import RESIDUAL_DTYPE
from gdask.kernels.sources.centroids import POSITIONS
from gdask.kernels.sources.detection import CATALOG
from gdask.reduction.gates import shipped, step_parameters
from gdask.steps.frame_numbers import (
    frame_numbers,
    relative_transparencies,
    stack_weights,
    weigh_frames,
)
from gdask.types import Frame, Frames

SKY, READ_NOISE, WIDTH = 1500.0, 10.0, 4.0


def frame(path: str, throughput: float, stars: int = 60, fwhm: float = WIDTH) -> Frame:
    """Make a frame as the alignment leaves it; its stars are as bright as the throughput says."""
    rng = np.random.default_rng(sum(map(ord, path)))
    made = open_frame(path)
    count = made.sizes["detector"]
    wings = rng.uniform(1, 2)  # what the fitted image has beyond all radii, as an array's stars say
    rows = np.zeros(stars, RESIDUAL_DTYPE)
    rows["star"] = rows["x"] = np.arange(stars)
    light = 1e5 * throughput * rng.normal(1, 0.02, stars) * (1 + np.arange(stars))
    rows["flux"], rows["eflux"] = wings * light, 0.01 * wings * light
    fitted, catalog = np.zeros(max(stars, 9), POSITIONS), np.zeros(9, CATALOG)
    fitted["fwhm"], catalog["CLASS_STAR"], catalog["ELLIPTICITY"] = fwhm, 1.0, 0.07
    fitted["x"], fitted["share"], fitted["flux"] = np.arange(len(fitted)), 1 / wings, 1.0
    fitted["flux"][:stars] = rows["flux"]
    objects = np.empty(count, object)
    catalogs = np.empty(count, object)
    for k in range(count):
        objects[k], catalogs[k] = fitted, catalog
    headers: dict[str, list[object]] = {"SKYMED": [SKY] * count, "RDNOISE": [READ_NOISE] * count}
    headers["BUNIT"] = ["electron"] * count
    made = steps.prepare((made,))[0] if "geometry" not in made.coords else made
    made = made.assign(stars=("detector", objects), objcat=("detector", catalogs))
    return with_small(with_headers(made, each=headers), solution={"residuals": rows})


def group(night: Night, throughputs: tuple[float, ...], **of_frame: float) -> Frames:
    paths = sorted([*night.science, *night.sky])
    return tuple(frame(path, t, **of_frame) for path, t in zip(paths, throughputs, strict=False))


def test_numbers_of_a_frame_are_those_of_its_headers_and_stars(night: Night) -> None:
    (one,) = group(night, (1.0,))
    found = frame_numbers(one)
    assert found["sky"] == SKY and found["variance"] == SKY + READ_NOISE**2
    assert found["fwhm"] == pytest.approx(WIDTH * 0.0197, rel=0.03)
    assert found["ellipticity"] == pytest.approx(0.07) and found["stars"] == 9 * 4
    assert found["seconds"] == 60 and found["nominal_zero_point"] == pytest.approx(26.2, abs=0.02)


def test_throughput_is_that_of_the_stars(night: Night) -> None:
    given = (1.0, 0.98, 0.4, 0.003, 1.01)
    found, errors = relative_transparencies(group(night, given))
    np.testing.assert_allclose(found, np.array(given) / np.median(given), rtol=0.01)
    assert (errors < 0.03).all()
    values, errors = relative_transparencies(group(night, given, stars=0))
    assert np.isnan(values).all() and np.isinf(errors).all()


@pytest.mark.parametrize("stars", [1, 3])
def test_a_star_or_three_tell_a_cloud_and_nothing_less(night: Night, stars: int) -> None:
    given = (1.0, 0.97, 1.02, 0.05, 0.9)
    found, errors = relative_transparencies(group(night, given, stars=stars))
    assert found[3] == pytest.approx(0.05, rel=0.1)
    assert np.isnan(np.delete(found, 3)).all() and (errors > 0.05).all()


def test_a_frame_with_few_of_the_stars_of_the_others_is_told(night: Night) -> None:
    """A few stars tell a cloud, and the frame is left out; where none does, the frame is named."""
    many = group(night, (1.0, 0.98, 1.02, 1.01))
    few = group(night, (1.0, 0.98, 0.05, 1.02), stars=3)[2]
    kept, left = weigh_frames((many[0], many[1], few, many[3]), 0.01)
    assert [each.attrs["name"] for each in left] == [few.attrs["name"]]
    assert not any(each.attrs.get("warning") for each in kept)
    none = group(night, (1.0, 0.98, 0.05, 1.02), stars=0)[2]
    kept, left = weigh_frames((many[0], many[1], none, many[3]), 0.01)
    assert not left
    assert [bool(each.attrs.get("warning")) for each in kept] == [False, False, True, False]
    text = f"{none.attrs['name']}: 0 matched stars where frames usually have 60"
    assert kept[2].attrs["warning"].startswith(text)


def test_a_frame_that_deserves_no_weight_is_left_out_and_says_why(night: Night) -> None:
    given = (1.0, 0.98, 0.05, 1.02, 1.01)  # 0.05 squared is 0.25 %
    kept, left = weigh_frames(group(night, given), 0.01)
    assert [small(each, "solution")["numbers"]["transparency"] for each in kept] == pytest.approx(
        [1, 0.98, 1.02, 1.01], rel=0.02
    )
    assert (
        len(left) == 1
        and left[0].attrs["name"]
        == sorted(open_frame(path).attrs["name"] for path in [*night.science, *night.sky])[2]
    )
    reason = left[0].attrs["set_aside"]
    assert (
        "0.25 % of the median" in reason and "throughput 0.0" in reason and "min_weight" in reason
    )
    kept, left = weigh_frames(group(night, given), 0.0)
    assert len(kept) == 5 and not left
    weights = [small(each, "solution")["numbers"]["weight"] for each in kept]
    np.testing.assert_allclose(weights, np.square(given), rtol=0.05)


def test_width_and_sky_count_in_the_weight(night: Night) -> None:
    _, *others = group(night, (1.0, 1.0, 1.0))
    paths = sorted([*night.science, *night.sky])
    frames = (frame(paths[0], 1.0, fwhm=2 * WIDTH), *others)
    bright = [{"SKYMED": [3 * SKY] * 4}]
    frames = (*frames[:2], with_headers(frames[2], each=bright[0]))
    kept, _ = weigh_frames(frames, 0.01)
    weights = np.array([small(each, "solution")["numbers"]["weight"] for each in kept])
    expected = np.array([0.25, 1.0, (SKY + 100) / (3 * SKY + 100)])
    np.testing.assert_allclose(weights / weights[1], expected, rtol=0.05)


def test_the_first_frame_kept_is_the_reference_of_the_scale(night: Night) -> None:
    """The frame that is left out has another exposure time: nothing may be scaled to it."""
    frames = group(night, (0.01, 1.0, 1.0, 1.0))
    first = with_headers(frames[0], primary={"EXPTIME": 15.0})
    scaled = steps.scale_counts_to_reference((first, *frames[1:]), min_weight=0.01)
    gone = [each for each in scaled if each.attrs.get("set_aside")]
    assert [each.attrs["name"] for each in gone] == [first.attrs["name"]]
    for each, before in zip(scaled[:3], frames[1:], strict=True):
        assert each["data"].data is before["data"].data  # as it was: of one exposure time


def test_the_limit_of_the_step_is_that_of_the_gates() -> None:
    import inspect

    parameter = inspect.signature(steps.scale_counts_to_reference).parameters["min_weight"]
    limits = step_parameters(shipped())
    assert limits == {"scale_counts_to_reference:min_weight": parameter.default}


def test_headers_of_arrays_are_not_needed(night: Night) -> None:
    (one,) = group(night, (1.0,))
    bare = with_headers(one, each={"SKYMED": [None] * 4, "RDNOISE": [None] * 4})
    assert "SKYMED" not in array_headers(bare)[0]
    found = frame_numbers(bare)
    assert np.isnan(found["sky"]) and np.isnan(found["variance"]) and found["stars"] == 36


@pytest.mark.parametrize("blind", [(2,), (0, 1, 2, 3)])
def test_a_frame_without_a_star_is_scaled_with_the_others(
    night: Night, blind: tuple[int, ...]
) -> None:
    """As of a window of few pixels: none of its arrays has a star, and no residual is of it."""
    frames = list(group(night, (1.0, 1.02, 0.97, 1.0)))
    for number in blind:
        stars = np.empty(frames[number].sizes["detector"], object)
        stars[:] = [np.zeros(0, POSITIONS) for _ in stars]
        nothing = {"residuals": np.zeros(0, RESIDUAL_DTYPE)}
        one = frames[number].assign(stars=("detector", stars))
        frames[number] = with_small(one, solution=nothing)
    scaled = steps.scale_counts_to_reference(tuple(frames))
    assert len(scaled) == len(frames)
    weights = [small(one, "solution")["numbers"]["weight"] for one in scaled]
    assert np.isfinite(weights).all()


def test_weights_of_a_stack_are_those_of_its_frames(night: Night) -> None:
    """To 1/4096 of the median's; one of which nothing is known counts as one like the others."""
    frames, _ = weigh_frames(group(night, (1.0, 0.5, 1.0, 1.0)), 0.0)
    found = stack_weights((*frames, open_frame(night.science[0])))
    assert found[1] == pytest.approx(0.25, rel=0.05) and found[4] == 1.0
    assert all(one * 4096 == round(one * 4096) for one in found)
