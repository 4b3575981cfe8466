"""Numbers of simulated headers against those of the archive's."""

from __future__ import annotations

import pytest

from gdask.simulate.f2_headers import six_digits
from gdask.simulate.gemini_headers import telescope_values
from gdask.simulate.plan import Exposure


def test_numbers_pass_through_six_digits_and_single_precision() -> None:
    """As they stand in headers of 2015 to 2023."""
    assert [
        six_digits(v) for v in (121.60118, -41.372847, 1064.9, 4.994171e-5, 57023.169758, 2.17987)
    ] == [
        121.600997924805,
        -41.3727989196777,
        1064.90002441406,
        4.99417001265101e-05,
        57023.19921875,
        2.17986989021301,
    ]


def test_offsets_are_those_of_a_real_frame() -> None:
    """P, Q, PA and IAA of an archive header of 2015-01-01, and what it makes of them."""
    blank = Exposure(*([0.0] * len(Exposure._fields)))._replace(tracking=(0.0, 0.0))
    cards = telescope_values(
        blank._replace(p=-9.88, q=-8.65, mjd=57023.17, ra=121.5975, dec=-41.37525), 180.0, 0.091
    )
    real = {
        "XOFFSET": 9.89372589210172,
        "YOFFSET": 8.63429719038881,
        "RAOFFSET": 9.88,
        "DECOFFSE": 8.65,
    }
    assert {name: cards[name] for name in real} == pytest.approx(real, abs=1e-9)
    assert cards["ELEVATIO"] == pytest.approx(62.84, abs=0.3) and cards["AZIMUTH"] == pytest.approx(
        122.69, abs=0.5
    )
