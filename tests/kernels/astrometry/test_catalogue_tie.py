"""The tie to catalogues as users have them: without errors, with missing motions, a wrong epoch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from astropy.table import Table

from gdask.io.catalog import at_epoch
from gdask.kernels.astrometry.catalogue_tie import (
    Reference,
    ReferenceTie,
    describe_tie,
    doubts,
    tie_to_reference,
)
from gdask.kernels.astrometry.measured_stars import displace, prior_weights
from gdask.kernels.geometry.projection import tangent_sky

CENTRE = (201.2925, -43.1015)
YEAR, CATALOGUE_YEAR = 2017.35, 2000.0


class Sky(NamedTuple):
    """True places (arcsec), places that frames show (with distortion and a shift), fluxes."""

    x: np.ndarray
    y: np.ndarray
    seen_x: np.ndarray
    seen_y: np.ndarray
    flux: np.ndarray


def sky(n: int, seed: int = 1) -> Sky:
    """Stars that frames see displaced by 0.3 arcsec, and by a distortion of 2.5 mas rms."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-42, 42, (2, n))
    terms = rng.normal(0, 0.0045, 20)
    terms[:2], terms[4:6] = (0.3, -0.2), 0.001
    dx, dy = displace(x, y, terms)
    noise = rng.normal(0, 2e-4, (2, n))
    return Sky(x, y, x + dx + noise[0], y + dy + noise[1], 10 ** rng.uniform(0, 3, n))


def tie(stars: Sky, reference: Reference) -> tuple[np.ndarray, ReferenceTie]:
    """The errors of all places (2, n, mas) after the tie, and how it went."""
    seen = stars.seen_x, stars.seen_y, stars.flux
    error = np.full(len(stars.x), 2e-4)
    move, how = tie_to_reference(reference, seen, error, CENTRE, 3.0, 0.2, prior_weights(0.01))
    u, v = displace(stars.seen_x, stars.seen_y, move)
    off = np.array([stars.seen_x + u - stars.x, stars.seen_y + v - stars.y])
    return 1000 * off, how


def rms(values: np.ndarray) -> float:
    """Root of the mean square per axis."""
    return float(np.sqrt(np.mean(np.square(values))))


def reference(stars: Sky, true_mas: float, stated_mas: float, seed: int = 2) -> Reference:
    """A catalogue with errors of true_mas which says that they are stated_mas."""
    rng = np.random.default_rng(seed)
    x, y = (v + rng.normal(0, true_mas / 1000, len(v)) for v in (stars.x, stars.y))
    return Reference(*tangent_sky(x, y, *CENTRE), np.full(len(x), stated_mas / 1000), stars.flux)


@pytest.mark.parametrize("stated", [np.nan, 20.0, 1000.0, 0.05])
def test_errors_are_those_of_the_residuals(stated: float) -> None:
    """300 stars of 1 mas: as good as with the right errors, whatever the catalogue says of them."""
    stars = sky(300)
    best, _ = tie(stars, reference(stars, 1.0, 1.0))
    off, how = tie(stars, reference(stars, 1.0, stated))
    assert rms(off) < 1.02 * rms(best) + 0.005 and rms(best) < 0.35, (rms(off), rms(best))
    assert how.used == pytest.approx(1.0, rel=0.12)
    assert how.place_error == pytest.approx(1.0 / np.sqrt(300), rel=0.2)
    if np.isnan(stated):
        assert np.isnan(how.stated) and not doubts(how)
        assert "no errors given" in describe_tie(how) and "by the residuals" in describe_tie(how)
    else:
        assert f"{stated:.2g} mas" in doubts(how) and f"{how.used:.2g} mas" in doubts(how)


@pytest.mark.parametrize("true", [0.3, 5.0, 80.0])
def test_errors_that_are_right_are_kept(true: float) -> None:
    stars = sky(200, seed=3)
    off, how = tie(stars, reference(stars, true, true))
    assert how.used == pytest.approx(true) and not doubts(how)
    assert rms(off) < 6 * true / np.sqrt(200) + 3.0


def test_stars_without_an_error_among_others_have_one_of_their_own() -> None:
    """Half of the stars are of 30 mas and do not say so: they do not spoil those of 0.5 mas."""
    stars, rng = sky(300), np.random.default_rng(7)
    silent = np.arange(300) % 2 == 0
    error = np.where(silent, 0.03, 0.0005)
    x, y = (v + rng.normal(size=300) * error for v in (stars.x, stars.y))
    stated = np.where(silent, np.nan, error)
    off, how = tie(stars, Reference(*tangent_sky(x, y, *CENTRE), stated, stars.flux))
    assert rms(off) < 0.35 and how.place_error < 0.06


@pytest.mark.parametrize("n", [12, 40])
@pytest.mark.parametrize("stated", [100.0, np.nan])
def test_a_sparse_catalogue_of_100_mas_does_no_more_harm_than_its_errors(
    n: int, stated: float
) -> None:
    stars = sky(n, seed=5)
    off, how = tie(stars, reference(stars, 100.0, stated))
    assert how.ok and 60 < how.used < 150
    # At most shift, turn and scale: four terms, two for each axis.
    assert how.terms <= 6 and rms(off) < 2.5 * 100 / np.sqrt(n), (rms(off), how)


def moving(n: int, missing: np.ndarray, epoch: float) -> tuple[Sky, Table, np.ndarray]:
    """Stars that move by (-6, 3) +- 4 mas/yr and their catalogue, which says that it is of `epoch`.

    Its places are of CATALOGUE_YEAR, with errors of 0.2 mas; missing: stars without a motion.
    """
    stars, rng = sky(n, seed=8), np.random.default_rng(9)
    pm = rng.normal(0, 4, (2, n)) + np.array([[-6.0], [3.0]])
    x, y = (
        v - m / 1000 * (YEAR - CATALOGUE_YEAR) + rng.normal(0, 2e-4, n)
        for v, m in zip((stars.x, stars.y), pm, strict=True)
    )
    ra, dec = tangent_sky(x, y, *CENTRE)
    table = Table(
        {
            "RAJ2000": ra,
            "DEJ2000": dec,
            "e_RA": np.full(n, 0.2),
            "e_DE": np.full(n, 0.2),
            "pmRA": np.where(missing, np.nan, pm[0]),
            "pmDE": np.where(missing, np.nan, pm[1]),
            "Epoch": np.full(n, epoch),
        }
    )
    return stars, table, pm


def reference_of(table: Table, flux: np.ndarray) -> Reference:
    """A catalogue at the frames' epoch, as the step makes it."""
    at = at_epoch(table, YEAR, None)
    return Reference(at.ra, at.dec, at.error, flux, at.motion_x, at.motion_y, at.spread)


@pytest.mark.parametrize("unknown", [np.nan, 0.0])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_stars_without_a_motion_do_not_move_the_others(unknown: float, share: float) -> None:
    """Half or nine tenths of the motions missing (17 mas before; 0 is a motion that is missing)."""
    n = 300
    missing = np.random.default_rng(3).uniform(size=n) < share
    stars, table, _ = moving(n, missing, CATALOGUE_YEAR)
    for name in ("pmRA", "pmDE"):
        table[name][missing] = unknown
    off, how = tie(stars, reference_of(table, stars.flux))
    assert np.abs(off.mean(axis=1)).max() < 0.15 and rms(off) < 0.5, (off.mean(axis=1), rms(off))
    assert not doubts(how) and how.place_error < 0.2
    text = at_epoch(table, YEAR, None).text
    assert f"{missing.sum()} have no motion" in text and "spread" in text


@pytest.mark.parametrize("epoch", [2016.0, 2010.0])
def test_a_wrong_epoch_shows_in_the_motions_and_is_mended(epoch: float) -> None:
    """The catalogue calls its places those of another year than they are."""
    n = 150
    stars, table, _ = moving(n, np.zeros(n, bool), epoch)
    off, how = tie(stars, reference_of(table, stars.flux))
    assert how.moved and how.years == pytest.approx(epoch - CATALOGUE_YEAR, abs=0.1)
    assert np.abs(off.mean(axis=1)).max() < 0.5 and rms(off) < 0.6, (off.mean(axis=1), rms(off))
    assert f"off by {CATALOGUE_YEAR - epoch:.1f} years" in doubts(how)


def test_a_right_epoch_is_left_alone() -> None:
    stars, table, _ = moving(150, np.zeros(150, bool), CATALOGUE_YEAR)
    _, how = tie(stars, reference_of(table, stars.flux))
    assert not how.moved and how.years == 0.0 and not doubts(how)


def test_errors_that_hold_no_motion_are_doubted() -> None:
    """No motions at all: residuals far above the errors are told with both numbers."""
    stars, table, _ = moving(200, np.zeros(200, bool), CATALOGUE_YEAR)
    table.remove_columns(["pmRA", "pmDE", "Epoch"])
    _, how = tie(stars, reference_of(table, stars.flux))
    assert how.used > 50 and "0.2 mas" in doubts(how) and f"{how.used:.2g} mas" in doubts(how)
