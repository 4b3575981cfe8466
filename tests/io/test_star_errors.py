"""Errors of positions beyond the pixels', against frames whose distortions are known."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.io.star_errors import common_distortion_errors
from gdask.kernels.astrometry.catalogue_tie import Reference
from gdask.kernels.astrometry.solution import solve
from gdask.kernels.geometry.projection import Geometry, tangent_sky
from tests.kernels.astrometry.test_solution import (
    CENTRE,
    observe,
    offsets_from_truth,
    rms,
    sky,
)


def as_inputs(frames, solution):
    """Give what a stack knows of its frames after the joint solution."""
    return [
        {
            "terms": fit.terms,
            "group": fit.group,
            "reference_tie": solution.reference_tie._asdict() if solution.reference_tie else {},
            "geometry": (
                Geometry(
                    1.0, 1.0, (), (), frame.ra, frame.dec, frame.pa, fit.correction_x,
                    fit.correction_y,
                ),
            ),
        }
        for frame, fit in zip(frames, solution.frames, strict=True)
    ]  # fmt: skip


def pulls(seed: int, pa: float, frames: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """Give the offsets of bright stars over their errors, and the errors (mas)."""
    stars = sky(400, seed)
    made = [observe(stars, f, pa=pa, seed=seed, **options)[0] for f in range(frames)]
    solution = solve(made)
    off, (x, y), _ = offsets_from_truth(solution, stars)
    errors = common_distortion_errors(
        *tangent_sky(x, y, solution.ra, solution.dec), as_inputs(made, solution)
    )
    return off / errors, errors


@pytest.mark.parametrize(("pa", "frames"), [(0.0, 9), (37.0, 4)])
def test_what_all_frames_have_in_common_is_in_the_errors(pa: float, frames: int):
    """Whole nights are one draw of the common distortion each, so many are tried."""
    measured = [pulls(seed, pa, frames) for seed in range(12)]
    scatter = rms(np.concatenate([pull.ravel() for pull, _ in measured]))
    # A few frames tell the scatter of their distortions poorly: Student's distribution is wider.
    assert 0.7 < scatter < 1.4
    # Bright stars are good to 0.1 mas by their pixels, in 9 frames.
    assert all(errors.mean() > 0.4 for _, errors in measured)


def test_errors_fall_with_frames_and_are_small_without_distortions():
    place = tangent_sky(*np.random.default_rng(0).uniform(-35, 35, (2, 200)), *CENTRE)

    def errors(seed: int, frames: int, **options) -> float:
        stars = sky(400, seed)
        made = [observe(stars, f, seed=seed, **options)[0] for f in range(frames)]
        return float(common_distortion_errors(*place, as_inputs(made, solve(made))).mean())

    of_four, of_sixteen = (np.mean([errors(seed, n) for seed in range(5)]) for n in (4, 16))
    assert 0.4 < of_sixteen / of_four < 0.6
    assert errors(3, 9, warp=0.0) < 0.1


def test_frames_that_share_no_stars_count_for_themselves():
    stars = sky(400)
    made = [observe(stars, f)[0] for f in range(4)]
    inputs = as_inputs(made, solve(made))
    place = np.array(CENTRE[:1]), np.array(CENTRE[1:])
    apart = [dict(source, group=1 + f // 2) for f, source in enumerate(inputs)]
    halves = [common_distortion_errors(*place, inputs[k : k + 2]) for k in (0, 2)]
    np.testing.assert_array_equal(common_distortion_errors(*place, apart), np.maximum(*halves))
    assert not common_distortion_errors(*place, inputs[:1]).any()
    assert not common_distortion_errors(*place, [dict(s, terms=6) for s in inputs]).any()


def test_a_catalogue_takes_the_common_distortion_out():
    stars = sky(2500)
    made = [observe(stars, f)[0] for f in range(9)]
    rng = np.random.default_rng(1)
    ra, dec, flux = stars
    scatter = rng.normal(size=(2, len(ra))) / 3.6e6
    reference = Reference(
        ra + scatter[0] / np.cos(np.radians(dec)), dec + scatter[1], np.full(len(ra), 1e-3), flux
    )
    solution = solve(made, reference=reference)
    assert solution.reference_tie is not None and solution.reference_tie.terms == 20
    off, (x, y), _ = offsets_from_truth(solution, stars)
    place = tangent_sky(x, y, solution.ra, solution.dec)
    errors = common_distortion_errors(*place, as_inputs(made, solution))
    assert errors.min() == errors.max() < 0.2
    assert rms(off) < 4 * errors.max()
