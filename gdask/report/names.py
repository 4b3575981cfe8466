"""Names of pages: short, safe in any file system and URL, and never the same for two things."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_UNSAFE = re.compile(r"[^A-Za-z0-9_+.-]+|\.{2,}")
_MOST = 90


def page_names(folder: str, names: Iterable[str]) -> dict[str, str]:
    """Give the path of a page below the report, `folder/SLUG.html`, for each of these names.

    A name that is not safe as it is, or one that differs from another by case or unsafe letters
    alone, gets a few letters of its digest.
    """
    pages: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in pages:
            continue
        slug = _slug(name)
        if slug.casefold() in taken:
            slug = f"{slug}-{_digest(name)}"
        taken.add(slug.casefold())
        pages[name] = f"{folder}/{slug}.html"
    return pages


def _slug(name: str) -> str:
    plain = name.removesuffix(".fits").replace("/", "_")
    slug = _UNSAFE.sub("-", plain).strip(".-") or "page"
    is_short = len(slug) <= _MOST
    return slug if slug == plain and is_short else f"{slug[:_MOST]}-{_digest(name)}"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
