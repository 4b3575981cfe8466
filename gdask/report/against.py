"""What has changed since another report, or another folder of results: in numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gdask.model import UsageError, read_json, reason_of
from gdask.report.words import number

Facts = dict[str, Any]


def against(new: Facts, before: Facts) -> Facts:
    """Compare the products of a report with those of an older one, by path."""
    first = {one["path"]: one for one in before["products"]}
    second = {one["path"]: one for one in new["products"]}
    rows = []
    for path in sorted(first.keys() & second.keys()):
        changes = _changes(first[path], second[path])
        if changes or first[path]["state"] != second[path]["state"]:
            rows.append(
                {
                    "path": path,
                    "before": first[path]["state"],
                    "after": second[path]["state"],
                    "changes": changes,
                }
            )
    return {
        "name": os.path.basename(str(before.get("name", ""))),
        "versions": [before.get("versions", []), new["versions"]],
        "new": sorted(second.keys() - first.keys()),
        "gone": sorted(first.keys() - second.keys()),
        "same": len(first.keys() & second.keys()) - len(rows),
        "products": rows,
    }


def read_report(old: str | os.PathLike[str]) -> Facts | None:
    """Read the report.json of an older report, of its folder, or of a folder of results.

    None for a folder that has none. Raises UsageError where it is no folder and no report.
    """
    path = Path(old)
    for file in (path, path / "report.json", path / "report" / "report.json"):
        if not file.is_file():
            continue
        try:
            found = read_json(file)
        except (OSError, ValueError) as error:
            raise UsageError(f"--against {file}: cannot be read: {reason_of(error)}") from None
        if not isinstance(found, dict) or not found.get("schema") or "products" not in found:
            raise UsageError(f"--against {file}: not the report.json of a report")
        return found
    if path.is_dir():
        return None
    raise UsageError(
        f"--against {path}: expected a folder of results, its report, or a report.json"
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Facts]:
    """Give the numbers of a product that differ, with their difference where both are numbers."""
    rows = []
    first, second = before["values"], after["values"]
    for name in [*second, *(name for name in first if name not in second)]:
        one, other = first.get(name), second.get(name)
        if one == other or number(one) == number(other):
            continue
        are_numbers = all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other)
        )
        difference = float(f"{other - one:.4g}") if are_numbers else None
        rows.append({"number": name, "before": one, "after": other, "difference": difference})
    return rows
