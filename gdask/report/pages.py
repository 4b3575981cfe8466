"""Pages: pure functions of the facts (report.json) and of which pictures there are."""

from __future__ import annotations

import base64
import hashlib
import posixpath
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from gdask.model import late
from gdask.report import words
from gdask.report.charts import chart
from gdask.report.decisions import KINDS

if TYPE_CHECKING:
    import jinja2
else:
    jinja2 = late("jinja2")

Facts = dict[str, Any]
#: Sky-subtracted frames that the first page lists one by one; of more, the pages of nights do.
MAX_LISTED = 4000
#: Stacks of which the first page shows a small picture.
MAX_SHOWN = 24
#: States: a sign, a word, and a class of the style. A state is told by word and shape; colour
#: comes third, and green is only where a gate has judged something.
STATES = {
    "passed": ("●", "passed", "good"),
    "warning": ("▲", "look", "warn"),
    "failure": ("■", "failed", "bad"),
    "unchecked": ("○", "not checked", "none"),
    "made": ("◆", "made", "none"),
    "failed": ("■", "failed", "bad"),
    "blocked": ("■", "blocked", "bad"),
    "begun": ("▲", "not ended", "warn"),
    "changed": ("▲", "changed", "warn"),
    "not run": ("○", "not run", "none"),
}
#: Pictures that stand first on a page, over which others may lie.
PREVIEW = "preview"


class Page(NamedTuple):
    """A page: its path below the report, template, title, and what it is about."""

    path: str
    template: str
    title: str
    subject: Facts


def page_list(report: Facts) -> list[Page]:
    """Give all pages of a report, the first page first."""
    found = [Page("index.html", "index.html", report["name"], {})]
    found += [Page(one["page"], "target.html", one["name"], one) for one in report["targets"]]
    found += [
        Page(one["page"], "night.html", f"Night {words.night(one['night'])}", one)
        for one in report["nights"]
    ]
    found += [Page(one["page"], "series.html", one["title"], one) for one in report["series"]]
    found += [Page(one["page"], "product.html", title_of(one), one) for one in report["products"]]
    found += [
        Page(one["page"], "job.html", one["id"], one) for one in report["jobs"] if one["page"]
    ]
    if report["against"]:
        found.append(Page("against.html", "against.html", "What has changed", report["against"]))
    if report["files"]["unused"]:
        found.append(Page("files.html", "files.html", "Files that are not used", report["files"]))
    return found


def title_of(product: Mapping[str, Any]) -> str:
    """Give the title of a product's page."""
    night = {"all": "all nights"}.get(product["night"], words.night(product["night"]))
    what = {"image": "stack", "bpm": "bad-pixel mask"}.get(product["of"], product["of"])
    exposure = product["values"].get("exposure_time")
    if product["of"] == "dark" and isinstance(exposure, int | float):
        what = f"dark {exposure:g} s"
    name = product["raw"] if product["of"] == "frame" else ""
    instrument = "" if product["target"] else product["instrument"]
    parts = (product["target"] or instrument, product["filter"], what, name, night)
    return " · ".join(filter(None, parts)) or str(product["name"])


class Way(NamedTuple):
    """How pages are written: from a page to another, to a picture in it, to the picture alone; and
    the template around each page."""

    link: Callable[[str, str], str]
    picture: Callable[[str, str], str]
    alone: Callable[[str, str], str]
    layout: str


def folder_way() -> Way:
    """Give the way of a folder of pages: links are relative."""
    return Way(_relative, _relative, _relative, "base.html")


def one_file_way(data: Callable[[str], bytes]) -> Way:
    """Give the way of one file: links lead to parts of it, pictures are in it.

    data: gives a picture by its path below the report.
    """
    return Way(
        lambda page, other: f"#{anchor_of(other)}",
        lambda page, file: f"data:image/png;base64,{base64.b64encode(data(file)).decode()}",
        lambda page, file: f"#{anchor_of(page)}",
        "part.html",
    )


def _relative(page: str, other: str) -> str:
    return posixpath.relpath(other, posixpath.dirname(page) or ".")


def anchor_of(page: str) -> str:
    """Give the name of a page as a part of one file."""
    return "at-" + page.removesuffix(".html").replace("/", "-")


def render(page: Page, report: Facts, pictures: Mapping[str, list[Facts]], way: Way) -> str:
    """Give the text of a page.

    pictures: of products (by path) and of jobs that failed (by id), as `pictures.described` gives
    them. The page depends on nothing else.
    """
    context = {
        "report": report,
        "page": page,
        "it": page.subject,
        "pictures": pictures,
        "layout": way.layout,
        "anchor": anchor_of(page.path),
        "link": lambda other: way.link(page.path, other),
        "picture": lambda file: way.picture(page.path, file),
        "alone": lambda file: way.alone(page.path, file),
        **_indices(report),
    }
    return _environment().get_template(page.template).render(context)


def one_file(report: Facts, pictures: Mapping[str, list[Facts]], way: Way) -> str:
    """Give all pages as one."""
    pages = page_list(report)
    parts = [_environment().filters["safe"](render(one, report, pictures, way)) for one in pages]
    context = {"report": report, "parts": parts, "page": pages[0]}
    return _environment().get_template("one.html").render(context)


_LAST: list[Any] = [None, {}]


def _indices(report: Facts) -> Facts:
    """Give products and jobs by name; made once for a report."""
    if _LAST[0] is not report:
        _LAST[:] = [
            report,
            {
                "products": {one["path"]: one for one in report["products"]},
                "jobs": {one["id"]: one for one in report["jobs"]},
                "makers": _makers(report),
                "night_pages": {one["night"]: one["page"] for one in report["nights"]},
                "target_pages": {one["name"]: one["page"] for one in report["targets"]},
            },
        ]
    return dict(_LAST[1])


def _makers(report: Facts) -> dict[str, str]:
    """Give pages of calibrations by name of file and by the job that made them."""
    found = {}
    for one in report["products"]:
        if one["of"] in ("flat", "dark", "bpm"):
            found[one["name"]] = one["page"]
            found[one["job"]] = one["page"]
    found.pop("", None)
    return found


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    """Give the templates; whatever is put into a page is escaped."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("gdask.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": words.number,
        "seconds": words.seconds,
        "size": words.size,
        "night": words.night,
        "label": words.label,
        "unit": lambda unit: words.UNITS.get(unit, unit),
        "title_of": title_of,
        "chart": chart,
        "first_large": words.first_large,
        "pick": lambda path, products: products[path],
    }
    style, script = _text("report.css"), _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals |= {
        "style": found.filters["safe"](style),
        "script": found.filters["safe"](script),
        "policy": "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        "STATES": STATES,
        "KINDS": KINDS,
        "PREVIEW": PREVIEW,
        "MAX_LISTED": MAX_LISTED,
        "MAX_SHOWN": MAX_SHOWN,
    }
    return found


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
