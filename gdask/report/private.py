"""Texts without what is nobody's business: absolute paths, and names of users and hosts."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

#: An absolute path: a slash that does not stand in a unit or a ratio (mag/arcsec2, e-/s, 3/4).
_PATH = re.compile(r"(?<![\w.)\]\-/])/(?:[^\s/:'\",;()<>]+/)*[^\s/:'\",;()<>]+/?")

#: What names products, jobs and files below the folder of results, commands that are made of such
#: names, and what was read for the next report: these lead to one another, and no text is in them.
OWN = frozenset(
    {"path", "job", "id", "product", "products", "needs", "frames_of", "content", "commands"}
    | {"tables"}
)


def cleaner(out: str, roots: Iterable[str] = (), internal: bool = False) -> Callable[[str], str]:
    """Give a function that takes these out of a text; with `internal` one that leaves it.

    A path below `out` becomes one that begins with the name of this folder; of other paths the last
    name is left. roots: folders whose names may hold blanks, which no pattern finds the end of.
    """
    if internal:
        return lambda text: text
    base = os.path.basename(out.rstrip("/")) or "results"
    known = sorted({root.rstrip("/") for root in roots} - {"", out}, key=len, reverse=True)
    private = [(name, word) for name, word in _names() if name]
    words = [(re.compile(rf"(?<![\w]){re.escape(name)}(?![\w])"), word) for name, word in private]

    def clean(text: str) -> str:
        text = text.replace(out.rstrip("/") + "/", base + "/").replace(out.rstrip("/"), base)
        for root in known:
            text = text.replace(root + "/", "").replace(root, os.path.basename(root))
        text = _PATH.sub(lambda found: os.path.basename(found[0].rstrip("/")), text)
        for pattern, word in words:
            text = pattern.sub(word, text)
        return text

    return clean


def _names() -> list[tuple[str, str]]:
    """Give names of this host and user, each with the word that stands for it."""
    host = os.uname().nodename
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return [(host, "HOST"), (host.partition(".")[0], "HOST"), (user, "USER")]


def cleaned(value: Any, clean: Callable[[str], str], kept: frozenset[str] = frozenset()) -> Any:
    """Give a value of JSON with every text in it cleaned; keys stay, and what is below `kept`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {
            key: one if key in kept and not _has_rows(one) else cleaned(one, clean, kept)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [cleaned(one, clean, kept) for one in value]
    return value


def _has_rows(value: Any) -> bool:
    """Tell whether a value is a list of dictionaries, as that of products, and not of names."""
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)


def cleaned_facts(facts: dict[str, Any], clean: Callable[[str], str]) -> dict[str, Any]:
    """Give facts of a folder with every text cleaned but those by which it finds its own."""
    return {key: one if key == "name" else cleaned(one, clean, OWN) for key, one in facts.items()}
