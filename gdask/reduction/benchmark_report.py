"""What a benchmark has measured, in figures and as a page: medians, efficiency, comparison.

A benchmark is one dictionary, saved as JSON: `about` (night, machine, versions), `runs` (each
command of each run as measured) and `summary` (medians by number of workers, made from the runs).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gdask.model import UsageError, read_json

FORMAT = 1
ALL = "all"
GIB = 2**30
#: Share of the cores that other processes may use without a word about it.
OTHERS_SHARE = 0.05


def result_of(about: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the whole benchmark: `about`, the runs, and their summary.

    runs: dictionaries with `workers`, `first` (whether it is the first run of all) and `commands`
    (as `measure_command` gives them).
    """
    return {
        "format": FORMAT,
        "about": dict(about),
        "summary": summarise(runs),
        "runs": [dict(run) for run in runs],
    }


def load(path: str) -> dict[str, Any]:
    """Read a saved benchmark; UsageError where the file is none, or cannot be read."""
    try:
        found = read_json(path)
        if found["format"] != FORMAT:
            raise UsageError(
                f"--against {path}: of format {found['format']}, {FORMAT} was expected: "
                "measure it again with this version"
            )
        dict(found["about"]), [one["rows"][0]["seconds"]["median"] for one in found["summary"]]
    except OSError as error:
        raise UsageError(f"--against {path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, IndexError):
        raise UsageError(
            f"--against {path}: not a result of gdask benchmark; give the JSON file of an earlier "
            "run"
        ) from None
    return found


# Figures ---------------------------------------------------------------------------------------


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give for each number of workers the rows of its commands, and of all together.

    Medians are those of the runs after the first one of all; of this one where there is no other.
    """
    found = []
    for workers in sorted({run["workers"] for run in runs}):
        mine = [run for run in runs if run["workers"] == workers]
        first = next((run for run in mine if run["first"]), None)
        later = [run for run in mine if not run["first"]] or mine
        names = [one["name"] for one in mine[0]["commands"]]
        rows = [_row(_named(name, later), _named(name, [first] if first else [])) for name in names]
        whole = [_together(run["commands"]) for run in later]
        rows.append(_row(whole, [_together(first["commands"])] if first else []))
        found.append({"workers": workers, "runs": len(later), "rows": rows})
    for each in found:
        for row, single in zip(each["rows"], found[0]["rows"], strict=True):
            fewest, seconds = found[0]["workers"], row["seconds"]["median"]
            used = single["seconds"]["median"] * fewest / (seconds * each["workers"])
            row["efficiency"] = used
    return found


def _named(name: str, runs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for run in runs for one in run["commands"] if one["name"] == name]


def _together(commands: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give all commands of a run as one. Frames of a header check are not counted again."""
    total: dict[str, Any] = {
        name: sum(one[name] for one in commands) for name in ("seconds", "user", "system", "floor")
    }
    reducing = [one for one in commands if one["account"]["phases"]]
    account = {
        name: sum(one["account"][name] for one in reducing)
        for name in ("frames", "raw", "product", "read", "written", "left_out")
    }
    memory = max(one["memory"] for one in commands)
    total["others"] = sum(one["others"] * one["seconds"] for one in commands) / total["seconds"]
    return total | {"name": ALL, "memory": memory, "account": account | {"phases": []}}


def _row(taken: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Give the medians of one command over runs; `first` is the same in the first run of all."""
    seconds = _spread([one["seconds"] for one in taken])
    account, floor = taken[0]["account"], _median(taken, lambda one: one["floor"])
    raw = max(account["raw"], 1)
    return {
        "name": taken[0]["name"],
        "frames": account["frames"],
        "left_out": account["left_out"],
        "raw": account["raw"],
        "product": account["product"],
        "seconds": seconds,
        "first_seconds": first[0]["seconds"] if first else None,
        "first_cpu": first[0]["user"] + first[0]["system"] if first else None,
        "frames_per_minute": 60 * account["frames"] / seconds["median"],
        "raw_bytes_per_second": account["raw"] / seconds["median"],
        "read_per_raw": _median(taken, lambda one: one["account"]["read"]) / raw,
        "written_per_raw": _median(taken, lambda one: one["account"]["written"]) / raw,
        "user": _median(taken, lambda one: one["user"]),
        "system": _median(taken, lambda one: one["system"]),
        "others": _median(taken, lambda one: one["others"]),
        "memory": max(one["memory"] for one in taken),
        "floor": floor,
        "times_the_floor": seconds["median"] / floor if floor else None,
        "phases": _phases(taken),
    }


def _phases(taken: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the medians of each phase over runs, and the seconds outside all of them."""
    names = [one["name"] for one in taken[0]["account"]["phases"]]
    numbers = ("seconds", "read_per_raw", "written_per_raw", "user", "system", "memory")
    rows = [
        {"name": name}
        | {
            number: _median([one["account"]["phases"][place] for one in taken], _of(number))
            for number in numbers
        }
        for place, name in enumerate(names)
    ]
    outside = [
        one["seconds"] - sum(phase["seconds"] for phase in one["account"]["phases"])
        for one in taken
    ]
    return [*rows, {"name": "outside phases", "seconds": statistics.median(outside)}]


def _of(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda one: one[name]


def _median(taken: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], float]) -> float:
    return statistics.median(of(one) for one in taken)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two benchmarks at the most workers that both have; else at the most of each.

    Gives `workers` (then, now), `rows` with (then, now) of each command that both have, and
    `remarks`: what else differs, so that the two may not be comparable.
    """
    common = {one["workers"] for one in then["summary"]} & {
        one["workers"] for one in now["summary"]
    }
    sides = [
        next(one for one in side["summary"] if one["workers"] == max(common))
        if common
        else side["summary"][-1]
        for side in (then, now)
    ]
    before = {row["name"]: row for row in sides[0]["rows"]}
    rows = [(before[row["name"]], row) for row in sides[1]["rows"] if row["name"] in before]
    return {
        "workers": tuple(side["workers"] for side in sides),
        "rows": rows,
        "remarks": _differences(then["about"], now["about"], common),
    }


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], common: set[int]) -> list[str]:
    remarks = [] if common else ["no number of workers is in both: the most of each are compared"]
    for name in ("night", "machine", "versions", "kind", "memory"):
        before, after = then.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            remarks += [
                f"{name}: {key} was {before.get(key)}, is {after.get(key)}"
                for key in dict.fromkeys([*before, *after])
                if before.get(key) != after.get(key)
            ]
        elif before != after:
            remarks.append(f"{name}: was {before}, is {after}")
    return remarks


# The page --------------------------------------------------------------------------------------


def page(result: Mapping[str, Any], against: Mapping[str, Any] | None = None) -> str:
    """Give a benchmark as Markdown, beside an earlier one if there is one."""
    most, kind = result["summary"][-1], result["about"]["kind"]
    parts = [_heading(result), _commands_table(most, kind), _phases_table(most)]
    if len(result["summary"]) > 1:
        parts.append(_workers_table(result["summary"], kind))
    if against is not None:
        parts.append(_comparison(against, result))
    return "\n\n".join(parts) + "\n"


def _heading(result: Mapping[str, Any]) -> str:
    about = result["about"]
    night, machine, versions = about["night"], about["machine"], about["versions"]
    label = f" {about['label']}" if about["label"] else ""
    not_libraries = ("gdask", "code", "machine")
    libraries = ", ".join(f"{k} {v}" for k, v in versions.items() if k not in not_libraries)
    memory = f", at most {about['memory']} each" if about["memory"] else ""
    return (
        f"# gdask benchmark{label}, {about['date']}\n\n"
        f"{night['instrument']}, {night['source']}: {night['files']} raw files, "
        f"{night['raw'] / 1e6:.0f} MB. {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory'] / GIB:.1f} GiB, {machine['file_system'] or 'unknown'} file system, "
        f"{machine['system']}{memory}. gdask {versions['gdask']} (code {versions['code']}), "
        f"{libraries}.\n\n"
        f"{_measured(result)}.\n\nThe "
        "floor reads the same raw bytes and writes as many bytes as the products have, and does "
        "nothing else. Bytes are those of system calls, the page cache's among them."
    )


def _measured(result: Mapping[str, Any]) -> str:
    """Say of how many runs the figures are, and whether the machine had other work meanwhile."""
    runs, cores = result["summary"][-1]["runs"], result["about"]["machine"]["cores"]
    cold = ", for which everything was compiled" if result["about"]["cold"] else ""
    text = f"Medians of {runs} runs (least to most) after a first one{cold}"
    if runs == 1:
        text = "One run after a first one" if len(result["runs"]) > 1 else "The first run alone"
        text += cold
    others = result["summary"][-1]["rows"][-1]["others"]
    if others > OTHERS_SHARE * cores:
        text += (
            f". **Other processes kept {others:.1f} of {cores} cores busy meanwhile: seconds are "
            "too long, and rates too low; CPU seconds, bytes and memory hold**"
        )
    return text


def _commands_table(summary: Mapping[str, Any], kind: str) -> str:
    heads = [
        "",
        "files",
        "s",
        "first run, s (CPU s)",
        "frames/min",
        "raw MB/s",
        "read per raw byte",
    ]
    heads += [
        "written per raw byte",
        "CPU s, user + system",
        "peak GiB",
        "floor, s",
        "times the floor",
    ]
    rows = [
        [
            row["name"],
            f"{row['frames']}" + (f" ({row['left_out']} left out)" if row["left_out"] else ""),
            _seconds(row["seconds"]),
            _first(row),
            f"{row['frames_per_minute']:.1f}",
            f"{row['raw_bytes_per_second'] / 1e6:.1f}",
            f"{row['read_per_raw']:.1f}",
            f"{row['written_per_raw']:.1f}",
            f"{row['user']:.1f} + {row['system']:.1f}",
            f"{row['memory'] / GIB:.2f}",
            f"{row['floor']:.2f}" if row["floor"] else "",
            f"{row['times_the_floor']:.1f}" if row["floor"] else "",
        ]
        for row in summary["rows"]
    ]
    return f"## Commands, {_many(summary['workers'], kind)}\n\n{_table(heads, rows)}"


def _phases_table(summary: Mapping[str, Any]) -> str:
    heads = ["", "s", "read per raw byte", "written", "CPU s, user + system", "system", "peak GiB"]
    rows = []
    for row in summary["rows"][:-1]:
        for phase in row["phases"]:
            cells = [f"{row['name']}, {phase['name']}", f"{phase['seconds']:.1f}"]
            if "user" in phase:
                cpu = phase["user"] + phase["system"]
                cells += [
                    f"{phase['read_per_raw']:.1f}",
                    f"{phase['written_per_raw']:.1f}",
                    f"{phase['user']:.1f} + {phase['system']:.1f}",
                    f"{100 * phase['system'] / max(cpu, 1e-9):.0f} %",
                    f"{phase['memory'] / GIB:.2f}",
                ]
            rows.append(cells + [""] * (len(heads) - len(cells)))
    return f"## Phases\n\n{_table(heads, rows)}"


def _workers_table(summary: Sequence[Mapping[str, Any]], kind: str) -> str:
    names = [row["name"] for row in summary[0]["rows"]]
    heads = [kind, "all, s", "frames/min", *(f"efficiency, {name}" for name in names)]
    rows = [
        [
            f"{one['workers']}",
            _seconds(one["rows"][-1]["seconds"]),
            f"{one['rows'][-1]['frames_per_minute']:.1f}",
            *(f"{row['efficiency']:.2f}" for row in one["rows"]),
        ]
        for one in summary
    ]
    return f"## Efficiency by number of {kind}\n\n{_table(heads, rows)}"


def _comparison(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    found, label = compare(then, now), then["about"]["label"]
    heads = ["then, now", "s", "times as fast", "CPU s", "less CPU", "read per raw byte"]
    heads += ["written per raw byte", "peak GiB"]
    rows = [[after["name"], *_compared(before, after)] for before, after in found["rows"]]
    before, after = found["workers"]
    title = f"## Against{' ' + label if label else ''} of {then['about']['date']}"
    workers = _many(after, now["about"]["kind"])
    workers += "" if before == after else f" (then {before})"
    remarks = "".join(f"\n- {text}" for text in found["remarks"])
    differs = f"\n\nWhat else differs:\n{remarks}" if remarks else ""
    return f"{title}, {workers}\n\n{_table(heads, rows)}{differs}"


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    seconds = [row["seconds"]["median"] for row in (before, after)]
    cpu = [row["user"] + row["system"] for row in (before, after)]
    return [
        f"{seconds[0]:.1f}, {seconds[1]:.1f}",
        f"{seconds[0] / max(seconds[1], 1e-9):.2f}x",
        f"{cpu[0]:.1f}, {cpu[1]:.1f}",
        f"{cpu[0] / max(cpu[1], 1e-9):.2f}x",
        *(f"{before[name]:.1f}, {after[name]:.1f}" for name in ("read_per_raw", "written_per_raw")),
        f"{before['memory'] / GIB:.2f}, {after['memory'] / GIB:.2f}",
    ]


def _seconds(spread: Mapping[str, float]) -> str:
    """Say '13.2 (12.9 to 14.0)'; the median alone where there is one run."""
    if spread["least"] == spread["most"]:
        return f"{spread['median']:.1f}"
    return f"{spread['median']:.1f} ({spread['least']:.1f} to {spread['most']:.1f})"


def _first(row: Mapping[str, Any]) -> str:
    if row["first_seconds"] is None:
        return ""
    return f"{row['first_seconds']:.1f} ({row['first_cpu']:.1f})"


def _many(workers: int, kind: str) -> str:
    return f"{workers} {kind.removesuffix('s' if kind == 'threads' else 'es')}" + (
        "" if workers == 1 else "s" if kind == "threads" else "es"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table whose columns are as wide as their widest cell."""
    widths = [max(len(row[k]) for row in (heads, *rows)) for k in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(w) if k == 0 else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"

    rule = "|".join("-" * (w + 2) if k == 0 else "-" * (w + 1) + ":" for k, w in enumerate(widths))
    return "\n".join([line(heads), f"|{rule}|", *(line(row) for row in rows)])
