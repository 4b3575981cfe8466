"""Reports in a real browser: of a campaign, of a run that was killed, of a folder of `reduce`.

Debian's Chromium (/usr/bin/chromium) opens them from disk. Every page is looked at: what its
console says, whether pictures load, links resolve, and whether a telephone can show it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
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


@pytest.fixture(scope="module")
def f2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the FLAMINGOS-2 tutorial: dark, mask, flat and stack, with its report."""
    from gdask.cli import dataselect, reduce
    from gdask.simulate import simulate_f2

    out = tmp_path_factory.mktemp("f2")
    few = {"n_science": 4, "n_darks": 3, "n_short_darks": 3, "n_lamps": 3}
    simulate_f2(out, size=256, field="crowded", **few)
    raw = sorted(f"raw/{path.name}" for path in (out / "raw").glob("*.fits"))
    lists = {
        "darks_120s": ["--tags", "DARK", "--expr", "exposure_time==120"],
        "darks_002s": ["--tags", "DARK", "--expr", "exposure_time==2"],
        "flats_Y": ["--tags", "FLAT"],
        "sci_images": ["--xtags", "CAL"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        (out / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
        patch.setenv("DRAGONSRC", "dragonsrc")
        for name, words in lists.items():
            assert dataselect.main([*words, *raw, "-o", f"{name}.list"]) == 0
        assert reduce.main(["@darks_120s.list"]) == 0
        assert reduce.main(["@flats_Y.list", "@darks_002s.list", "-r", "makeProcessedBPM"]) == 0
        (mask,) = (path.name for path in out.glob("*_bpm.fits"))
        mask = f"addDQ:user_bpm={mask}"
        assert reduce.main(["@flats_Y.list", "-p", mask]) == 0
        assert reduce.main(["@sci_images.list", "-p", mask, "--report"]) in (0, 1)
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


@pytest.mark.parametrize("kind", ["campaign", "killed", "folder", "f2_folder"])
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


@pytest.mark.parametrize("kind", ["campaign", "killed", "folder", "f2_folder"])
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


def test_pages_of_masks_darks_and_flats_say_what_is_seen(browser: Any, f2_folder: Path) -> None:
    report = f2_folder / "report"
    products = json.loads((report / "report.json").read_text())["products"]
    assert {one["of"] for one in products} == {"image", "flat", "dark", "bpm"}
    wanted = {
        "bpm": ("Bad-pixel mask of", "as bad pixel (orange)", "bad pixels"),
        "dark": ("Histogram of", "electron", "read noise"),
        "flat": ("Histogram of", "in grey levels (linear)", "lamp scatter"),
        "image": ("in grey levels (asinh)", "North is up", "middle of the field"),
    }
    with seen(browser, {"width": 1280, "height": 900}) as eyes:
        for one in products:
            eyes.look(report / one["page"])
            text = eyes.page.locator("main").inner_text()
            assert not [part for part in wanted[one["of"]] if part not in text], one["of"]
            captions = eyes.page.locator("figcaption, .note").all_inner_texts()
            assert all(len(caption) > 20 for caption in captions), captions


def pdf_text(data: bytes) -> list[str]:
    """Give the text of a PDF, without blanks: as each of its fonts would have it."""
    streams = []
    for found in re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        with contextlib.suppress(zlib.error):
            streams.append(zlib.decompress(found[1]).decode("latin-1"))
    glyphs = "".join(
        "".join(re.findall(r"<([0-9A-Fa-f]+)>", one)) for one in streams if "Tf" in one
    )
    codes = [int(glyphs[place : place + 4], 16) for place in range(0, len(glyphs) - 3, 4)]
    texts = []
    for one in streams:
        if "begincmap" not in one:
            continue
        table = {}
        for first, last, letter in re.findall(r"<(\w{4})> <(\w{4})> <(\w{4})>", one):
            for more in range(int(last, 16) - int(first, 16) + 1):
                table[int(first, 16) + more] = chr(int(letter, 16) + more)
        for code, letter in re.findall(r"^<(\w{4})> <(\w{4})>$", one, re.MULTILINE):
            table[int(code, 16)] = chr(int(letter, 16))
        texts.append("".join(table.get(code, "").strip() for code in codes))
    return texts


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_print_light_and_whole(browser: Any, campaign: Path, scheme: str) -> None:
    report = campaign / "report"
    facts = json.loads((report / "report.json").read_text())
    stack = next(one for one in facts["products"] if one["of"] == "image")
    with seen(browser, {"width": 1032, "height": 700}, scheme) as eyes:  # A4 within its margins
        for name in ("index.html", stack["page"]):
            eyes.look(report / name)
            data = eyes.page.pdf(prefer_css_page_size=True)
            assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) >= 1
            texts = pdf_text(data)
            assert any("Whatitismadeof" in text or "Nights" in text for text in texts), name
            eyes.page.emulate_media(media="print", color_scheme=scheme)
            style = "getComputedStyle(document.body)"
            assert eyes.page.evaluate(f"{style}.backgroundColor") == "rgb(255, 255, 255)"
            assert eyes.page.evaluate(f"{style}.color") == "rgb(0, 0, 0)"
            wide = """[...document.querySelectorAll('table, img, pre')].filter(
                one => one.getBoundingClientRect().right > innerWidth + 1
            ).map(one => one.outerHTML)"""
            assert eyes.page.evaluate(wide) == []
            assert eyes.page.locator(".command button:visible, .zoom:visible").count() == 0
            eyes.page.emulate_media(media="screen")


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


def test_commands_on_a_page_work_as_typed(
    campaign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the folder that holds the results; the raw files are elsewhere."""
    monkeypatch.chdir(campaign.parent)
    facts = json.loads((campaign / "report/report.json").read_text())
    stack = next(one for one in facts["products"] if one["of"] == "image")
    page = (campaign / "report" / stack["page"]).read_text()
    assert "@inputs.list" not in page  # that list was in the job's folder, which is gone
    assert f"Commands are typed in the folder that holds {campaign.name}" in page
    assert len(stack["commands"]) == 4
    for command in stack["commands"].values():
        assert f"<code>{command}</code>" in page
        first, *words = shlex.split(command)
        assert first == "gdask" and main(words) == 0, command
    frame = next(one for one in facts["products"] if one["of"] == "frame")
    assert main(shlex.split(frame["commands"]["make it again and compare"])[1:]) == 0
    assert "the same, byte for byte" in capsys.readouterr().out


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
