"""`make_pictures`: of each kind of product, of hostile ones, whole or not at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from conftest import Night
from PIL import Image
from products import noisy, sky_header, write_product

from gdask.io.tables import geometry_table
from gdask.kernels.geometry.projection import Geometry
from gdask.model import DQ, GdaskError
from gdask.plot import charts, measures
from gdask.plot.planes import frame_of, read_planes
from gdask.plot.product import LIST, make_pictures, read_notes, read_pictures
from gdask.plot.raster import MARK_COLOUR

OF_IMAGE = [
    "preview",
    "dq",
    "depth",
    "noise",
    "depth_map",
    "background",
    "fwhm",
    "residuals",
    "frames",
]


def test_pictures_of_a_stack(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    made = make_pictures(image, folder)
    assert [one.key for one in made] == OF_IMAGE and read_notes(folder) == ()
    assert read_pictures(folder) == made
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [LIST, *(one.file for one in made)]
    )
    for one in made:
        with Image.open(folder / one.file) as picture:
            assert picture.size == (one.width, one.height) and not getattr(picture, "text", {})
            has_clear = picture.info.get("transparency") is not None
            assert has_clear == bool(one.overlay_of)
        assert any(letter.isdigit() for letter in one.alt) and one.alt.endswith(".")
    sizes = {one.key: (one.width, one.height) for one in made}
    assert sizes["dq"] == sizes["depth"] == sizes["preview"]
    assert sum((folder / one.file).stat().st_size for one in made) < 2.5e6
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    make_pictures(image, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_pictures_of_other_kinds(flat: Path, night: Night, tmp_path: Path) -> None:
    made = make_pictures(flat, tmp_path / "flat", predecessor=flat)
    assert [one.key for one in made] == ["preview", "dq", "histogram", "ratio"]
    assert "median 1.0000, scatter 0;" in made[-1].alt
    with pytest.raises(GdaskError, match="no product of gdask"):
        make_pictures(night.science[0], tmp_path / "raw")
    raw = make_pictures(night.science[0], tmp_path / "raw", raw=True)
    assert [one.key for one in raw] == ["preview", "histogram"]
    assert raw[0].alt.startswith(f"File {Path(night.science[0]).name} of 4 arrays of 320 x 320")
    assert read_notes(tmp_path / "raw") == ("dq: the file has no DQ",)


def sky_frame(path: Path, side: int) -> Path:
    """Write a sky-subtracted frame of four arrays."""
    planes = np.stack([noisy((side, side))] * 4)
    dq = np.zeros(planes.shape, "u2")
    dq[:, 5, 7] = DQ.BAD_PIXEL
    write_product(
        path, planes, variance=np.full(planes.shape, 25), dq=dq, header=sky_header((9, 9))
    )
    with fits.open(path, mode="update") as hdus:
        for number, hdu in enumerate(hdus[1:]):
            hdu.header["CRPIX1"] += (number // 3 % 2) * 1.05 * side
            hdu.header["CRPIX2"] += (number // 6) * 1.05 * side
        del hdus[0].header["PROCSCI"]
        hdus[0].header["FWHMSTAR"] = 9
    return path


def test_pictures_of_a_frame_are_small_and_need_no_matplotlib(tmp_path: Path) -> None:
    """The job draws all of its frames: what takes longer than to read the pixels is not done."""
    path = sky_frame(tmp_path / "f.fits", 600)
    code = (
        "import sys; from gdask.report.pictures import draw_all; draw_all(sys.argv[1:]);"
        "sys.exit('matplotlib' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    made = read_pictures(tmp_path / "pictures/f")
    assert [one.key for one in made] == ["preview", "dq"]
    assert all(400 < max(one.width, one.height) <= 1000 for one in made)
    assert "4 as bad pixel (orange)" in made[1].alt and read_notes(tmp_path / "pictures/f") == ()


@pytest.mark.slow
def test_pictures_of_a_full_frame_take_a_fraction_of_a_second(tmp_path: Path) -> None:
    """0.2 s of a processor; the job that makes the frame takes 5 s for each."""
    path = sky_frame(tmp_path / "f.fits", 2048)
    make_pictures(path, tmp_path / "p")
    start = time.process_time()
    make_pictures(path, tmp_path / "p")
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(("turn", "flip", "said"), [
    (0, False, "North is up, East is left"),
    (90, False, "North is left, East is down"),
    (-90, False, "North is right, East is up"),
    (0, True, "North is up, East is right"),
    (-35, False, "North is 35 degrees clockwise of up, East is left of it"),
    (35, True, "North is 35 degrees counterclockwise of up, East is right of it"),
])  # fmt: skip
def test_a_preview_says_where_north_and_east_are(
    turn: float, flip: bool, said: str, tmp_path: Path
) -> None:
    header = sky_header((150, 150), turn=turn, flip=flip)
    path = write_product(tmp_path / "p.fits", noisy((150, 150)), header=header)
    made = make_pictures(path, tmp_path / "p")
    assert said in made[0].alt


def test_letters_on_a_small_picture_are_clear(tmp_path: Path) -> None:
    """Drawn without grey they ran into each other, and the N was a blot."""
    from scipy.ndimage import label

    header = sky_header((512, 512), scale=0.2)
    path = write_product(tmp_path / "p.fits", noisy((512, 512)), header=header)
    make_pictures(path, tmp_path / "p")
    picture = np.asarray(Image.open(tmp_path / "p/preview.png").convert("RGB")).astype(int)
    inked = (picture == np.array(MARK_COLOUR)).all(axis=2)
    pieces, count = label(inked, np.ones((3, 3)))
    sizes = sorted(np.bincount(pieces.ravel())[1:])
    assert count == 7, sizes  # N, E, the arrows, the bar, 2, 0 and the mark of arcsec
    assert sizes[4] < 75, sizes  # the N: strokes, no blot


def test_a_mask_is_shown_by_its_bits(tmp_path: Path) -> None:
    dq = np.zeros((50, 40), "u2")
    dq[10, 5] = DQ.BAD_PIXEL
    primary = fits.PrimaryHDU()
    primary.header["PROCBPM"], primary.header["BADFRAC"] = "now", 0.0005
    path = tmp_path / "bpm.fits"
    fits.HDUList([primary, fits.ImageHDU(dq, name="DQ")]).writeto(path)
    (only,) = make_pictures(path, tmp_path / "p")
    assert only.key == "preview" and "1 as bad pixel (orange); 0.05 % of the pixels" in only.alt
    picture = np.asarray(Image.open(tmp_path / "p" / only.file).convert("RGB"))
    assert picture[49 - 10, 5].tolist() == [213, 94, 0] and picture[0, 0].tolist() == [24] * 3


HOSTILE = {
    "nothing but pixels": (np.ones((30, 30)), {}),
    "all NaN": (np.full((30, 30), np.nan), {"variance": np.full((30, 30), np.nan)}),
    "constant": (np.full((64, 64), 5.0), {"variance": np.zeros((64, 64))}),
    "one pixel": (np.ones((1, 1)), {"variance": np.ones((1, 1)), "dq": np.zeros((1, 1))}),
    "one row": (np.ones((1, 900)), {"variance": np.ones((1, 900)), "dq": np.zeros((1, 900))}),
    "infinite": (np.full((30, 30), np.inf), {"variance": np.full((30, 30), np.inf)}),
    "huge": (np.full((30, 30), 3e38), {"variance": np.full((30, 30), 3e38)}),
    "all flagged": (np.ones((30, 30)), {"dq": np.full((30, 30), 0xFFFF)}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("wcs", ["none", "zero", "usual", "spectrum"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_hostile_products_have_a_preview_and_reasons(tmp_path: Path, name: str, wcs: str) -> None:
    data, others = HOSTILE[name]
    header = None if wcs == "none" else sky_header(data.shape)
    if wcs == "zero" and header is not None:
        for keyword in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
            header[keyword] = 0.0
    if wcs == "spectrum" and header is not None:
        header["CTYPE1"], header["CTYPE2"] = "WAVE", "LINEAR"
    path = write_product(tmp_path / "p.fits", data, header=header, **others)
    made = make_pictures(path, tmp_path / "p")
    notes = read_notes(tmp_path / "p")
    assert made[0].key == "preview"
    assert ("North is up" in made[0].alt) == (wcs == "usual")
    for key in ("fwhm", "residuals", "frames"):
        assert any(note.startswith(f"{key}: the product has no") for note in notes), notes
    assert not [note for note in notes if "Error" in note], notes
    assert {one.key for one in made} | {note.split(":")[0] for note in notes} == set(OF_IMAGE)


def test_a_damaged_table_costs_its_graphs_alone(image: Path, tmp_path: Path) -> None:
    with fits.open(image, mode="update") as hdus:
        hdus["FRAMES"].columns.change_name("FRAME", "OTHER")
    made = make_pictures(image, tmp_path / "p")
    assert [one.key for one in made] == [key for key in OF_IMAGE if key != "residuals"]
    (note,) = read_notes(tmp_path / "p")
    assert note.startswith("residuals: ")


def test_without_its_list_a_folder_has_no_pictures(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    assert read_pictures(folder) == ()
    made = make_pictures(image, folder)
    (folder / "mine.txt").write_text("kept")
    write_product(tmp_path / "other.fits", np.ones((20, 20)))
    fewer = make_pictures(tmp_path / "other.fits", folder)
    left = {one.file for one in made} - {one.file for one in fewer}
    assert left and not [name for name in left if (folder / name).exists()]
    assert (folder / "mine.txt").exists()
    for text in ("", "{", "[]", json.dumps({"pictures": []})):
        (folder / LIST).write_text(text)
        assert read_pictures(folder) == ()


# Numbers ---------------------------------------------------------------------------------------


def test_scatter_of_cells_is_never_said_to_be_nought() -> None:
    assert charts.scatter_text(0.0) == "no more than their errors"
    assert charts.scatter_text(0.00123456) == "0.00123 of a pixel's noise"
    assert "not known" in charts.scatter_text(math.nan)


def test_noise_and_background_are_those_of_the_pixels(tmp_path: Path) -> None:
    shape = (256, 256)
    data = noisy(shape, level=0, sigma=3) + 6 * (np.arange(256) // 8 == 0)[None, :]
    path = write_product(tmp_path / "p.fits", data, variance=np.full(shape, 4.0))
    (planes,) = read_planes(frame_of(path), 1)
    assert measures.robust_scatter(measures.pulls(planes)) == pytest.approx(1.5, rel=0.02)
    assert measures.robust_scatter(measures.pulls(planes, 1.5)) == pytest.approx(1.0, rel=0.02)
    found, noise = measures.background_map(planes)
    assert noise == pytest.approx(3, rel=0.05) and found.side == 8
    assert np.median(found.values[:, 0]) == pytest.approx(6, abs=0.3)
    assert measures.unevenness(found, noise) == pytest.approx(6 * math.sqrt(31) / 32 / 3, rel=0.1)


def test_half_of_the_time_is_0_38_mag_less_deep(tmp_path: Path) -> None:
    variance = np.ones((64, 64))
    variance[:, 48:] = 2.0
    path = write_product(tmp_path / "p.fits", noisy((64, 64)), variance=variance)
    (planes,) = read_planes(frame_of(path), 1)
    depth = measures.depth_map(planes).values
    assert depth[0, 0] == 0 and depth[0, -1] == pytest.approx(-1.25 * math.log10(2))


def _residual_tables(dx: np.ndarray, dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict:
    """Give the tables of a frame at (150, -35) whose pixels are 0.1 arcsec, x West and y North."""
    geometry = Geometry(1.0, 1.0, (10.1, -0.1, 0.0), (-10.1, 0.0, 0.1), 150.0, -35.0, 0.0)
    arrays = geometry_table([geometry])
    arrays["NAME"], arrays["ARRAY"] = ["f.fits"], [1]
    n = len(x)
    measured = Table(
        {
            "STAR": np.arange(1, n + 1),
            "FRAME": np.ones(n, int),
            "ARRAY": np.ones(n, int),
            "X": x + 1,
            "Y": y + 1,
            "DX": dx,
            "DY": dy,
            "DX_ERR": np.full(n, 1e-3),
            "DY_ERR": np.full(n, 1e-3),
        }
    )
    frames = Table({"FRAME": [1], "NAME": ["f.fits"]})
    return {"RESIDUALS": measured, "FRAMES": frames, "ASTROM": arrays}


def test_vectors_of_a_known_displacement() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.uniform(0, 200, (2, 4000))
    noise = rng.normal(0, 1e-3, (2, 4000))
    found = measures.residuals_of(_residual_tables(noise[0], noise[1], x, y))
    assert found is not None and found.stars == 4000
    np.testing.assert_allclose(found.xi, 10 - 0.1 * x, atol=1e-4)
    np.testing.assert_allclose(found.eta, -10 + 0.1 * y, atol=1e-4)
    assert measures.residual_cells(found).over_chance == pytest.approx(1, abs=0.15)
    # The West half is moved by 4 mas to the North.
    moved = measures.residuals_of(_residual_tables(noise[0], noise[1] + 4e-3 * (x > 100), x, y))
    assert moved is not None
    cells = measures.residual_cells(moved)
    west = cells.xi < -1
    np.testing.assert_allclose(cells.dy[west], 4e-3, atol=1e-3)
    assert abs(cells.dy[cells.xi > 1].mean()) < 2e-4 and abs(cells.dx.mean()) < 2e-4
    assert cells.over_chance > 3


def test_residuals_of_unknown_frames_have_no_place() -> None:
    tables = _residual_tables(*np.zeros((4, 5)))
    tables["ASTROM"]["NAME"] = ["g.fits"]
    assert measures.residuals_of(tables) is None
    assert measures.residuals_of({}) is None


@pytest.mark.slow
def test_pictures_of_a_large_stack_are_cheap(tmp_path: Path) -> None:
    """4 x 4 thousand pixels: seconds of the processor, and the memory of 1.5 planes of it."""
    import tracemalloc

    shape = (4200, 4200)
    data = noisy(shape)
    dq = np.zeros(shape, "u2")
    path = write_product(
        tmp_path / "p.fits", data, variance=np.full(shape, 25), dq=dq, header=sky_header(shape)
    )
    del data, dq
    make_pictures(path, tmp_path / "p")  # what is loaded once does not count
    start = time.process_time()
    made = make_pictures(path, tmp_path / "p")
    assert time.process_time() - start < 4
    assert sum((tmp_path / "p" / one.file).stat().st_size for one in made) < 2.5e6
    tracemalloc.start()
    make_pictures(path, tmp_path / "p")
    assert tracemalloc.get_traced_memory()[1] < 1.5 * 4200**2 * 4
    tracemalloc.stop()
