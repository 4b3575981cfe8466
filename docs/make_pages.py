"""Pages of the site that are made at build time: commands, reference, and files beside docs/.

`docs/conf.py` calls `make_all` before each build. What is written here (docs/commands, docs/api,
docs/project) is not kept in the repository.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gdask.cli import VERBS, _command_of, usage

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

#: Verbs that are commands by themselves, as in DRAGONS.
BY_THEMSELVES = ("typewalk", "dataselect", "showd", "caldb", "reduce", "showpars", "showrecipes")
#: Verbs with verbs of their own.
INNER = {
    "caldb": ("init", "add", "remove", "list", "config", "why"),
    "simulate": ("gsaoi", "f2", "campaign"),
}
#: Files beside docs/ that are pages of the site, by their page.
PROJECT = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "interactive_cluster": "cluster/interactive.md",
    "batch_job": "cluster/batch_job.md",
    "adaptive_jobs": "cluster/adaptive_jobs.md",
}
#: The public interface: page -> (title, what the page says first, modules or names).
REFERENCE = {
    "gdask": (
        "gdask",
        "What `import gdask` gives.",
        [
            ("function", "gdask.open"),
            ("function", "gdask.open_many"),
            ("function", "gdask.write"),
            ("function", "gdask.tags"),
            ("function", "gdask.descriptor"),
            ("function", "gdask.wcs"),
            ("function", "gdask.tables"),
            ("function", "gdask.show"),
            ("class", "gdask.Reduce"),
            ("class", "gdask.Run"),
            ("exception", "gdask.GdaskError"),
            ("module", "gdask.cal_service"),
            ("module", "gdask.dataselect"),
            ("module", "gdask.logutils"),
        ],
    ),
    "steps": (
        "gdask.steps",
        "The steps (DRAGONS: primitives): Frames in, Frames out, nothing is computed. ``-p`` and "
        + "logs take the name in brackets, too.",
        [("module", "gdask.steps")],
    ),
    "recipes": (
        "gdask.recipes",
        "Functions that call steps; :doc:`/project/recipes` shows their text.",
        [
            ("module", "gdask.recipes.common"),
            ("module", "gdask.recipes.gsaoi_image"),
            ("module", "gdask.recipes.gsaoi_flat"),
            ("module", "gdask.recipes.f2_image"),
        ],
    ),
    "cluster": ("gdask.cluster", "Where work runs.", [("module", "gdask.cluster")]),
    "simulate": (
        "gdask.simulate",
        "Raw nights and campaigns with known truth.",
        [("module", "gdask.simulate")],
    ),
    "plot": ("gdask.plot", "Pictures for scripts and notebooks.", [("module", "gdask.plot")]),
    "numbers": (
        "Numbers, gates, instruments",
        "Functions of other modules that may be relied on.",
        [
            ("function", "gdask.headers.numbers.read_numbers"),
            ("function", "gdask.reduction.gates.judge"),
            ("function", "gdask.instruments.register"),
            ("function", "gdask.kernels.resample.interpolation.aperture_noise"),
        ],
    ),
}
PUBLIC = """\
Public are the names on these pages: what ``gdask``, ``gdask.steps``, ``gdask.cluster``,
``gdask.simulate`` and ``gdask.plot`` list in ``__all__``, the recipes, and the functions named
under *Numbers, gates, instruments*. They change only with an entry in the changelog. Everything
else may change at any time. Arrays of a Frame have the dimensions (detector, y, x); data are in
ADU or electrons, variance in their square, DQ in the field's bits; positions on the sky are in
degrees, on arrays in 0-based pixels, unless a docstring says otherwise."""


def make_all() -> None:
    """Write all pages that are made; older ones are removed first."""
    for name in ("commands", "api", "project"):
        shutil.rmtree(DOCS / name, ignore_errors=True)
        (DOCS / name).mkdir()
    _make_commands(DOCS / "commands")
    _make_reference(DOCS / "api")
    _make_project(DOCS / "project")


def help_of(*words: str) -> str:
    """Give what `gdask WORDS --help` prints on a terminal of 96 columns."""
    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "96"
    try:
        with contextlib.redirect_stdout(printed):
            code: object = _command_of(words[0])([*words[1:], "--help"])
    except SystemExit as end:  # argparse ends so, once it has printed
        code = end.code
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    if code:
        raise RuntimeError(f"gdask {' '.join(words)} --help ended with {code}")
    return printed.getvalue()


def _make_commands(folder: Path) -> None:
    """A page for each verb, and one that lists them."""
    names = [verb.replace("-", "_") for verb in VERBS]
    rows = [
        f"| [`{_typed(verb)}`]({name}.md) | {about} |"
        for (verb, about), name in zip(VERBS.items(), names, strict=True)
    ]
    (folder / "index.md").write_text(
        "# Commands\n\n| command | what it does |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n{_block(usage())}\n```{{toctree}}\n:hidden:\n\n"
        + "\n".join(names)
        + "\n```\n"
    )
    for (verb, about), name in zip(VERBS.items(), names, strict=True):
        text = f"# {_typed(verb)}\n\n{about[0].upper() + about[1:]}.\n\n"
        text += _block(f"$ {_typed(verb)} --help\n{help_of(verb)}")
        for inner in INNER.get(verb, ()):
            typed = f"{_typed(verb)} {inner}"
            text += f"\n## {typed}\n\n" + _block(f"$ {typed} --help\n{help_of(verb, inner)}")
        (folder / f"{name}.md").write_text(text)


def _typed(verb: str) -> str:
    """The command as it is typed."""
    return verb if verb in BY_THEMSELVES else f"gdask {verb}"


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _make_reference(folder: Path) -> None:
    """The reference of the public interface, from docstrings."""
    pages = "\n".join(f"   {page}" for page in REFERENCE)
    (folder / "index.rst").write_text(
        f"Reference\n=========\n\n{PUBLIC}\n\n.. toctree::\n\n{pages}\n"
    )
    for page, (title, first, entries) in REFERENCE.items():
        lines = [title, "=" * len(title), "", first, ""]
        for kind, name in entries:
            if kind == "module" and len(entries) > 1:
                lines += [name, "-" * len(name), ""]
            lines += [f".. auto{kind}:: {name}"]
            lines += ["   :members:", ""] if kind in ("module", "class") else [""]
        (folder / f"{page}.rst").write_text("\n".join(lines))


def _make_project(folder: Path) -> None:
    """Pages of files beside docs/, and one with the text of all recipes."""
    for page, name in PROJECT.items():
        text = (ROOT / name).read_text()
        (folder / f"{page}.md").write_text(relinked(text, ROOT / name, folder / f"{page}.md"))
    recipes = sorted(path.name for path in (ROOT / "recipes").glob("[!_]*.py"))
    blocks = "\n".join(
        f"## {name}\n\n```{{literalinclude}} ../../recipes/{name}\n:language: python\n```\n"
        for name in recipes
    )
    (folder / "recipes.md").write_text(
        "# Recipes\n\nShort functions to read and copy ([extending](../extending.md) says how to "
        f"use a copy).\n\n{blocks}"
    )


def relinked(text: str, source: Path, page: Path) -> str:
    """Give the text of a page with links to files beside docs/ changed to their pages.

    source: the file that the links are relative to; page: the file of the page.
    """

    def change(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        found = os.path.relpath(page_of((source.parent / target).resolve()), page.parent)
        return f"]({found}{'#' + anchor if anchor else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", change, text)


def page_of(path: Path) -> Path:
    """Give the page that shows a file or folder; itself where it has none."""
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
    pages = {file: DOCS / "project" / f"{page}.md" for page, file in PROJECT.items()}
    pages |= {"recipes": DOCS / "project" / "recipes.md", "README.md": DOCS / "index.md"}
    return pages.get(name, path)


def links(text: str) -> Iterator[str]:
    """Give the targets of all links and pictures of a Markdown text."""
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
