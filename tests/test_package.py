"""The sdist and the wheel made from it work by themselves, away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"gdask": "gdask", "recipes": "gdask/recipes", "cluster": "gdask/cluster"}
LITTER = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "demo")

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")


def run(*command: str | os.PathLike[str], cwd: Path, expect: int = 0) -> str:
    """Run a command that sees neither the checkout nor the user's configuration.

    Returns its standard output.
    """
    hidden = {"PYTHONPATH", "DRAGONSRC", "NUMBA_CACHE_DIR"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {
        "HOME": str(cwd),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == expect, (
        f"{command} gave {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it; give their folder."""
    source, out = tmp_path_factory.mktemp("source") / "gdask", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=LITTER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a fresh environment and give its bin folder.

    What the wheel needs is borrowed from the environment that runs this test.
    """
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            wheel,
        ],
        check=True,
    )
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home
    ).strip()
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(packages, "borrowed.pth").write_text(
        "\n".join(borrowed)
    )  # plain paths: an editable gdask there stays inactive
    return python.parent


@pytest.fixture(scope="module")
def night(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulate a tiny night with the installed package; give the folder with its raw/."""
    folder = tmp_path_factory.mktemp("night")
    run(
        installed / "gdask",
        "simulate",
        "gsaoi",
        ".",
        "--size",
        "384",
        "--n-flats",
        "2",
        "--n-science",
        "3",
        "--n-sky",
        "3",
        "--n-std",
        "1",
        cwd=folder,
    )
    return folder


def sources() -> set[str]:
    """Give every file of the three source folders by its name in the installed package."""
    return {
        str(Path(package, path.relative_to(ROOT / folder)))
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_wheel_holds_all_code_and_data(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == sources()
    assert {Path(name).suffix for name in names} >= {".toml", ".yaml", ".sh", ".typed", ".py"}


def test_sdist_holds_all_code_and_data(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for folder in PACKAGES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert wanted | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_what_is_uploaded_is_as_it_should_be(built: Path) -> None:
    """Metadata are complete, and README.md can be shown by the package index."""
    files = sorted(built.iterdir())
    assert len(files) == 2
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=built)
    assert checked.count("PASSED") == 2


def test_the_version_is_that_of_the_tag(tmp_path: Path) -> None:
    """At a tag, after it, without one, and in the source distribution of a tag."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git")
    source, out = tmp_path / "gdask", tmp_path / "dist"
    shutil.copytree(ROOT, source, ignore=LITTER)
    me = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    version = (sys.executable, "-m", "setuptools_scm")
    run(git, "init", "--quiet", cwd=source)
    run(git, "add", ".", cwd=source)
    run(git, *me, "commit", "--quiet", "-m", "first", cwd=source)
    assert run(*version, cwd=source).startswith("0.2.0.dev")  # no tag: the fallback
    run(git, *me, "tag", "-a", "v7.8.9", "-m", "release", cwd=source)
    assert run(*version, cwd=source).strip() == "7.8.9"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=source)
    names = {path.name for path in out.iterdir()}
    assert names == {"gdask-7.8.9.tar.gz", "gdask-7.8.9-py3-none-any.whl"}
    with tarfile.open(out / "gdask-7.8.9.tar.gz") as archive:
        kept = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "Makefile", "docs/gsaoi.md", "tests/conftest.py"} <= kept
    run(git, *me, "commit", "--quiet", "--allow-empty", "-m", "second", cwd=source)
    assert run(*version, cwd=source).startswith("7.8.10.dev1+g")


def test_packages_listed_are_those_that_exist() -> None:
    """The list in pyproject.toml is explicit: a new folder must be added there."""
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    assert listed == {
        str(Path(name).parent).replace("/", ".") for name in sources() if name.endswith(".py")
    }


def test_everything_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json, gdask, gdask.recipes.gsaoi_image as recipe, gdask.cluster as cluster, "
        "gdask.instruments as facts;"
        "print(json.dumps([gdask.__file__, recipe.__file__, cluster.__file__, facts.__file__, "
        "sorted(cluster.load_profiles())]))"
    )
    *files, profiles = json.loads(run(installed / "python", "-c", code, cwd=tmp_path))
    assert all(Path(file).is_relative_to(installed.parent) for file in files), files
    assert profiles == ["pbs", "processes", "slurm", "ssh", "threads"]


def test_console_scripts(built: Path, installed: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wheel,) = built.glob("*.whl")
    version = wheel.name.split("-")[1]
    assert run(installed / "gdask", "--version", cwd=tmp_path) == f"gdask {version}\n"
    for script in project["scripts"]:
        assert "usage: " in run(installed / script, "--help", cwd=tmp_path), script


def test_commands_on_raw_files(installed: Path, night: Path) -> None:
    flat = "raw/S20170505S0030.fits"
    walked = run(installed / "typewalk", "-d", "raw", "-n", cwd=night)
    assert "S20170505S0030.fits" in walked and "(LAMPON)" in walked
    recipes = run(installed / "showrecipes", flat, cwd=night)
    assert "gdask.recipes.gsaoi_flat" in recipes and "make_processed_flat" in recipes
    assert "def make_processed_flat(run, frames):" in run(
        installed / "showrecipes", flat, "-r", "makeProcessedFlat", cwd=night
    )
    parameters = run(installed / "showpars", "raw/S20170505S0095.fits", "detectSources", cwd=night)
    assert (
        "min_pixels         20" in parameters and "(GSAOI)" in parameters
    )  # a default from the instrument's TOML


def test_recipes_make_a_flat_and_an_image(installed: Path, night: Path) -> None:
    raw = sorted(str(path.relative_to(night)) for path in (night / "raw").glob("S*.fits"))
    run(installed / "caldb", "add", "raw/bpm_20121104_gsaoi_gsaoi_11_full_4amp.fits", cwd=night)
    run(installed / "dataselect", "--tags", "FLAT", *raw, "-o", "flats.list", cwd=night)
    assert (
        run(installed / "reduce", "@flats.list", cwd=night).splitlines()[-1]
        == "S20170505S0030_flat.fits"
    )
    assert "processed_flat" in run(installed / "caldb", "list", cwd=night)
    with fits.open(night / "S20170505S0030_flat.fits", checksum=True) as flat:
        assert "PROCFLAT" in flat[0].header
        assert [hdu.name for hdu in flat[1:13]] == ["SCI", "VAR", "DQ"] * 4
        ratios = [
            flat["SCI", n].data / fits.getdata(night / "truth" / f"flat_{n}.fits", "FLAT")
            for n in (1, 2, 3, 4)
        ]
        good = [flat["DQ", n].data == 0 for n in (1, 2, 3, 4)]
    levels = [np.median(ratio[mask]) for ratio, mask in zip(ratios, good, strict=True)]
    assert min(mask.mean() for mask in good) > 0.9
    assert np.ptp(levels) < 2e-3 * np.mean(levels)  # one normalisation for all arrays
    assert max(np.std(ratio[mask]) for ratio, mask in zip(ratios, good, strict=True)) < 0.01
    raw = sorted(str(path.relative_to(night)) for path in (night / "raw").glob("S*.fits"))
    run(
        installed / "dataselect",
        "--expr",
        "observation_class=='science'",
        *raw,
        "-o",
        "science.list",
        cwd=night,
    )
    parameters = ["skyCorrect:offset_sky=False", "prepare:bad_wcs=fix"]
    assert "S20170505S0095_image.fits" in run(
        installed / "reduce", "@science.list", "-p", *parameters, cwd=night
    )
    with fits.open(night / "S20170505S0095_image.fits", checksum=True) as image:
        assert [hdu.name for hdu in image[1:4]] == ["SCI", "VAR", "DQ"]
        assert (image[0].header["NCOMBINE"], image["SCI"].header["BUNIT"]) == (3, "electron")
        data, dq, wcs = image["SCI"].data, image["DQ"].data, WCS(image["SCI"].header)
    (east, _), (_, north) = wcs.pixel_scale_matrix * 3600  # North up, East left, 0.02 arcsec
    assert np.allclose([east, north], [-0.02, 0.02])
    peak = np.unravel_index(np.argmax(np.where((dq & (65535 - 32)) == 0, data, 0)), data.shape)
    stars = Table.read(night / "truth" / "catalog.ecsv")
    stars = stars[stars["field"] == "target"]
    away = (
        wcs.pixel_to_world(*peak[::-1])
        .separation(SkyCoord(stars["ra"], stars["dec"], unit="deg"))
        .arcsec
    )
    # The brightest pixel without flags is of one of the brightest stars; the very brightest are
    # saturated.
    x, y = (np.rint(v).astype(int) for v in wcs.world_to_pixel_values(stars["ra"], stars["dec"]))
    inside = (x >= 0) & (y >= 0) & (x < data.shape[1]) & (y < data.shape[0])
    seen = np.flatnonzero(inside)[(dq[y[inside], x[inside]] & 16) == 0]
    assert stars["flux"][away < 0.15].max() >= np.sort(stars["flux"][seen])[-5]


@pytest.mark.slow
def test_tutorial_as_it_is_written(installed: Path, tmp_path: Path) -> None:
    """Run the tutorial's commands (docs/gsaoi.md), then docs/dragons.md's script, as written."""
    run(
        installed / "gdask",
        "simulate",
        "gsaoi",
        ".",
        "--size",
        "768",
        "--roi",
        "766",
        "--n-flats",
        "5",
        cwd=tmp_path,
    )
    text = (ROOT / "docs" / "gsaoi.md").read_text().split("## Where gdask differs")[0]
    lines = [
        line[4:]
        for line in text.splitlines()
        if re.match(r"    (typewalk|showd|dataselect|caldb|reduce) [^:]", line)
    ]
    lines = [line for line in lines if not line.startswith("dataselect: ")]
    assert sum(line.startswith("reduce ") for line in lines) == 4
    for line in lines:
        print(line)
        run("sh", "-e", "-c", f'PATH="{installed}:$PATH"; {line}', cwd=tmp_path)
    products = [
        "S20170505S0030_flat.fits",
        "S20170504S0114_image.fits",
        "S20170505S0095_image.fits",
    ]
    first = {name: pixels(tmp_path / name) for name in products}
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dragons.md").read_text(), re.DOTALL)
    assert len(code) == 1
    for name in (*products, "cal_manager.db"):
        (tmp_path / name).unlink()
    for block in code:
        run(installed / "python", "-c", block, cwd=tmp_path)
    assert {
        name: pixels(tmp_path / name) for name in products
    } == first  # the same bytes from Python
    assert (tmp_path / "gsaoi_data_reduction.log").is_file()


def pixels(path: Path) -> list[bytes]:
    """Give the pixels of every image of a file as bytes."""
    with fits.open(path) as hdus:
        return [hdu.data.tobytes() for hdu in hdus if hdu.is_image and hdu.data is not None]
