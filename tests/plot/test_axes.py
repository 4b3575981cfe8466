"""`gdask.plot` on matplotlib axes, and what a notebook displays."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import Night
from products import noisy, sky_header, write_product

import gdask
from gdask import plot
from gdask.model import DQ, GdaskError


def test_the_image_has_the_skys_coordinates(tmp_path: Path) -> None:
    shape = (120, 160)
    data = noisy(shape)
    data[100, 30] = 5000
    header = sky_header(shape, turn=20)
    path = write_product(tmp_path / "p.fits", data, header=header)
    for pixels in (1000, 40):
        axes = plot.image(path, pixels=pixels)
        (shown,) = axes.images
        step = -(-160 // pixels)
        row, column = np.unravel_index(np.nanargmax(shown.get_array()), shown.get_array().shape)
        assert (row, column) == (100 // step, 30 // step)
        assert shown.get_extent() == [-0.5, 159.5, -0.5, 119.5]
        (system,) = gdask.wcs(gdask.open(path))
        assert np.allclose(
            axes.wcs.pixel_to_world_values(30, 100), system.pixel_to_world_values(30, 100)
        )
        axes.figure.canvas.draw()


def test_each_function_draws(image: Path, flat: Path, night: Night) -> None:
    frame = gdask.open(image)
    axes = plot.image(frame, grid=True)
    assert plot.dq(frame, axes) is axes and plot.catalog(frame, axes) is axes
    table = gdask.tables(frame)["OBJCAT"][0]
    offsets = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(offsets[:, 0], table["X_IMAGE"] - 1)
    drawn = [plot.depth(frame), plot.background(frame), plot.noise(image), plot.fwhm(image)]
    drawn += [plot.residuals(image), *plot.frames(image), plot.arrays(night.science[0])]
    drawn += [plot.image(flat, array=3), plot.arrays(flat, on_sky=False, flags=True)]
    for one in drawn:
        one.figure.canvas.draw()
    assert "matplotlib.pyplot" not in sys.modules or not _pyplot_figures()


def _pyplot_figures() -> list[int]:
    return sys.modules["matplotlib.pyplot"].get_fignums()


def test_flags_are_counted_in_the_legend(tmp_path: Path) -> None:
    dq = np.zeros((300, 300), "u2")
    dq[17, 250] = DQ.SATURATED
    path = write_product(tmp_path / "p.fits", noisy((300, 300)), dq=dq)
    axes = plot.dq(path, pixels=30)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["saturated: 1"]
    (rows, columns) = np.nonzero(axes.images[0].get_array()[..., 3])
    assert (rows.tolist(), columns.tolist()) == ([1], [25])


def test_what_is_missing_is_told(night: Night, tmp_path: Path) -> None:
    raw = night.science[0]
    path = write_product(tmp_path / "p.fits", noisy((30, 30)))
    for function, wrong in (
        (plot.dq, "has no DQ"),
        (plot.depth, "no VAR"),
        (plot.noise, "no empty pixel"),
        (plot.residuals, "no table RESIDUALS, FRAMES, ASTROM"),
        (plot.frames, "no table FRAMES"),
        (plot.fwhm, "no table OBJCAT"),
    ):
        with pytest.raises(GdaskError, match=wrong):
            function(raw)
    with pytest.raises(GdaskError, match=r"no array 5; it has 1 to 4"):
        plot.image(raw, array=5)
    with pytest.raises(GdaskError, match="no WCS"):
        plot.catalog(path, plot.image(path), {"RAJ2000": [1.0], "DEJ2000": [1.0]})


def test_a_frame_is_read_in_strips_or_computed_once(image: Path) -> None:
    """The same picture of the file, of a Frame, of xarray's, of one that is computed."""
    opened, changed = gdask.open(image), gdask.open(image)
    changed = changed.assign(data=changed.data + 0)
    with xr.open_dataset(image, engine="gdask") as lazily:
        shown = [
            np.asarray(plot.image(one, pixels=100).images[0].get_array())
            for one in (image, opened, changed, lazily)
        ]
    for other in shown[1:]:
        np.testing.assert_array_equal(shown[0], other)


def test_show_tells_facts_and_computes_nothing(image: Path, no_compute: None) -> None:
    frame = gdask.open(image)
    page = gdask.show(frame)._repr_html_()
    assert re.search(r"<img alt='[^']+' src='data:image/png;base64,[A-Za-z0-9+/=]+'>", page)
    y, x = frame.sizes["y"], frame.sizes["x"]
    assert f"1 x {y} x {x}" in page and f"chunks of 1 x {y} x {x}" in page and "fwhm" in page
    assert "file: " in repr(gdask.show(image))
    later = frame.assign(data=frame.data + 0)
    assert "still to be computed" in gdask.show(later)._repr_html_()


def test_names_are_no_markup(tmp_path: Path) -> None:
    path = write_product(tmp_path / "a<b>&'.fits", noisy((10, 10)))
    page = gdask.show(path)._repr_html_()
    assert "<b>" not in page and html.escape("a<b>&'.fits", quote=True) in page


def test_importing_plot_loads_no_matplotlib() -> None:
    program = "import sys, gdask; gdask.plot; print({'matplotlib', 'dask'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_notebook_shows_frames(image: Path, tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        f"import gdask\nframe = gdask.open({str(image)!r})\ngdask.show(frame)",
        "%load_ext gdask.plot.notebook\nframe",
        "import xarray\nxarray.Dataset({'a': 1})",
        "%matplotlib inline\ngdask.plot.image(frame).figure",
        "%unload_ext gdask.plot.notebook\nframe",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    pages = [
        "".join(out.data.get("text/html", "") for out in cell.outputs if "data" in out)
        for cell in notebook.cells
    ]
    assert [page.count("data:image/png;base64") for page in pages] == [1, 1, 0, 0, 0]
    assert "xarray" in pages[2] and "xarray" in pages[4]
    assert any("image/png" in out.data for out in notebook.cells[3].outputs)
