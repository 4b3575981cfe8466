"""The catalogue of a stack: known answers, errors of the right size, units that can be read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from astropy.io import fits
from astropy.table import Table
from scipy.spatial import cKDTree

from benchmarks.centroids import CAMERAS, matched, scene
from gdask.headers import Header
from gdask.io.frames import grid_of, grid_text, one_image_coords, small, with_fetched, with_small
from gdask.io.star_tables import CORE_MISMATCH, add_star_columns, solution_tables
from gdask.io.tables import source_tables
from gdask.kernels.astrometry.residuals import RESIDUAL_DTYPE, epoch_means, number_epochs
from gdask.kernels.astrometry.solution import STAR_DTYPE
from gdask.kernels.geometry.grid import Grid, grid_to_sky
from gdask.kernels.geometry.projection import Geometry, tangent_plane, tangent_sky
from gdask.kernels.sources.centroids import APERTURES, PHOTOMETRY, fit_photometry
from gdask.kernels.sources.detection import CATALOG, detect, measure_fwhm
from gdask.types import Frame

IMAGE = "S20170505S0095_image.fits"
CENTRE = (150.0, -30.0)


def robust(pulls: np.ndarray) -> float:
    return float(np.median(np.abs(pulls - np.median(pulls))) / 0.6745)


def night_of(
    stars: int = 400, nights: tuple[int, ...] = (5, 5, 4), seed: int = 0
) -> tuple[list[dict], np.ndarray]:
    """Make the inputs of a stack as the alignment leaves them.

    Nights are 30 days apart; stars move up to 5 mas from one to the next.
    """
    rng = np.random.default_rng(seed)
    table = np.zeros(stars, STAR_DTYPE)
    table["x"], table["y"] = rng.uniform(-40, 40, (2, stars))
    table["ra"], table["dec"] = tangent_sky(table["x"], table["y"], *CENTRE)
    table["n"] = sum(nights)
    motion, inputs = rng.normal(0, 5e-3, (stars, 2)), []
    for night, count in enumerate(nights):
        for frame in range(count):
            rows = np.zeros(stars, RESIDUAL_DTYPE)
            rows["star"], rows["array"], rows["flux"], rows["eflux"] = (
                np.arange(stars),
                np.arange(stars) % 4,
                1e4,
                100.0,
            )
            rows["edx"], rows["edy"] = rng.uniform(3e-4, 3e-3, (2, stars))
            error = np.sqrt(np.stack([rows["edx"], rows["edy"]], axis=1) ** 2 + 5e-4**2)
            rows["dx"], rows["dy"] = (motion * (night - 1) + rng.normal(size=(stars, 2)) * error).T
            wrong = rng.uniform(size=stars) < 0.02
            rows["dx"][wrong] += 0.1
            rows["x"], rows["y"] = rng.uniform(0, 2047, (2, stars))
            inputs.append(
                {
                    "name": f"S{night}{frame}.fits",
                    "geometry": (),
                    "residuals": rows,
                    "mjd": 57880.3 + 30 * night + 0.001 * frame,
                    "shape": (2048, 2048),
                    "stars": table,
                    "centre": CENTRE,
                    "floor_mas": 0.5,
                    "rms_mas": 1.0,
                }
            )
    return inputs, motion


def test_epochs_are_parted_by_nights_whatever_the_order():
    number, mean = number_epochs(np.array([57900.2, 57880.1, 57880.3, 57900.4, 57881.2]))
    assert list(number) == [2, 0, 0, 2, 1] and mean == pytest.approx([57880.2, 57881.2, 57900.3])
    assert len(number_epochs(np.zeros(0))[1]) == 0


@pytest.mark.parametrize("floor", [0.5, 4.0])
def test_positions_by_epoch_show_the_motion_with_errors_that_hold(floor):
    """The solution takes motions for errors, so the errors that it states may be far too large."""
    inputs, motion = night_of()
    for source in inputs:
        source["floor_mas"] = floor
    tables = solution_tables(inputs)
    epochs = tables["EPOCHS"]
    assert len(epochs) > 0.99 * 3 * 400 and list(np.unique(epochs["EPOCH"])) == [1, 2, 3]
    assert sorted(set(np.round(epochs["MJD"], 2))) == [57880.3, 57910.3, 57940.3]
    star = epochs["STAR"] - 1
    x, y = tangent_plane(epochs["RA"], epochs["DEC"], *CENTRE)
    truth = motion[star] * (epochs["EPOCH"] - 2)[:, None]
    stars = inputs[0]["stars"][star]
    pulls = np.concatenate(
        [
            1000 * (x - stars["x"] - truth[:, 0]) / epochs["RA_ERR"],
            1000 * (y - stars["y"] - truth[:, 1]) / epochs["DEC_ERR"],
        ]
    )
    assert abs(robust(pulls) - 1) < 0.1 and (np.abs(pulls) > 6).mean() < 0.01
    assert epochs["N_FRAMES"].max() == 5 and 0.2 < np.median(epochs["RA_ERR"]) < 1.0
    for source in inputs:
        source.update(placed="joint fit", error_mas=3.0)
    wider = solution_tables(inputs)["EPOCHS"]
    np.testing.assert_allclose(
        wider["RA_ERR"], np.hypot(epochs["RA_ERR"], 3.0 / np.sqrt(epochs["N_FRAMES"])), rtol=1e-4
    )


def test_measurements_without_a_star_or_an_error_do_not_count():
    rows = np.zeros(5, RESIDUAL_DTYPE)
    rows["star"], rows["edx"], rows["edy"] = [3, 3, -1, 3, 4], 1e-3, 1e-3
    rows["dx"], rows["edx"][3] = [0.001, 0.003, 0.5, 0.7, np.nan], np.nan
    out = epoch_means(rows, np.zeros(5, int), 0.0)
    assert len(out) == 1 and out["star"][0] == 3 and out["n"][0] == 2
    assert out["dx"][0] == pytest.approx(0.002) and out["edx"][0] == pytest.approx(
        1e-3 / np.sqrt(2)
    )
    assert len(epoch_means(rows[:0], np.zeros(0, int), 0.0)) == 0


def test_residuals_are_small_rows_and_frames_are_named_once():
    inputs, _ = night_of(stars=50)
    tables = solution_tables(inputs)
    rows, frames = tables["RESIDUALS"], tables["FRAMES"]
    assert len(rows) == 14 * 50 and rows.dtype.itemsize <= 50 and len(frames) == 14
    assert list(frames["NAME"][:2]) == ["S00.fits", "S01.fits"] and list(
        np.unique(frames["EPOCH"])
    ) == [1, 2, 3]
    third = rows[rows["FRAME"] == 3]
    assert third["DX"][7] == inputs[2]["residuals"]["dx"][7] and third["X"][7] == pytest.approx(
        inputs[2]["residuals"]["x"][7] + 1
    )
    assert set(third["MJD"]) == {inputs[2]["mjd"]} and set(rows["ARRAY"]) == {1, 2, 3, 4}
    assert solution_tables([{"name": "S.fits", "geometry": ()}]) == {}


def stack_of(stars: np.ndarray, factor: float | None) -> Frame:
    """Make a stack of two frames, of 100 x 100 pixels at position angle 90 degrees.

    The second frame lies on its left half.
    """
    grid = Grid(*CENTRE, 90.0, 0.1, 49.5, 49.5, (100, 100))
    whole = Geometry(1, 1, (-5.05, 0.1, 0.0), (-5.05, 0.0, 0.1), *CENTRE, 0.0)
    half = whole._replace(distortion_y=(-10.05, 0.0, 0.1))
    inputs, _ = night_of(stars=3, nights=(2,))
    for source, geometry in zip(inputs, (whole, half), strict=True):
        source.update(geometry=(geometry,), shape=(100, 100))
    inputs[0]["stars"]["ra"], inputs[0]["stars"]["dec"] = grid_to_sky(
        grid, [20.0, 80.0, 50.3], [30.0, 60.0, 50.0]
    )
    header = Header.from_astropy(fits.Header({"CORRFAC": factor}) if factor else fits.Header())
    catalog = np.zeros(len(stars), CATALOG)
    catalog["FLUX_AUTO"], catalog["FLUXERR_AUTO"] = 1e4, 100.0
    frame = xr.Dataset(
        coords=one_image_coords((100, 100), header),
        attrs={
            "name": IMAGE,
            "phu": Header.from_astropy(fits.Header({"EXPTIME": 10.0})).text,
            "grid": grid_text(grid),
        },
    )
    frame = with_fetched(frame, {"objcat": (catalog,), "stars": (stars,)})
    return with_small(frame, inputs=tuple(inputs))


def test_columns_of_a_stack_have_known_answers():
    stars = np.zeros(3, PHOTOMETRY)
    stars["x"], stars["y"], stars["ex"], stars["ey"], stars["fwhm"] = (
        [20, 80, 50],
        [30, 60, 5],
        0.01,
        0.03,
        4.0,
    )
    stars["flux"], stars["eflux"], stars["aper"], stars["eaper"] = (
        [1e4, 1e5, -5.0],
        100.0,
        5e3,
        50.0,
    )
    plain, wide = (source_tables(stack_of(stars, factor))["OBJCAT"][0] for factor in (None, 1.5))
    frame = stack_of(stars, 1.5)
    assert wide["XPSF_IMAGE"][0] == 21 and wide["MAG_PSF"][0] == pytest.approx(-2.5 * np.log10(1e3))
    assert (
        np.isnan(wide["MAG_PSF"][2])
        and wide["MAG_AUTO"][0] == pytest.approx(-7.5)
        and str(wide["MAG_AUTO"].unit) == "mag"
    )
    np.testing.assert_allclose(wide["FLUXERR_PSF"], 1.5 * plain["FLUXERR_PSF"])
    np.testing.assert_allclose(wide["FLUXERR_APER"], 75.0)
    np.testing.assert_allclose(wide["FLUXERR_AUTO"], 150.0)
    assert wide["MAGERR_PSF"][0] == pytest.approx(1.0857 * 0.015, rel=1e-3)
    np.testing.assert_allclose(
        (wide["RA"], wide["DEC"]), grid_to_sky(grid_of(frame), stars["x"], stars["y"])
    )
    seen = sorted(int(n) for n in wide["N_FRAMES"])
    assert seen == [1, 1, 2] or seen == [1, 2, 2]
    # +y is East at this angle, so the error along y is that of RA; the alignment adds 0.5 mas over
    # sqrt(frames).
    floor = 0.5 / np.sqrt(wide["N_FRAMES"][0])
    assert plain["RA_ERR"][0] == pytest.approx(np.hypot(1000 * 0.1 * 0.03, floor), rel=1e-3)
    assert plain["DEC_ERR"][0] == pytest.approx(np.hypot(1000 * 0.1 * 0.01, floor), rel=1e-3)
    for source in small(frame, "inputs"):
        source.update(placed="joint fit", error_mas=0.4)
    with_terms = source_tables(frame)["OBJCAT"][0]
    assert with_terms["DEC_ERR"][0] == pytest.approx(
        np.hypot(1000 * 0.1 * 0.01 * 1.5, np.hypot(0.5, 0.4) / np.sqrt(wide["N_FRAMES"][0])),
        rel=1e-3,
    )
    assert list(wide["STAR"]) == [1, 2, 0]
    assert wide.meta["APER2"][0] == pytest.approx(APERTURES[1] * 0.4)


def test_fluxes_do_not_depend_on_which_frames_cover_a_star():
    """The core of the first frame's stars has 4 % more of their light, that of the second 4 % less.

    The star image that is fitted is that of both; a star under one of them came out 4 % off.
    """
    stars = np.zeros(2, PHOTOMETRY)
    stars["x"], stars["y"], stars["fwhm"], stars["eflux"] = [20, 80], [30, 60], 4.0, 100.0
    frame = stack_of(stars, None)
    covered = source_tables(frame)["OBJCAT"][0]["N_FRAMES"]
    alone = int(np.argmin(covered))
    assert sorted(covered) == [1, 2]
    stars["flux"] = np.where(np.arange(2) == alone, 1.04e5, 1e5)
    frame = stack_of(stars, None)
    before = source_tables(frame)["OBJCAT"][0]
    for source, share in zip(small(frame, "inputs"), (1.04, 0.96), strict=True):
        source.update(core_share=share, core_error=0.004)
    after = source_tables(frame)["OBJCAT"][0]
    assert before["FLUX_PSF"][alone] == pytest.approx(1.04e5)
    np.testing.assert_allclose(after["FLUX_PSF"], 1e5, rtol=1e-6)
    left = np.hypot(0.004, CORE_MISMATCH * 0.08 / np.sqrt(2)) * np.sqrt(1 - 1 / 2)
    assert after["FLUXERR_PSF"][alone] == pytest.approx(np.hypot(100 / 1.04, left * 1e5), rel=1e-4)
    assert after["FLUXERR_PSF"][1 - alone] == pytest.approx(100.0)


def test_a_stack_of_one_frame_has_a_catalogue_too():
    stars = np.zeros(1, PHOTOMETRY)
    stars["x"], stars["y"], stars["flux"], stars["fwhm"] = 20.0, 30.0, 1e4, 4.0
    frame = with_small(stack_of(stars, None), inputs=({"name": "S.fits", "geometry": ()},))
    tables = source_tables(frame)
    assert (
        set(tables) == {"OBJCAT"}
        and list(tables["OBJCAT"][0]["N_FRAMES"]) == [1]
        and list(tables["OBJCAT"][0]["STAR"]) == [0]
    )
    assert len(add_star_columns(Table(np.zeros(1, CATALOG)), stars, frame).colnames) > len(
        CATALOG.names
    )


def test_errors_of_fluxes_and_positions_match_their_scatter():
    camera = CAMERAS["f2"]
    s = scene(camera, "sparse", "varying", 512, 8)
    dq = np.zeros(s.data.shape, "u2")
    found, _ = detect(s.data, s.variance, dq, threshold=2.0, min_pixels=8, mesh=64)
    out = fit_photometry(
        s.data, s.variance, dq, found["X_IMAGE"] - 1, found["Y_IMAGE"] - 1, fwhm=measure_fwhm(found)
    )
    mine = matched(s, out, camera.fwhm)
    use = (mine >= 0) & (np.minimum(s.x, s.y) > 20) & (np.maximum(s.x, s.y) < 490) & (s.snr < 2000)
    got, truth = out[mine[use]], s.flux[use]
    sampling = 4 / np.sqrt(2 * use.sum())
    for value, error in (("flux", "eflux"), ("x", "ex"), ("y", "ey")):
        zero = np.average(
            got["flux"] / truth, weights=(truth / got["eflux"]) ** 2
        )  # the star image's norm, common to all
        true = zero * truth if value == "flux" else getattr(s, value)[use]
        pull = (got[value] - true) / got[error]
        assert abs(np.sqrt(np.mean(pull**2)) - 1) < 0.1 + sampling, value
    assert abs(zero - 1) < 0.01
    for number, radius in enumerate(APERTURES):
        share = np.median(got["aper"][:, number][s.snr[use] == 1000] / truth[s.snr[use] == 1000])
        faint = (
            s.snr[use] <= 50
        )  # the image changes over the array, and with it the light within a circle
        pull = (got["aper"][:, number] / share - truth)[faint] / got["eaper"][faint, number] * share
        assert abs(robust(pull) - 1) < 0.1 + 1.5 * sampling, radius
    assert (np.diff(got["eaper"], axis=1) > 0).all() and got["lost"].max() < 1e-6


def test_tables_of_a_product_are_read_with_units_and_descriptions(reduced: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = {
            name: Table.read(reduced / IMAGE, hdu=name)
            for name in ("OBJCAT", "RESIDUALS", "FRAMES", "EPOCHS")
        }
    with fits.open(reduced / IMAGE) as hdus:
        for name, table in tables.items():
            missing = [
                c for n, c in enumerate(table.colnames, 1) if f"TCOMM{n}" not in hdus[name].header
            ]
            assert missing == [], name
    objects, rows, frames, epochs = tables.values()
    assert (
        str(objects["RA"].unit) == "deg"
        and str(objects["RA_ERR"].unit) == "mas"
        and str(rows["DX"].unit) == "arcsec"
    )
    assert objects["FLUX_APER"].shape == (len(objects), len(APERTURES))
    assert len(frames) == 5 and objects["N_FRAMES"].max() == 5 and objects["N_FRAMES"].min() >= 1
    clean = objects[((objects["FLAGS_PSF"] & ~64) == 0) & (objects["STAR"] > 0)]
    place = {star: k for k, star in enumerate(epochs["STAR"])}
    both = [(row, epochs[place[row["STAR"]]]) for row in clean if row["STAR"] in place]
    apart = [
        3.6e6 * np.hypot((a["RA"] - b["RA"]) * np.cos(np.radians(a["DEC"])), a["DEC"] - b["DEC"])
        for a, b in both
    ]
    assert len(both) > 20 and np.median(apart) < 3.0
    assert set(rows["STAR"]) >= set(epochs["STAR"]) and (np.abs(frames["MJD"] - 57878.1) < 1).all()
    bright = clean[clean["FLUX_PSF"] > 50 * clean["FLUXERR_PSF"]]
    assert (
        np.abs(
            bright["FLUX_APER"][:, 2]
            / bright["FLUX_PSF"]
            / np.median(bright["FLUX_APER"][:, 2] / bright["FLUX_PSF"])
            - 1
        ).max()
        < 0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("distorted", [False, True])
def test_pulls_of_a_catalogue_against_the_truth_of_its_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distorted: bool
):
    """All scatter is noise, as large as the errors, where frames have no distortion of their own.

    The mean of their distortions, of which a night is one draw, is in the errors, too.
    """
    from gdask import Reduce, cal_service
    from gdask.simulate import simulate_gsaoi

    simulate_gsaoi(
        tmp_path,
        size=768,
        field="crowded",
        **({} if distorted else {"warp": 0.0}),
        bad_wcs=0,
        n_flats=6,
        n_darks=0,
        n_science=6,
        n_sky=4,
        n_std=0,
    )
    (tmp_path / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    monkeypatch.chdir(tmp_path)
    frames = Table.read("truth/frames.ecsv")
    database = cal_service.set_local_database()
    database.init()
    database.add_cal(str(next(tmp_path.glob("raw/bpm*"))))
    for kinds in (("flat_on", "flat_off"), ("science", "sky")):
        reduction = Reduce()
        reduction.files.extend(
            sorted(f"raw/{row['file']}" for row in frames if row["kind"] in kinds)
        )
        if "science" in kinds:
            reduction.uparms["skyCorrect:offset_sky"] = False
        reduction.runr()
    positions, fluxes = pulls_against_truth(
        Table.read(IMAGE, hdu="OBJCAT"),
        Table.read("truth/catalog.ecsv"),
        order=1 if distorted else 2,
    )
    if distorted:
        assert 0.3 < robust(positions) < 1.7
    else:
        assert abs(robust(positions) - 1) < 0.1 + 4 / np.sqrt(2 * len(positions))
    assert abs(robust(fluxes) - 1) < 0.1 + 4 / np.sqrt(2 * len(fluxes))


def pulls_against_truth(
    objects: Table, catalog: Table, order: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Give the pulls of positions and fluxes of clean isolated stars.

    They are those of RA and Dec after one linear or quadratic transform (order), and of FLUX_PSF
    after one zero point.
    """
    catalog = catalog[(catalog["field"] == "target") & (catalog["kind"] == "star")]
    good = (
        ((objects["FLAGS_PSF"] & ~64) == 0)
        & (objects["N_FRAMES"] >= 4)
        & (objects["FLUX_PSF"] > 10 * objects["FLUXERR_PSF"])
    )
    objects = objects[np.asarray(good)]
    centre = float(np.median(catalog["ra"])), float(np.median(catalog["dec"]))
    true, mine = (
        1000 * np.column_stack(tangent_plane(a, d, *centre))
        for a, d in ((catalog["ra"], catalog["dec"]), (objects["RA"], objects["DEC"]))
    )
    flux, tree = np.asarray(catalog["flux"], float), cKDTree(true)
    brightest = np.argsort(-np.asarray(objects["FLUX_PSF"]))[:30]
    # Of the whole catalogue the brightest lie outside the image, and few pairs agree by chance.
    inside = ((true > mine.min(axis=0) - 400) & (true < mine.max(axis=0) + 400)).all(axis=1)
    known = np.argsort(-np.where(inside, flux, 0.0))[:300]
    shifts = (true[known][:, None] - mine[brightest][None]).reshape(-1, 2)
    shifts = shifts[np.hypot(*shifts.T) < 400]
    agreeing = [(np.hypot(*(shifts - v).T) < 15).sum() for v in shifts]
    assert max(agreeing) > 10
    shift = shifts[int(np.argmax(agreeing))]
    for radius in (40.0, 20.0):
        distance, index = tree.query(mine + shift)
        near = distance < radius
        shift = np.median(true[index[near]] - mine[near], axis=0)
    # Nothing tells the turn of the field without a catalogue: headers are 0.03 degrees off, 25 mas
    # at the rim, so bright stars turn it before all are matched.
    mine = mine + shift
    bright = np.argsort(-np.asarray(objects["FLUX_PSF"]))[:100]
    distance, index = tree.query(mine[bright])
    near = distance < 40.0
    assert near.sum() > 30
    linear = np.column_stack([np.ones(near.sum()), mine[bright][near]])
    turn = np.linalg.lstsq(linear, true[index[near]] - mine[bright][near], rcond=None)[0]
    mine = mine + np.column_stack([np.ones(len(mine)), mine]) @ turn
    distance, index = tree.query(mine)
    around = np.array([flux[tree.query_ball_point(true[i], 120.0)].sum() for i in index])
    use = (distance < 15) & (around < 1.03 * flux[index])
    x, y = (mine[use] / 1e4).T
    terms, off = (
        np.column_stack([np.ones(len(x)), x, y, x * x, x * y, y * y][: 6 if order == 2 else 3]),
        (true[index] - mine)[use],
    )
    pulls = []
    for axis, name in enumerate(("RA_ERR", "DEC_ERR")):
        error, keep = np.asarray(objects[name], float)[use], np.ones(len(x), bool)
        for _ in range(4):
            fit = np.linalg.lstsq(
                terms[keep] / error[keep, None], off[keep, axis] / error[keep], rcond=None
            )[0]
            pull = (off[:, axis] - terms @ fit) / error
            keep = np.abs(pull) < 5
        pulls.append(pull * np.sqrt(len(x) / (len(x) - terms.shape[1])))
    ratio, error = (
        np.asarray(objects[n], float)[use] / flux[index[use]] for n in ("FLUX_PSF", "FLUXERR_PSF")
    )
    zero = np.average(ratio, weights=1 / error**2)
    zero = np.median(ratio[np.abs(ratio - zero) < 5 * error]) if len(ratio) else zero
    return np.concatenate(pulls), (ratio - zero) / error
