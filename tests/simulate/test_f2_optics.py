"""What is between the sky and FLAMINGOS-2's array: lit circle and guide probe."""

from __future__ import annotations

import numpy as np
import pytest

from gdask.simulate import f2
from gdask.simulate.f2_optics import Circle, Probe, illumination, probe_tip, shadow
from gdask.simulate.geometry import sky_to_pixel
from gdask.simulate.options import f2_options

FACTS, _ = f2.load_facts()


def test_light_fills_the_circle_alone() -> None:
    circle = Circle(1049.9, 1054.9, 1054.1, 8.0, 0.02)
    at = np.arange(2048.0)
    light = illumination(circle, at, at)
    r = np.hypot(at[None] - 1049.9, at[:, None] - 1054.9)
    assert np.all(light[r < 1054.1] == 1.0) and np.all(np.abs(light[r > 1062.1] - 0.02) < 1e-6)
    assert np.all((light > 0.0199) & (light <= 1.0)) and (light < 0.5).mean() == pytest.approx(
        0.17, abs=0.02
    )


def test_the_arm_of_the_guide_probe_shades_from_its_tip_outwards() -> None:
    arm = shadow(Probe(0.0, 0.0, 225.0), (400.0, 300.0), np.arange(600.0), np.arange(500.0))
    assert arm[200, 300] == pytest.approx(0.6, abs=0.01)  # on the axis, 140 pixels from the tip
    assert arm[300, 400] == pytest.approx(0.8, abs=0.01)  # at the tip: half
    assert arm[400, 500] == pytest.approx(1.0, abs=1e-3)  # beyond it
    assert arm[300, 200] == pytest.approx(1.0, abs=1e-3)  # 141 pixels to the side
    assert np.abs(np.diff(arm, axis=1)).max() < 0.02  # soft


def test_a_shadow_falls_on_some_frames_and_follows_the_guide_star() -> None:
    prepared = f2.prepare_night(f2_options(probe="edge"))
    chip, probe, circle = prepared.detectors[0].chip, f2.probe_of(prepared), f2.lit_circle(FACTS)
    depths = []
    for exposure in prepared.exposures:
        tip = np.array(probe_tip(probe, chip, exposure))
        if exposure.kind != "science":
            assert np.isnan(tip).all()
            continue
        depths.append(circle.radius - np.hypot(*(tip - [circle.x, circle.y])))
        x, y = sky_to_pixel(chip, exposure.pose, np.array([probe.ra]), np.array([probe.dec]))
        np.testing.assert_allclose(tip + 1.0, [x[0], y[0]])
    assert min(depths) < 0 and max(depths) > 100
