"""What the scoreboard reduces: nights, catalogues, epochs; and the targets of its columns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """One line of the scoreboard.

    options: of the simulator, beside those of the size. catalog: error per axis (mas) of the
    reference catalogue that is made from the truth; None: no catalogue. catalog_kind: what it
    tells, of `catalogues.KINDS`. twin: measured with cosmic rays and without, with rejection and
    without.
    """

    name: str
    instrument: str
    options: dict[str, Any]
    catalog: float | None = None
    twin: bool = False
    catalog_kind: str = "errors"


#: Simulator's options of every night, by size and instrument.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "gsaoi": {"n_std": 0, "bad_wcs": 0},
        "f2": {"probe": "none"},
    },
    "small": {
        "gsaoi": {"n_std": 0, "bad_wcs": 0, "size": 512, "n_flats": 9, "cr_rate": 8.0},
        "f2": {"probe": "none", "size": 1000, "cr_rate": 4.0, "n_science": 7},
    },
}
#: More options of GSAOI fields of few stars, which need more of the sky to be measured on.
SPARSE_FIELD_OPTIONS: dict[str, dict[str, Any]] = {"full": {}, "small": {"size": 768}}
#: More options of a twin night: four reductions, so it may be smaller, with many cosmic rays.
TWIN_OPTIONS: dict[str, dict[str, Any]] = {
    "full": {"cr_rate": 5.0},
    "small": {"size": 384, "n_flats": 5, "cr_rate": 20.0},
}
_THREE_EPOCHS = {"field": "crowded", "nights": 3, "n_science": 6, "n_sky": 4}

#: Skies that slope, and differ from frame to frame and on and off target.
SLOPES: dict[str, Any] = {"sky_gradient": 0.01, "sky_pattern": 0.002, "seeing_drift": 0.1}

CASES = (
    Case("gsaoi-sparse", "gsaoi", {"field": "sparse"}),
    Case("gsaoi-sparse-catalog", "gsaoi", {"field": "sparse"}, catalog=1.0),
    Case("gsaoi-crowded", "gsaoi", {"field": "crowded"}),
    Case("gsaoi-crowded-catalog", "gsaoi", {"field": "crowded"}, catalog=1.0),
    *(
        Case(f"gsaoi-crowded-{kind}", "gsaoi", {"field": "crowded"}, error, catalog_kind=kind)
        for kind, error in (
            ("no-errors", 1.0),
            ("missing-motions", 0.5),
            ("wrong-epoch", 0.5),
        )
    ),
    Case("gsaoi-crowded-pa37", "gsaoi", {"field": "crowded", "pa": 37.0}, catalog=1.0),
    Case("gsaoi-extended", "gsaoi", {"field": "extended"}, catalog=1.0),
    Case("gsaoi-3-epochs", "gsaoi", _THREE_EPOCHS),
    Case("gsaoi-3-epochs-catalog", "gsaoi", _THREE_EPOCHS, catalog=1.0),
    Case("gsaoi-cosmic-rays", "gsaoi", {"field": "crowded", "seed": 2}, twin=True),
    Case("f2-sparse", "f2", {"field": "sparse"}),
    Case("f2-sparse-clouds", "f2", {"field": "sparse", "transparency": 0.05}),
    Case("gsaoi-sky-slopes", "gsaoi", {"field": "sparse"} | SLOPES),
    Case("gsaoi-crowded-sky-slopes", "gsaoi", {"field": "crowded"} | SLOPES),
    Case("gsaoi-extended-sky-slopes", "gsaoi", {"field": "extended"} | SLOPES),
    Case("gsaoi-crowded-no-sky", "gsaoi", {"field": "crowded", "n_sky": 0}),
    Case("f2-sky-slopes", "f2", {"field": "sparse"} | SLOPES),
    Case("f2-sparse-catalog", "f2", {"field": "sparse", "pa": 37.0}, catalog=10.0),
)


def measured_catalog(case: Case) -> float | None:
    """Error (mas) of the catalogue that the case's stack can be measured with; None for none.

    A sparse one takes no distortion out: its stack is measured as one without a catalogue.
    """
    return None if case.catalog_kind == "sparse" else case.catalog


class Target(NamedTuple):
    """What a column should reach: its unit, lowest and highest value, and what it is."""

    unit: str
    low: float
    high: float
    about: str


#: Columns of the scoreboard that have a target, in the order of the table.
TARGETS: dict[str, Target] = {
    "astrometry_mas": Target(
        "mas",
        0.0,
        0.2,
        "rms per axis of bright isolated stars after a linear fit, beyond the photon limit",
    ),
    "tie_ratio": Target("", 0.0, 3.0, "offset from the true sky over catalogue error / sqrt(N)"),
    "flux_position_percent": Target(
        "%", 0.0, 0.2, "peak to peak of a quadratic surface of flux ratios, beyond its noise"
    ),
    "flux_bias_percent": Target("%", -0.1, 0.1, "median flux ratio of bright stars - 1"),
    "flux_pull": Target("", 0.97, 1.03, "robust width of (flux - truth) / error, S/N 5 to 40"),
    "sky_pull": Target("", 0.97, 1.03, "robust width of blank pixels / sqrt(VAR) / CORRPIX"),
    "aperture_pull": Target(
        "", 0.97, 1.03, "robust width of blank aperture sums / sqrt(sum of VAR) / CORRFAC"
    ),
    "cosmic_removed_percent": Target(
        "%", 99.0, 101.0, "charge of cosmic rays that is not in the stack"
    ),
    "star_loss_percent": Target("%", -0.05, 0.05, "flux that rejection takes from stars, mean"),
    "background_ratio": Target(
        "", 0.0, 1.5, "rms of a map of background residuals over what VAR predicts"
    ),
    "block_ratio": Target(
        "", 0.0, 1.3, "rms of blocks of 64 pixels over that of an ideal stack, by one surface"
    ),
    "edge_beyond_noise_e": Target("e-", 0.0, 0.3, "rms of steps at edges of frames, beyond noise"),
    **{
        f"blank{radius}_pull": Target(
            "", 0.0, 1.15, f"rms of blank apertures of {radius} pixels over VAR, no local ring"
        )
        for radius in (6, 12, 15)
    },
    **{
        f"ring{radius}_{depth}_pull": Target(
            "", 0.95, 1.05, f"the same with a local ring, where the depth is {depth}"
        )
        for radius in (6, 12)
        for depth in ("full", "half", "shallow")
    },
    "position_pull": Target(
        "", 0.5, 1.5, "robust width of (OBJCAT - truth) / RA_ERR, DEC_ERR, S/N above 150"
    ),
    "bright_flux_pull": Target("", 0.5, 1.5, "the same of FLUX_PSF, in one unit"),
    "completeness_percent": Target(
        "%", 98.0, 100.0, "isolated stars with S/N above 10 that are in OBJCAT"
    ),
}
#: Highest values of multi-epoch stacks and seeing-limited ones, by case and column.
#: FLAMINGOS-2: a tenth of a per cent of the seeing disc.
EXCEPTIONS = {
    "gsaoi-3-epochs": {"astrometry_mas": 0.3},
    "gsaoi-3-epochs-catalog": {"astrometry_mas": 0.3},
    **{
        name: {"astrometry_mas": 2.0, "edge_beyond_noise_e": 2.0}
        for name in ("f2-sparse", "f2-sparse-clouds", "f2-sparse-catalog", "f2-sky-slopes")
    },
}


def limits(case: str, column: str) -> tuple[float, float]:
    """Lowest and highest value of a column for a case."""
    target = TARGETS[column]
    return target.low, EXCEPTIONS.get(case, {}).get(column, target.high)
