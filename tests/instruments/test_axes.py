"""Scale and axes by the headers, against the truth of simulated frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gdask
from gdask.io.frames import array_headers, geometries
from gdask.kernels.geometry.projection import to_plane
from gdask.simulate import simulate_f2, simulate_gsaoi
from gdask.simulate.f2 import load_facts
from gdask.simulate.f2_headers import axes_matrix
from gdask.simulate.f2_plan import date_of


@pytest.mark.parametrize("pa", [0.0, 37.0, -120.0])
@pytest.mark.parametrize("date", ["20131121", "20180305"])
def test_f2_has_the_axes_of_its_cd_matrix(tmp_path: Path, pa: float, date: str) -> None:
    """Over a whole array to a mas; square axes along PA were off by up to 0.2 arcsec."""
    night = {"size": 64, "n_science": 1, "n_darks": 0, "n_short_darks": 0, "n_lamps": 0}
    simulate_f2(tmp_path, **night, pa=pa, date=date, axes="cd")
    (path,) = (tmp_path / "raw").glob("S*.fits")
    (geometry,) = geometries(gdask.open(str(path)))
    assert geometry.pa == pytest.approx(pa, abs=1e-6)
    x, y = np.meshgrid([-900.0, 0.0, 900.0], [-900.0, 0.0, 900.0])
    u, v = to_plane(geometry, x, y)
    cd = 3600 * axes_matrix(load_facts()[0], date_of(date).date())
    for got, (a, b) in zip((u, v), cd, strict=True):
        assert np.abs(got - got[1, 1] - (a * x + b * y)).max() < 0.001
    plain = 0.1797 * y
    assert np.abs(u - u[1, 1] - plain).max() > 0.02  # what is told apart here


def test_a_cd_matrix_that_is_far_from_pa_says_nothing(tmp_path: Path) -> None:
    night = {"size": 64, "n_science": 1, "n_darks": 0, "n_short_darks": 0, "n_lamps": 0}
    simulate_f2(tmp_path, **night)
    (path,) = (tmp_path / "raw").glob("S*.fits")
    frame = gdask.open(str(path))
    assert "CD1_2" in array_headers(frame)[0]
    (before,) = geometries(frame)
    assert before.distortion_x[2] != 0.1797
    from astropy.io import fits

    with fits.open(path, mode="update") as hdus:
        hdu = next(h for h in hdus if "CD1_2" in h.header)
        hdu.header["CD1_2"] = 2 * hdu.header["CD1_2"]
    (after,) = geometries(gdask.open(str(path)))
    assert after.distortion_x[2] == 0.1797 and after.distortion_y[1] == 0.1797


@pytest.mark.parametrize("pa", [0.0, 60.0])
def test_gsaoi_has_the_position_angle_of_its_keyword(tmp_path: Path, pa: float) -> None:
    night = {"size": 64, "n_science": 1, "n_sky": 0, "n_flats": 0, "n_std": 0, "no_bpm": True}
    simulate_gsaoi(tmp_path, **night, pa=pa, bad_wcs=0)
    (path,) = (tmp_path / "raw").glob("S*.fits")
    assert {geometry.pa for geometry in geometries(gdask.open(str(path)))} == {pa}
