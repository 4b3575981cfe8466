"""Reports in a real browser: of a campaign, of a run that was killed, of a folder of `reduce`.

Debian's Chromium (/usr/bin/chromium) opens them from disk. Every page is looked at: what its
console says, whether pictures load, links resolve, and whether a telephone can show it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import psutil
import pytest
from conftest import Night
from synthetic import synthetic

from gdask.cli import main
from gdask.report import write_report
from gdask.report.pages import folder_way, page_list, render

CHROMIUM = "/usr/bin/chromium"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not os.path.exists(CHROMIUM):
    pytest.skip(f"no {CHROMIUM} (apt install chromium)", allow_module_level=True)

#: A telephone, and a page that is never wider than it.
PHONE = {"width": 375, "height": 700}
#: Bytes that the first page and a page of a product may have, with its pictures.
MAX_INDEX, MAX_PRODUCT = 2 * 2**20, 3 * 2**20
MAX_MEMORY = 200 * 2**20
#: Says of all pictures that have not loaded, and how far the page can be scrolled sideways.
_LOOK = """() => [
    Array.from(document.images).filter(one => !one.naturalWidth).map(one => one.src),
    document.documentElement.scrollWidth - window.innerWidth,
    Array.from(document.querySelectorAll('a[href]')).map(one => one.href),
    Array.from(document.querySelectorAll('[id]')).map(one => one.id),
]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", autouse=True)
def _own_rates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run_line(raw: Path, out: Path) -> list[str]:
    words = ["run", str(raw), "-o", str(out), "--only", "target==NGC5128", "--threads", "2"]
    return [
        sys.executable,
        "-c",
        "import sys; from gdask.cli import main; sys.exit(main())",
        *words,
    ]


@pytest.fixture(scope="module")
def killed(night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a campaign whose run was killed at a seeded moment, with the report made then."""
    out = tmp_path_factory.mktemp("killed") / "out"
    process = subprocess.Popen(
        run_line(night.folder / "raw", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not (out / ".campaign/work").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(random.Random(17).uniform(0.5, 4.0))
    process.kill()
    process.wait()
    assert main(["report", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def campaign(killed: Path, night: Night, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a campaign that was killed, ended, and has a flag, with the report of its run."""
    out = tmp_path_factory.mktemp("campaign") / "out"
    shutil.copytree(killed, out, ignore=shutil.ignore_patterns("report", "owner.*"))
    done = subprocess.run(
        run_line(night.folder / "raw", out), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    assert "report was not written" not in done.stdout + done.stderr
    assert (out / "report/index.html").exists()
    return out


@pytest.fixture(scope="module")
def folder(reduced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of products that `reduce` made, with its report."""
    out = tmp_path_factory.mktemp("folder") / "night"
    out.mkdir()
    for path in reduced.glob("*.fits"):
        shutil.copy2(path, out)
    write_report(out)
    return out


class Seen:
    """What a browser has said and asked for while it looked at pages."""

    def __init__(self, browser: Any, viewport: dict[str, int], scheme: str = "light") -> None:
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("requestfailed", lambda request: self.said.append(request.url))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def look(self, path: Path) -> tuple[list[str], int, list[str], list[str]]:
        self.page.goto(path.resolve().as_uri())
        broken, wide, links, names = self.page.evaluate(_LOOK)
        return broken, wide, links, names


@contextlib.contextmanager
def seen(browser: Any, viewport: dict[str, int], scheme: str = "light") -> Iterator[Seen]:
    one = Seen(browser, viewport, scheme)
    try:
        yield one
    finally:
        one.context.close()


def walk(browser: Any, report: Path, viewport: dict[str, int], scheme: str) -> set[str]:
    """Look at every page that links lead to; gives their paths below the report."""
    looked: dict[Path, list[str]] = {}
    wanted, parts = [report / "index.html"], []
    with seen(browser, viewport, scheme) as eyes:
        while wanted:
            path = wanted.pop()
            if path in looked:
                continue
            broken, wide, links, names = eyes.look(path)
            assert broken == [] and wide <= 0, path
            looked[path] = names
            for link in links:
                address = urlparse(link)
                assert address.scheme == "file", link
                target = Path(unquote(address.path))
                assert target.is_file() and target.is_relative_to(report.resolve()), link
                parts.append((target, unquote(address.fragment)))
                if target.suffix == ".html":
                    wanted.append(target)
        assert eyes.said == [] and all(url.startswith("file:") for url in eyes.asked)
    for target, fragment in parts:
        assert not fragment or fragment in looked[target], (target, fragment)
    return {str(path.relative_to(report)) for path in looked}


@pytest.mark.parametrize("kind", ["campaign", "killed", "folder"])
def test_pages_load_and_links_resolve_also_on_a_phone(
    browser: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    report = request.getfixturevalue(kind) / "report"
    report = report.resolve()
    found = walk(browser, report, PHONE, "dark")
    made = {str(path.relative_to(report)) for path in report.rglob("*.html")}
    assert found == made
    with seen(browser, {"width": 1280, "height": 900}) as eyes:
        for name in sorted(made)[:4]:
            broken, wide, _, _ = eyes.look(report / name)
            assert broken == [] and wide <= 0 and eyes.said == []


@pytest.mark.parametrize("kind", ["campaign", "killed", "folder"])
def test_the_keyboard_reaches_every_product(
    browser: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    report = request.getfixturevalue(kind) / "report"
    products = {one["page"] for one in json.loads((report / "report.json").read_text())["products"]}
    reached: set[str] = set()
    with seen(browser, {"width": 1280, "height": 900}) as eyes:
        _, _, links, _ = eyes.look(report / "index.html")
        for _ in range(3 * len(links) + 60):
            eyes.page.keyboard.press("Tab")
            reached.add(eyes.page.evaluate("document.activeElement.getAttribute('href') || ''"))
    assert products <= reached
    assert products or kind == "killed"


def test_the_campaign_shows_pictures_numbers_and_what_to_do(browser: Any, campaign: Path) -> None:
    report = campaign / "report"
    facts = json.loads((report / "report.json").read_text())
    stack = next(one for one in facts["products"] if one["of"] == "image")
    assert len(stack["frames"]) == 5 and all(row["product"] for row in stack["frames"])
    assert stack["frames"][0]["skies"] and stack["frames"][0]["zero_point"]
    with seen(browser, {"width": 1280, "height": 900}) as eyes:
        eyes.look(report / stack["page"])
        page = eyes.page
        assert page.locator(".card").first.inner_text().startswith("measured / predicted noise")
        alternatives = page.eval_on_selector_all("img", "all => all.map(one => one.alt)")
        assert len(alternatives) >= 5 and all(len(text) > 20 for text in alternatives)
        over = page.locator(".over1")
        assert not over.is_visible()
        page.locator(".show1").check()
        assert over.is_visible()
        width = page.locator(".sheet").bounding_box()["width"]
        page.get_by_role("button", name="larger").click()
        assert page.locator(".sheet").bounding_box()["width"] > 1.9 * width
        before = page.locator("table.sortable tbody th").first.inner_text()
        page.locator("table.sortable th button").first.click()
        assert page.locator("table.sortable tbody th").first.inner_text() != before
        assert "gdask flag" in page.locator(".questions").text_content()
    weight = (report / stack["page"]).stat().st_size + sum(
        path.stat().st_size for path in (report / "pictures" / Path(stack["page"]).stem).iterdir()
    )
    assert weight <= MAX_PRODUCT


@pytest.mark.parametrize("width", [1280, 375])
def test_rows_are_not_made_high_by_what_is_beyond_the_edge(
    browser: Any, tmp_path: Path, width: int
) -> None:
    report = synthetic(20)
    stack = next(one for one in page_list(report) if one.subject.get("frames"))
    for row in stack.subject["frames"]:
        row["calibrations"] = [f"S20170505S00{n}_calibration.fits" for n in (11, 30, 33)]
        row["skies"] = [f"S20170505S00{n}" for n in range(10, 20)]
    (tmp_path / "page.html").write_text(render(stack, report, {}, folder_way()))
    with seen(browser, {"width": width, "height": 900}) as eyes:
        eyes.page.goto((tmp_path / "page.html").as_uri())
        rows = "[...document.querySelectorAll('[aria-label=%s] tbody tr')]"
        heights = rows + ".map(row => row.getBoundingClientRect().height)"
        assert max(eyes.page.evaluate(heights % "Frames")) < 45
        if width < 500:
            assert max(eyes.page.evaluate(heights % "Numbers")) < 75


def test_tables_and_overlays_work_without_a_script(browser: Any, campaign: Path) -> None:
    report = campaign / "report"
    facts = json.loads((report / "report.json").read_text())
    stack = next(one for one in facts["products"] if one["of"] == "image")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((report / stack["page"]).resolve().as_uri())
    assert page.locator("table").first.is_visible()
    page.locator(".show1").check()
    assert page.locator(".over1").is_visible()
    context.close()


def test_the_same_report_again_writes_nothing(campaign: Path) -> None:
    report = campaign / "report"
    write_report(campaign)
    before = {path: path.stat().st_mtime_ns for path in report.rglob("*")}
    write_report(campaign)
    assert {path: path.stat().st_mtime_ns for path in report.rglob("*")} == before


def test_one_file_holds_the_pictures(browser: Any, campaign: Path) -> None:
    assert main(["report", str(campaign), "--one-file"]) == 0
    with seen(browser, PHONE) as eyes:
        broken, wide, links, names = eyes.look(campaign / "report.html")
        assert broken == [] and wide <= 0 and eyes.said == []
        assert eyes.page.evaluate("document.images.length") > 10
        assert {urlparse(link).fragment for link in links} <= set(names)


def test_a_run_that_is_stopped_by_a_signal_leaves_a_report(night: Night, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        run_line(night.folder / "raw", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 120
    while not (out / ".campaign/work").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    facts = json.loads((out / "report/report.json").read_text())
    assert any(one["kind"] in ("begun", "not run") for one in facts["decisions"])
    assert str(tmp_path) not in (out / "report/report.json").read_text()


def test_a_thousand_products_stay_within_the_budgets(browser: Any, tmp_path: Path) -> None:
    report = synthetic(1000)
    index, *others = page_list(report)
    text = render(index, report, {}, folder_way())
    (tmp_path / "index.html").write_text(text)
    assert len(text.encode()) <= MAX_INDEX
    largest = max(len(render(one, report, {}, folder_way()).encode()) for one in others[::20])
    assert largest <= MAX_INDEX
    before = renderers()
    with seen(browser, PHONE) as eyes:
        eyes.page.goto((tmp_path / "index.html").as_uri())
        assert eyes.page.evaluate(_LOOK)[1] <= 0
        used = [process.memory_full_info().uss for process in renderers() - before]
        assert used and max(used) <= MAX_MEMORY
        assert eyes.said == []


def renderers() -> set[psutil.Process]:
    """Give the processes of this one in which a browser shows pages."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "--type=renderer" in process.cmdline():
                found.add(process)
    return found
