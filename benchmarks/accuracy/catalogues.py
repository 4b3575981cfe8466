"""Reference catalogues made from the truth, as users have them.

A catalogue may have errors or none, motions of all its stars, of some or of none, an epoch that is
wrong, or few stars with large errors. True places are those at the night's own date, so a motion
takes a star back to where the catalogue's epoch had it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from astropy.table import Table

from gdask.kernels.geometry.projection import Floats

#: Motions of the stars (mas / yr): of all in the mean (East, North), and their spread per axis.
MEAN_MOTION, MOTION_SPREAD = (-6.0, 3.0), 4.0
#: The year of the catalogues that have motions, and the one that a wrong epoch names.
EPOCH, WRONG_EPOCH = 2000.0, 2016.0
#: Stars of a sparse catalogue.
SPARSE_STARS = 25


class Kind(NamedTuple):
    """What a catalogue tells. missing: share of the stars without a motion, None: no motions."""

    errors: bool = True
    missing: float | None = None
    epoch: float = EPOCH
    sparse: bool = False


#: Kinds of catalogues by name.
KINDS = {
    "errors": Kind(),
    "no-errors": Kind(errors=False),
    "motions": Kind(missing=0.0),
    "missing-motions": Kind(missing=0.5),
    "wrong-epoch": Kind(missing=0.0, epoch=WRONG_EPOCH),
    "sparse": Kind(errors=False, sparse=True),
}


def catalogue_of(stars: Table, kind: str, error_mas: float, year: float, seed: int) -> Table:
    """A catalogue of true stars (columns ra, dec, mag; brightest first) with Gaussian errors.

    error_mas: per axis. year: of the frames. The places without errors are true in that year once
    the motions are taken into account.
    """
    chosen, rng = KINDS[kind], np.random.default_rng(seed)
    stars = stars[:SPARSE_STARS] if chosen.sparse else stars
    errors = rng.normal(0.0, error_mas, (2, len(stars)))
    columns: dict[str, Floats | np.ndarray] = {}
    if chosen.missing is not None:
        motion = rng.normal(0.0, MOTION_SPREAD, (2, len(stars))) + np.array([MEAN_MOTION]).T
        errors = errors - motion * (year - EPOCH)
        without = rng.uniform(size=len(stars)) < chosen.missing
        columns = {
            "pmRA": np.where(without, np.nan, motion[0]),
            "pmDE": np.where(without, np.nan, motion[1]),
            "Epoch": np.full(len(stars), chosen.epoch),
        }
    if chosen.errors:
        columns |= {name: np.full(len(stars), error_mas) for name in ("e_RA", "e_DE")}
    cosine = np.cos(np.radians(np.asarray(stars["dec"])))
    places = {
        "RAJ2000": np.asarray(stars["ra"]) + errors[0] / 3.6e6 / cosine,
        "DEJ2000": np.asarray(stars["dec"]) + errors[1] / 3.6e6,
    }
    return Table(places | {"mag": np.asarray(stars["mag"])} | columns)
