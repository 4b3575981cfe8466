"""Pages as functions of the facts: words, limits, escapes, names, what is written and removed."""

from __future__ import annotations

import json
import re
import struct
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from astropy.io import fits
from synthetic import HOSTILE, synthetic

from gdask.campaign.index import FILE_COLUMNS, read_plan, write_tables
from gdask.campaign.job import Campaign, Job
from gdask.campaign.records import read_whole, record_path, write_record
from gdask.campaign.tables import write_table
from gdask.cli import main
from gdask.model import GdaskError, UsageError
from gdask.report import words
from gdask.report.against import against, read_report
from gdask.report.facts import gather
from gdask.report.names import page_names
from gdask.report.pages import (
    folder_way,
    one_file,
    one_file_way,
    page_list,
    render,
    title_of,
)
from gdask.report.questions import questions
from gdask.report.write import write_report


class Links(HTMLParser):
    """Collects tags, links, ids and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def values(self, tag: str, name: str) -> list[str]:
        return [value for one, attrs in self.tags if one == tag and (value := attrs.get(name))]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Give the pages of a report of 40 products, some of them with hostile names."""
    report = synthetic(40)
    way = folder_way()
    return {page.path: render(page, report, {}, way) for page in page_list(report)}


def test_every_link_leads_to_a_page_and_every_product_has_one(pages: dict[str, str]) -> None:
    known = {*pages, "report.json"}
    for path, text in pages.items():
        links = Links(text)
        own = {name for _, attrs in links.tags if (name := attrs.get("id"))}
        for link in links.values("a", "href"):
            if link.startswith("#"):
                assert link[1:] in own, (path, link)
            else:
                folder = Path(path).parent
                target = (Path("/report") / folder / link).resolve().relative_to("/report")
                assert str(target) in known, (path, link)
    index = Links(pages["index.html"]).values("a", "href")
    products = {path for path in pages if path.startswith("products/")}
    assert len(products) == 40 and products <= set(index)


def test_hostile_names_are_escaped_and_stay_in_the_folder(pages: dict[str, str]) -> None:
    assert any("&lt;script&gt;alert" in text for text in pages.values())
    for path, text in pages.items():
        assert text.count("<script>") == 1 and HOSTILE not in text, path
        assert not any(name.startswith("on") for _, attrs in Links(text).tags for name in attrs)
    for path in pages:
        assert ".." not in path and re.fullmatch(r"[\w+./-]+\.html", path), path


def test_nothing_is_fetched_from_anywhere(pages: dict[str, str]) -> None:
    for text in pages.values():
        links = Links(text)
        assert links.values("meta", "content")[0].startswith("default-src 'none'; img-src 'self'")
        for tag, name in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for value in links.values(tag, name):
                assert not re.match(r"[a-z]+:|//", value), value


def test_a_number_stands_with_limits_sentence_and_source(pages: dict[str, str]) -> None:
    report = synthetic(40)
    stack = next(one for one in report["products"] if one["of"] == "image")
    text = pages[stack["page"]]
    assert text.index("measured / predicted noise") < text.index("5σ flux / expected")
    assert "0.7 to 1.5" in text and "NOISERAT, primary header" in text
    assert "says: light of faint sources" in text
    index = pages["index.html"]
    assert "0.7 to 1.5" in index and "NOISERAT, primary header" in index


def test_sentences_of_a_question_are_apart() -> None:
    report, way = synthetic(40), folder_way()
    stack = next(one for one in report["products"] if one["of"] == "image")
    stack["questions"][0]["sentences"] = ["it is noisy", "it is uneven"]
    picture = {"key": "noise", "file": "noise.png", "title": "Noise", "alt": "", "overlay_of": ""}
    pictures = {stack["path"]: [picture | {"width": 2, "height": 2}]}
    page = next(one for one in page_list(report) if one.path == stack["page"])
    text = " ".join(render(page, report, pictures, way).split())
    assert ' It is noisy. It is uneven. Look at <a href="#' in text


def test_green_is_only_where_something_was_checked() -> None:
    report = synthetic(40)
    frame = next(one for one in report["products"] if one["of"] == "frame")
    for one in frame["verdicts"]:
        one["state"], one["limit"] = "unchecked", None
    frame["state"] = "unchecked"
    frame["questions"] = questions(frame, "reduced")
    page = next(page for page in page_list(report) if page.path == frame["page"])
    main_part = render(page, report, {}, folder_way()).partition("<main")[2]
    assert "not checked" in main_part and "passed" not in main_part
    assert 'class="state good"' not in main_part


def test_a_passed_gate_does_not_claim_what_it_would_mean(pages: dict[str, str]) -> None:
    report = synthetic(40)
    flat = next(one for one in report["products"] if one["of"] == "flat")
    assert flat["state"] == "passed"
    assert "If not met: the flat has … e- only" in pages[flat["page"]]


def test_a_frame_is_asked_what_its_numbers_can_answer() -> None:
    """Whether a field is covered is a question about a stack; so are its reasons."""
    report = synthetic(20)
    frame = next(one for one in report["products"] if one["of"] == "frame")
    asked = questions(frame, "reduced")
    assert "Is the field covered?" not in [one["question"] for one in asked]
    assert asked and all("of the stack" not in one["command"] for one in asked)
    assert "--because 'stars are wide or long'" in asked[-2]["command"] + asked[-1]["command"]


def test_limits_in_words() -> None:
    gate = {"warning_below": 0.7, "warning_above": 1.5, "failure_below": 0.4, "failure_above": 4}
    assert words.limits(gate) == "0.7 to 1.5; fails < 0.4 or > 4"
    assert words.limits({"warning_above": 2}) == "≤ 2"
    assert words.limits({"warning_below": 4}) == "≥ 4"
    fellows = {"warning_mad": 4, "failure_mad": 10, "side": "above"}
    assert words.limits(fellows) == "≤ +4σ of its fellows; fails beyond 10σ"
    ratio = {"warning_above": 100, "failure_above": 300, "over": "fwhm"}
    assert words.limits(ratio) == "≤ 100 × FWHM; fails > 300 × FWHM"
    assert words.limits({}) == ""


def test_numbers_in_words() -> None:
    said = [words.number(value) for value in (None, 1.0245, 0.00061674, 1564.3, 27175.0, 12345, 5)]
    assert said == ["–", "1.024", "0.000617", "1564", "27175", "12\u202f345", "5"]
    assert words.number(-3.34e-06, "electron") == "0" and words.number(3e-6) == "3e-06"
    assert words.number(float("nan")) == "–" and words.number("nominal") == "nominal"


def test_names_of_pages_are_safe_and_differ() -> None:
    names = ["a/b.fits", "a_b.fits", "A/B.fits", "../../etc/passwd", "x" * 300, "ü/ö", "", "."]
    pages = page_names("products", names)
    assert len({page.casefold() for page in pages.values()}) == len(names)
    for page in pages.values():
        assert re.fullmatch(r"products/[A-Za-z0-9_+-][\w+.-]*\.html", page) and len(page) < 130
    assert page_names("products", names) == pages


# What is written -------------------------------------------------------------------------------


def png(path: Path) -> None:
    """Write a PNG of 2 x 2 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0\1\2\0\3\4")
    text = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    path.write_bytes(text)


def made_of(out: Path, jobs: int = 3, **changes: Any) -> list[Job]:
    """Write plan, records and tables of a campaign whose flats are files without pixels."""
    planned = [
        Job(f"flat-{n}", "flat", "GSAOI", "", "J", f"2017050{n}", f"calibrations/2017050{n}")
        for n in range(1, jobs + 1)
    ]
    campaign = Campaign(tuple(planned), (), ())
    known = {}
    for job in planned:
        path = out / job.folder / f"S{job.night}_flat.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        fits.PrimaryHDU().writeto(path, overwrite=True)
        numbers = {"kind": "flat", "mean_counts": 27000.0, "lamp_scatter": 0.001} | changes
        product = {
            "path": f"{job.folder}/{path.name}", "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns, "content": job.id, "numbers": numbers,
        }  # fmt: skip
        record = {
            "status": "made", "cause": "", "products": [product], "gdask": "0.1.0", "level": 0,
            "key": "k", "seconds": 3.0, "left_out": [], "command": "reduce @/home/me/list",
        }  # fmt: skip
        write_record(out, job, record)
        known[job.id] = record
    (out / ".campaign").mkdir(exist_ok=True)
    write_tables(out, campaign, known)
    return planned


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert list(read_plan(tmp_path / "plan")) == []
    planned = made_of(tmp_path)
    assert list(read_plan(tmp_path / "plan")) == planned


def test_only_what_changed_is_written_again_and_own_files_alone_are_removed(tmp_path: Path) -> None:
    made_of(tmp_path)
    write_report(tmp_path, draw=False)
    report = tmp_path / "report"
    before = files_of(report)
    assert "index.html" in before and len([n for n in before if n.startswith("products/")]) == 3
    write_report(tmp_path, draw=False)
    assert files_of(report) == before
    (report / "notes.txt").write_text("mine")
    (report / "products" / "mine.html").write_text("mine")
    for path in (tmp_path / "calibrations/20170503").iterdir():
        path.unlink()
    made_of(tmp_path, jobs=2)
    write_report(tmp_path, draw=False)
    after = files_of(report)
    gone = before.keys() - after.keys()
    assert gone == {"products/calibrations_20170503_S20170503_flat.html", "nights/20170503.html"}
    assert after["notes.txt"][1] == after["products/mine.html"][1] == b"mine"
    same = "products/calibrations_20170502_S20170502_flat.html"
    assert after[same] == before[same] and after["index.html"] != before["index.html"]


def test_what_a_manifest_says_of_other_places_is_not_removed(tmp_path: Path) -> None:
    made_of(tmp_path)
    write_report(tmp_path, draw=False)
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    manifest = tmp_path / "report/manifest.json"
    names = json.loads(manifest.read_text())["files"]
    manifest.write_text(json.dumps({"files": [*names, "../precious.txt", str(precious)]}))
    write_report(tmp_path, draw=False)
    assert precious.read_text() == "mine"


def test_a_folder_that_is_no_report_is_left_alone(tmp_path: Path) -> None:
    made_of(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report/thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="no report; move it away"):
        write_report(tmp_path, draw=False)


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    """Before pictures are drawn: one sentence, not one for each product."""
    made_of(tmp_path)
    (tmp_path / "report").symlink_to("/proc/self/fdinfo")
    said: list[str] = []
    with pytest.raises(GdaskError, match="report: cannot be written"):
        write_report(tmp_path, say=said.append)
    assert said == []


def test_no_path_host_or_user_unless_internal(tmp_path: Path) -> None:
    made_of(tmp_path)
    write_report(tmp_path, draw=False)
    text = "".join(data.decode() for _, data in files_of(tmp_path / "report").values())
    assert str(tmp_path) not in text and "/home/" not in text and "reduce @list" in text
    write_report(tmp_path, draw=False, internal=True)
    text = "".join(data.decode() for _, data in files_of(tmp_path / "report").values())
    assert str(tmp_path) in text and "/home/me/list" in text


def strings(value: Any) -> list[str]:
    """Give all texts in a value of JSON, keys too."""
    if isinstance(value, dict):
        return [text for pair in value.items() for one in pair for text in strings(one)]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_no_planted_path_is_in_any_text_at_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = "/srv/secret/who/S1.fits"

    def tables(path: Any) -> dict[str, Any]:
        deep = {"a:b": plant, "c": {"d": [plant, {"e": f"see {plant}"}]}}
        found: dict[str, Any] = {"settings": {"user": deep}, "versions": {"numpy": plant}}
        found |= {"frames": [], "skies": [plant]}
        return found | {"sources": None, "trouble": f"{plant}: broken", "wavelength": None}

    monkeypatch.setattr("gdask.report.products.tables_of", tables)
    made_of(tmp_path / "old", mean_counts=2000.0, flat="/srv/secret/old.fits")
    made_of(tmp_path / "new", flat=plant)
    write_report(tmp_path / "old", draw=False, internal=True)
    write_report(tmp_path / "new", draw=False, old=tmp_path / "old")
    facts = json.loads((tmp_path / "new/report/report.json").read_text())
    found = [text for text in strings(facts) if "secret" in text or str(tmp_path) in text]
    assert found == [] and "old.fits" in strings(facts["against"])
    assert facts["products"][0]["settings"]["user"]["c"]["d"] == ["S1.fits", {"e": "see S1.fits"}]
    pages = "".join(path.read_text() for path in (tmp_path / "new/report").rglob("*.html"))
    assert "secret" not in pages and str(tmp_path) not in pages
    write_report(tmp_path / "new", draw=False, internal=True)
    assert plant in strings(json.loads((tmp_path / "new/report/report.json").read_text()))


def test_pictures_of_the_product_as_it_is_are_shown_and_others_not(tmp_path: Path) -> None:
    made_of(tmp_path)
    pytest.importorskip("gdask.plot.product")
    folder = tmp_path / "calibrations/20170501/pictures/S20170501_flat"
    folder.mkdir(parents=True)
    png(folder / "preview.png")
    row = {"key": "preview", "file": "preview.png", "title": "Preview", "alt": "A <flat>"}
    row |= {"width": 2, "height": 2, "overlay_of": ""}
    (folder / "pictures.json").write_text(json.dumps({"pictures": [row], "notes": []}))
    write_report(tmp_path, draw=False)
    name = "calibrations_20170501_S20170501_flat"
    page = (tmp_path / f"report/products/{name}.html").read_text()
    assert f'src="../pictures/{name}/preview.png"' in page and 'alt="A &lt;flat&gt;"' in page
    assert (tmp_path / f"report/pictures/{name}/preview.png").exists()
    made_of(tmp_path)  # the product is made again, its pictures are not
    write_report(tmp_path, draw=False)
    assert not (tmp_path / f"report/pictures/{name}").exists()


def test_zip_is_whole_and_the_same_each_time(tmp_path: Path) -> None:
    made_of(tmp_path)
    assert main(["report", str(tmp_path), "--zip"]) == 0
    first = (tmp_path / "report.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "report.zip") as packed:
        assert packed.testzip() is None and "report/index.html" in packed.namelist()
    assert main(["report", str(tmp_path), "--zip"]) == 0
    assert (tmp_path / "report.zip").read_bytes() == first


def test_one_file_holds_all_pages_and_is_refused_for_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = synthetic(20)
    text = one_file(report, {}, one_file_way(lambda file: b""))
    links = Links(text)
    ids = [name for _, attrs in links.tags if (name := attrs.get("id"))]
    assert len(ids) == len(set(ids)) and HOSTILE not in text and text.count("<script>") == 1
    inside = {link[1:] for link in links.values("a", "href") if link.startswith("#")}
    assert inside <= set(ids) | {"at-report.json"}
    made_of(tmp_path, jobs=9)
    assert main(["report", str(tmp_path), "--one-file"]) == 0
    assert (tmp_path / "report.html").exists()
    assert main(["report", str(tmp_path), "--one-file", "--zip"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_too_many_products_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of(tmp_path, jobs=9)
    monkeypatch.setattr("gdask.report.write.MAX_IN_ONE_FILE", 8)
    with pytest.raises(UsageError, match="9 stacks and calibrations are too many for one file, 8"):
        write_report(tmp_path, draw=False, as_one_file=True)
    assert not (tmp_path / "report.html").exists()


def test_frames_do_not_count_for_one_file_but_their_pictures_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = made_of(tmp_path, jobs=1)
    record = read_whole(record_path(tmp_path, job))
    (flat,) = record["products"]
    folder = tmp_path / job.folder
    for number in range(30):
        name = f"S{number}_skyCorrected.fits"
        fits.PrimaryHDU().writeto(folder / name)
        numbers = {"kind": "frame", "fwhm": 0.1}
        record["products"].append(flat | {"path": f"{job.folder}/{name}", "numbers": numbers})
    write_record(tmp_path, job, record)
    write_report(tmp_path, draw=False, as_one_file=True)
    assert "S29_skyCorrected.fits" in (tmp_path / "report.html").read_text()
    drawn = folder / "pictures/S3_skyCorrected"
    drawn.mkdir(parents=True)
    png(drawn / "preview.png")
    row = {"key": "preview", "file": "preview.png", "title": "P", "alt": "a", "width": 2} | {
        "height": 2
    }
    (drawn / "pictures.json").write_text(json.dumps({"pictures": [row], "notes": []}))
    monkeypatch.setattr("gdask.report.write.MAX_BYTES_IN_ONE_FILE", 50)
    with pytest.raises(UsageError, match="1 pictures of 0 MB are too much for one file"):
        write_report(tmp_path, draw=False, as_one_file=True)


def test_a_folder_without_products_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "neither a campaign" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_campaign_without_a_plan_has_a_report(tmp_path: Path) -> None:
    (tmp_path / ".campaign").mkdir()
    write_report(tmp_path, draw=False)
    assert "Nothing is made yet" in (tmp_path / "report/index.html").read_text()


def test_what_changed_against_an_older_report(tmp_path: Path) -> None:
    made_of(tmp_path / "old")
    made_of(tmp_path / "new", mean_counts=2000.0)
    (tmp_path / "new/calibrations/20170503/flat-3.json").unlink()
    write_report(tmp_path / "old", draw=False)
    write_report(tmp_path / "new", draw=False, old=tmp_path / "old")
    facts = json.loads((tmp_path / "new/report/report.json").read_text())["against"]
    assert facts["name"] == f"{tmp_path.name}/old"
    assert facts["gone"] == ["calibrations/20170503/S20170503_flat.fits"]
    (change,) = facts["products"][0]["changes"]
    assert change == {
        "number": "mean_counts", "before": 27000.0, "after": 2000.0, "difference": -25000.0
    }  # fmt: skip
    assert (facts["products"][0]["before"], facts["products"][0]["after"]) == ("passed", "warning")
    assert "-25000" in (tmp_path / "new/report/against.html").read_text()
    same = gather(tmp_path / "old")
    assert against(same, read_report(tmp_path / "old") or {})["products"] == []
    with pytest.raises(UsageError, match="expected a folder of results"):
        read_report(tmp_path / "none")


def test_numbers_that_differ_in_no_digit_that_is_shown_have_not_changed(tmp_path: Path) -> None:
    made_of(tmp_path / "old", lamp_scatter=0.0010000001)
    made_of(tmp_path / "new", lamp_scatter=0.001)
    assert gather(tmp_path / "new", old=tmp_path / "old")["against"]["products"] == []


def test_gates_that_fail_and_jobs_that_fail_need_a_decision(tmp_path: Path) -> None:
    made_of(tmp_path, lamp_scatter=0.5)
    record = tmp_path / "calibrations/20170502/flat-2.json"
    failed = read_whole(record) | {
        "status": "failed", "cause": "error: /data/x.fits: no lamp", "products": [],
        "log": ["reading", "reduce: /data/x.fits: no lamp"],
    }  # fmt: skip
    write_record(tmp_path, SimpleNamespace(folder="calibrations/20170502", id="flat-2"), failed)
    work = tmp_path / ".campaign/work/flat-3"
    work.mkdir(parents=True)
    (work / "job.log").write_text("phase 1: 4 of 8\n")
    (tmp_path / "calibrations/20170503/flat-3.json").unlink()
    write_report(tmp_path, draw=False)
    facts = json.loads((tmp_path / "report/report.json").read_text())
    found = [(one["kind"], one["job"] or one["product"]) for one in facts["decisions"]]
    assert found == [
        ("failed", "flat-2"),
        ("gate failed", "calibrations/20170501/S20170501_flat.fits"),
        ("begun", "flat-3"),
    ]
    page = (tmp_path / "report/jobs/flat-2.html").read_text()
    assert "error: x.fits: no lamp" in page and "reduce: x.fits: no lamp" in page
    assert "gdask run -o" in page and "--retry" in page
    assert "phase 1: 4 of 8" in (tmp_path / "report/jobs/flat-3.html").read_text()


def test_reasons_of_files_and_names_of_old_folders_hold_no_paths(tmp_path: Path) -> None:
    made_of(tmp_path / "old")
    made_of(tmp_path / "new", mean_counts=2000.0)
    row = {name: "" for name in FILE_COLUMNS}
    row |= {"file": "S1.fits", "state": "duplicate", "why": "a copy of /data/x/S1.fits"}
    write_table(tmp_path / "new/files.ecsv", [row], FILE_COLUMNS)
    write_report(tmp_path / "old", draw=False, internal=True)
    write_report(tmp_path / "new", draw=False, old=tmp_path / "old")
    text = "".join(data.decode() for _, data in files_of(tmp_path / "new/report").values())
    assert str(tmp_path) not in text and "/data/x" not in text and "a copy of S1.fits" in text


def test_calibrations_of_two_instruments_have_two_titles() -> None:
    product = {"of": "dark", "values": {"exposure_time": 2.0}, "target": "", "instrument": "F2"}
    product |= {"filter": "", "night": "20170505", "name": "S1_dark.fits", "raw": "S1"}
    assert title_of(product) == "F2 · dark 2 s · 2017-05-05"
    flat = product | {"of": "flat", "filter": "J", "instrument": "GSAOI"}
    assert title_of(flat) == "GSAOI · J · flat · 2017-05-05"
