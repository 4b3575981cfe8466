"""What documents say: links lead somewhere, commands are understood, numbers are those stated."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gdask.cli import VERBS, _command_of

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in a checkout")

PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "cluster").glob("*.md")]
)
BY_THEMSELVES = ("typewalk", "dataselect", "showd", "caldb", "reduce", "showpars", "showrecipes")
INSTRUMENTS = ("gsaoi", "f2", "campaign")
#: What shells run before a command of ours.
BEFORE = {"srun", "exec", "if", "then", "do", "time"}


def text_of(page: Path) -> str:
    """Give a page without its blocks of code in other languages than the shell's."""
    return re.sub(r"```(python|toml|text|bibtex|\{).*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Give the names of a page's headings, as hosts and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path or target.startswith(("commands/", "api/", "gallery/", "project/")):
            continue  # the latter are made with the site, which checks them
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_in_the_index() -> None:
    """A page that no table of contents has is a warning of the site, which is an error."""
    index = (ROOT / "docs" / "index.md").read_text()
    listed = set()
    for block in re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL):
        lines = [line for line in block.splitlines() if line and not line.startswith(":")]
        listed |= {re.sub(r".*<(.*)>$", r"\1", line) for line in lines}
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= listed and {name for name in listed if "/" not in name} <= pages


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (line, words) of each command of gdask in a page's indented lines."""
    lines = re.sub(r"\\\n *", "", text_of(page)).splitlines()
    for line in lines:
        if not line.startswith("    "):
            continue
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="();|&")
        lexer.commenters = "#"
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            continue  # prose in a table of outputs
        part: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();|&"):
                while part and part[0] in BEFORE:
                    part = part[1:]
                if part and part[0] in ("gdask", *BY_THEMSELVES):
                    yield line.strip(), part
                part = []
            else:
                part.append(word)


class Understood(Exception):
    """A parser has understood a line; nothing is run."""


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands end once their line is understood."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: object, **options: object) -> object:
        parse(self, *arguments, **options)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def is_output(line: str) -> bool:
    """Tell whether a line is what a command prints (`reduce: phase 5: ...`)."""
    return re.match(r"(gdask|\w+): ", line) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_understood(
    page: Path, only_parsed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for line, words in commands(page):
        if is_output(line) or words[1:2] in (["--version"], ["--help"]):
            continue
        verb, *rest = words[1:] if words[0] == "gdask" else words
        if verb not in VERBS:
            wrong.append((line, "no such verb"))
            continue
        try:
            _command_of(verb)([word for word in rest if not word.startswith(">")])
        except Understood:
            continue
        except SystemExit as end:
            if not end.code:
                continue
        wrong.append((line, capsys.readouterr().err.strip().splitlines()[-1:]))
    assert wrong == []


def test_commands_in_sentences_exist() -> None:
    """Of `gdask verb --option` between quotes in a sentence: the verb, and its options."""
    helps = {verb: make_pages().help_of(verb) for verb in VERBS}
    inner = {
        "simulate": " ".join(make_pages().help_of("simulate", kind) for kind in INSTRUMENTS),
    }
    wrong = []
    for page in PAGES:
        for span in re.findall(r"`((?:gdask|reduce|dataselect|caldb) [^`]*)`", text_of(page)):
            words = span.removeprefix("gdask ").split()
            if words[0] not in VERBS:
                wrong += [] if words[0].startswith("-") else [(page.name, span)]
                continue
            known = helps[words[0]] + inner.get(words[0], "")
            options = [word.split("=")[0] for word in words if word.startswith("--")]
            wrong += [(page.name, span) for option in options if option not in known]
    assert wrong == []


def test_modules_and_targets_exist() -> None:
    """Of `python -m MODULE` and `make TARGET` anywhere."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for page in PAGES:
        text = page.read_text()
        for module in re.findall(r"python -m ([a-z_.]+)", text):
            ours = module.startswith(("gdask", "benchmarks"))
            if ours and importlib.util.find_spec(module.rstrip(".")) is None:
                wrong.append((page.name, module))
        typed = re.findall(r"(?:`|^    )make ((?:[a-z-]+ ?)+)(?=`|$| #)", text, re.MULTILINE)
        names = [name for words in typed for name in words.split()]
        wrong += [(page.name, name) for name in names if name not in targets]
    assert wrong == []


def test_commands_are_found_in_pages() -> None:
    """The walk above sees what is typed: it must not pass for want of lines."""
    found = {str(page.relative_to(ROOT)): [words for _, words in commands(page)] for page in PAGES}
    assert len(found["docs/gsaoi.md"]) > 15 and len(found["docs/campaigns.md"]) > 12
    assert ["gdask", "status", "reduced"] in found["README.md"]
    assert ["showd", "-d", "object"] in found["docs/gsaoi.md"]
    of_lists = [line for line in found["docs/gsaoi.md"] if line[:1] == ["reduce"]]
    for name in ("@flats_Kshort.list", "@std_9132.list", "@science.list"):
        assert any(line[1:2] == [name] for line in of_lists), name


def make_pages() -> object:
    spec = importlib.util.spec_from_file_location("make_pages", ROOT / "docs" / "make_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_has_a_page(tmp_path: Path) -> None:
    pages = make_pages()
    pages._make_commands(tmp_path)
    for verb in VERBS:
        text = (tmp_path / f"{verb.replace('-', '_')}.md").read_text()
        assert "usage: " in text and "--help" in text, verb
    for verb, inner in pages.INNER.items():
        listed = re.search(r"\{([\w,-]+)\}", pages.help_of(verb))
        names = re.findall(r"^    (\w+)  +\w", pages.help_of(verb), re.MULTILINE)
        assert set(inner) == set(listed[1].split(",") if listed else names), verb


def test_the_reference_has_all_public_names() -> None:
    """Every name of `gdask.__all__` is on the page."""
    import gdask

    named = {name.rpartition(".")[2] for _, name in make_pages().REFERENCE["gdask"][2]}
    assert named | {"plot"} == set(gdask.__all__) - {"__version__"}  # a page of its own


def test_the_chart_has_the_numbers_of_the_pages() -> None:
    from benchmarks.pictures import measurements

    for row in measurements():
        lines = [
            line.split("|")
            for line in (ROOT / row["page"]).read_text().splitlines()
            if line.startswith(f"| {row['row']} |")
        ]
        assert len(lines) == 1, row
        _, _, ours, theirs, *_ = lines[0]
        for stated, drawn in ((ours, row["gdask"]), (theirs, row["peer"])):
            assert float(re.search(r"[\d.]+", stated)[0]) == drawn, row


def test_the_readme_fits_a_screen_and_its_pictures_are_small() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 60
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 2
    for name in pictures:
        assert (ROOT / name).stat().st_size <= 300_000
        with Image.open(ROOT / name) as picture:
            assert picture.width <= 1200


def test_nothing_in_the_changelog_is_in_the_future() -> None:
    import datetime

    dates = re.findall(
        r"^## \[.*\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert all(datetime.date.fromisoformat(date) <= datetime.date.today() for date in dates)
