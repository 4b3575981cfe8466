"""Installing: what a release consists of, fresh environments, lowest versions, no network.

What needs a package index or minutes is in the slow set.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ROOT / "docs" / "containers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LITTER = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "demo")
#: What pip says where no index can be reached.
NO_NETWORK = r"Failed to establish a new connection|name resolution|Connection refused|Max retries"
#: A night of a few seconds.
NIGHT = ["simulate", "gsaoi", ".", "--size", "384", "--n-flats", "2", "--n-science", "3"]

pytestmark = pytest.mark.skipif(not CONTAINERS.is_dir(), reason="not in a checkout")


# Files of a release ----------------------------------------------------------------------------


def test_the_citation_file_has_what_its_format_asks_for() -> None:
    """By the schema of version 1.2.0: needed keys, no others, kinds of values."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(found)
    texts = {"cff-version", "message", "title", "type", "license", "abstract", "version"}
    known = texts | {"authors", "keywords", "date-released", "doi", "repository-code", "url"}
    assert set(found) <= known
    assert all(isinstance(found[key], str) and found[key] for key in texts & set(found))
    assert found["type"] in ("software", "dataset") and found["license"] == PROJECT["license"]
    people = {"given-names", "family-names", "orcid", "affiliation", "email"}
    assert found["authors"]
    for author in found["authors"]:
        assert set(author) <= people or set(author) <= {"name", "website", "email"}, author
    assert ("version" in found) == ("date-released" in found)
    assert "The gdask developers" in [author.get("name") for author in found["authors"]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["type"] in ("input", "textarea", "dropdown") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)


def test_the_conda_recipe_asks_for_what_the_package_does() -> None:
    text = (CONTAINERS / "meta.yaml").read_text()
    filled = jinja2.Template(text).render(environ={}, PYTHON="python")
    recipe = yaml.safe_load(filled)
    names = {"dask-core": "dask", "astropy-base": "astropy", "matplotlib-base": "matplotlib"}
    bounds = dict(line.split(" >=") for line in recipe["requirements"]["run"])
    python = bounds.pop("python")
    assert f">={python}" == PROJECT["requires-python"]
    assert {names.get(name, name): bound for name, bound in bounds.items()} == lowest()
    commands = dict(line.split(" = ") for line in recipe["build"]["entry_points"])
    assert commands == PROJECT["scripts"]
    assert (CONTAINERS / recipe["source"]["path"] / "pyproject.toml").is_file()


def lowest() -> dict[str, str]:
    """Give the lowest version of each dependency, by its name in small letters."""
    pairs = (requirement.split(">=") for requirement in PROJECT["dependencies"])
    return {name.lower(): bound for name, bound in pairs}


# Containers ------------------------------------------------------------------------------------


def docker_steps() -> list[tuple[str, str]]:
    """Give the instructions of the Dockerfile: (word, rest)."""
    text = re.sub(r"\\\n", "", (CONTAINERS / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def apptainer_sections() -> dict[str, list[str]]:
    """Give the lines of each section of the Apptainer definition; those before the first as ''."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in (CONTAINERS / "gdask.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].split()[0]
            sections[name] = []
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def test_both_containers_do_the_same() -> None:
    steps, sections = docker_steps(), apptainer_sections()
    assert {word for word, _ in steps} <= {"FROM", "ARG", "COPY", "RUN", "ENV", "WORKDIR", "CMD"}
    (base,) = [rest for word, rest in steps if word == "FROM"]
    head = dict(line.split(": ") for line in sections[""])
    assert head == {"Bootstrap": "docker", "From": base}
    assert re.fullmatch(r"python:3\.1[1-4]-slim", base)
    post = [line.replace("{{ VERSION }}", "$VERSION") for line in sections["post"]]
    assert [rest for word, rest in steps if word == "RUN"] == post
    assert [rest for word, rest in steps if word == "ARG"] == sections["arguments"]
    assert [f"export {rest}" for word, rest in steps if word == "ENV"] == sections["environment"]
    copied = [rest for word, rest in steps if word == "COPY"]
    assert copied == sections["files"]
    assert all((ROOT / line.split()[0]).exists() for line in copied)
    fetching = r"\b(curl|wget|apt|apt-get|conda|git clone)\b|https?://"
    assert not re.search(fetching, " ".join(sections["post"]))  # packages of PyPI, nothing else


def test_scripts_of_containers_are_scripts() -> None:
    scripts = [(CONTAINERS / "demo.sh").read_text()]
    scripts += ["\n".join(apptainer_sections()[name]) for name in ("post", "runscript", "test")]
    for script in scripts:
        done = subprocess.run(
            ["sh", "-n"], input=script, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


# Fresh environments ----------------------------------------------------------------------------


def run(*words: str | os.PathLike[str], cwd: Path, **variables: str) -> str:
    """Run a command without the checkout and the user's configuration; give what it prints."""
    hidden = {"PYTHONPATH", "DRAGONSRC", "NUMBA_CACHE_DIR", "VIRTUAL_ENV"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(cwd)}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    said = done.stdout + done.stderr
    if done.returncode and "pip" in map(str, words) and re.search(NO_NETWORK, said):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, f"{words} gave {done.returncode}\n{said[-4000:]}"
    return done.stdout


def interpreter(version: str) -> str:
    """Give an interpreter of this version that can make environments, or skip."""
    places = [
        *Path.home().glob(".pyenv/versions/*/bin"),
        *map(Path, ("/usr/bin", "/usr/local/bin")),
    ]
    found = shutil.which(f"python{version}")
    names = [found] if found else []
    names += [str(place / f"python{version}") for place in places]
    check = f"import sys, venv, ensurepip; sys.exit('{version}' != '%d.%d' % sys.version_info[:2])"
    for name in names:
        if os.path.exists(name):
            done = subprocess.run([name, "-c", check], capture_output=True, check=False)
            if done.returncode == 0:
                return name
    pytest.skip(f"no Python {version} with venv on this machine")


def environment(python: str, folder: Path) -> Path:
    """Make a virtual environment; give its bin folder."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout, without what is not in a release."""
    folder = tmp_path_factory.mktemp("source") / "gdask"
    shutil.copytree(ROOT, folder, ignore=LITTER)
    return folder


def reduce_a_night(bin_folder: Path, folder: Path) -> None:
    """Simulate a small night and make its flat with the commands of an environment."""
    folder.mkdir(exist_ok=True)
    assert run(bin_folder / "gdask", "--version", cwd=folder).startswith("gdask 0.")
    run(bin_folder / "gdask", *NIGHT, cwd=folder)
    raw = sorted(str(path.relative_to(folder)) for path in (folder / "raw").glob("S*.fits"))
    run(bin_folder / "dataselect", "--tags", "FLAT", *raw, "-o", "flats.list", cwd=folder)
    run(bin_folder / "reduce", "@flats.list", cwd=folder)
    told = run(bin_folder / "gdask", "verify", "S20170505S0030_flat.fits", cwd=folder)
    assert ": well (" in told


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_a_fresh_environment(version: str, source: Path, tmp_path: Path) -> None:
    """Install from the source distribution's folder with all dependencies, and reduce."""
    place = environment(interpreter(version), tmp_path / "venv")
    run(place / "python", "-m", "pip", "install", "--quiet", source, cwd=tmp_path)
    reduce_a_night(place, tmp_path / "work")


@pytest.mark.slow
def test_the_lowest_versions(source: Path, tmp_path: Path) -> None:
    """Everything at its lower bound, with Python 3.11: a fast part of the tests, and a night."""
    place = environment(interpreter("3.11"), tmp_path / "venv")
    bounds = [f"{name}=={bound}" for name, bound in lowest().items()]
    words = ["--quiet", *bounds, source, "pytest>=8", "hypothesis>=6.100"]
    run(place / "python", "-m", "pip", "install", *words, cwd=tmp_path)
    tests = [
        "report/test_pages.py",
        "test_params.py",
        "dataselect",
        "steps/test_calibrate.py",
        "steps/test_lazy.py",
    ]
    tests += [
        "steps/test_flats.py",
        "engine/test_compute.py",
        "kernels/stack",
        "caldb/test_caldb.py",
    ]
    run(
        place / "python",
        *("-P", "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"),
        *(str(source / "tests" / name) for name in tests),
        cwd=source,
    )
    reduce_a_night(place, tmp_path / "work")


@pytest.mark.slow
def test_without_a_network_from_a_wheelhouse(source: Path, tmp_path: Path) -> None:
    """The commands of docs/install.md; the second environment has no index."""
    text = (ROOT / "docs" / "install.md").read_text()
    filling, installing = (
        re.search(rf"^    (pip {verb} .*)$", text, re.MULTILINE)[1].split()
        for verb in ("wheel", "install --no-index")
    )
    filling = [word.strip("'") for word in filling]
    house = tmp_path / "wheelhouse"
    first = environment(sys.executable, tmp_path / "first")
    second = environment(sys.executable, tmp_path / "second")
    changed = {"wheelhouse": str(house), ".": str(source)}
    run(first / "python", "-m", *(changed.get(word, word) for word in filling), cwd=tmp_path)
    run(
        second / "python",
        "-m",
        *(changed.get(word, word) for word in installing),
        cwd=tmp_path,
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
    )
    reduce_a_night(second, tmp_path / "work")


@pytest.mark.slow
def test_what_containers_do_in_a_fresh_environment(source: Path, tmp_path: Path) -> None:
    """The lines of both files, with other places: the package is installed, the demo runs."""
    place = environment(sys.executable, tmp_path / "venv")
    changes = {"/src": str(source), "/opt/gdask-code": str(tmp_path / "code")}
    changes["{{ VERSION }}"] = "1.2.3"
    path = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    for line in apptainer_sections()["post"]:
        for old, new in changes.items():
            line = line.replace(old, new)
        run("sh", "-e", "-c", line, cwd=tmp_path, **path)
    assert run(place / "gdask", "--version", cwd=tmp_path) == "gdask 1.2.3\n"
    (tmp_path / "work").mkdir()
    code: dict[str, Any] = {"NUMBA_CACHE_DIR": str(tmp_path / "code")}
    run("sh", CONTAINERS / "demo.sh", cwd=tmp_path / "work", **path, **code)
    assert list((tmp_path / "work" / "reduced").glob("*/*/*/*_image.fits"))
