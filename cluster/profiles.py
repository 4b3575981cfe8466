"""Profiles: what `--cluster SPEC` means, as data.

They come from the shipped `profiles.yaml` or a file of the user's. In this order: finding the
profile of a SPEC; reading files of profiles; checking one; and, for all that runs work, the cores
and the use of this process.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from gdask.model import GdaskError, UsageError, why_no_file

Profile = dict[str, Any]

#: Options of each kind of profile beside `kind`, with the types of their values.
OPTIONS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "threads": {"workers": int},
    "processes": {
        "workers": int,
        "threads": int,
        "memory": (str, int),
        "dashboard": str,
        "adaptive": bool,
    },
    "scheduler": {"address": str, "scheduler_file": str, "timeout": (int, float), "tls": dict},
    "ssh": {
        "hosts": list,
        "workers": int,
        "threads": int,
        "memory": (str, int),
        "python": str,
        "command": str,
        "host": str,
        "dashboard": str,
        "tls": dict,
    },
    "jobqueue": {"system": str, "jobs": int, "adaptive": bool, "options": dict},
    "joined": {"scheduler_file": str, "host": str, "dashboard": str, "tls": dict},
}
#: Options of every kind but threads.
WATCH_OPTIONS: dict[str, type | tuple[type, ...]] = {"wait": (int, float), "patience": (int, float)}
#: Options of kinds whose workers gdask starts.
WORKER_OPTIONS: dict[str, type | tuple[type, ...]] = {
    "scratch": str,
    "lifetime": str,
    "lifetime_stagger": str,
}
for _kind in ("processes", "scheduler", "ssh", "jobqueue", "joined"):
    OPTIONS[_kind] |= WATCH_OPTIONS
for _kind in ("processes", "ssh", "jobqueue"):
    OPTIONS[_kind] |= WORKER_OPTIONS
#: How a SPEC begins that is the address of a scheduler.
ADDRESSES = ("tcp://", "tls://", "ucx://")
#: Environment of workers: libraries must not start threads of their own, one for each core is
#: enough.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}

#: A host as ssh takes it; one that begins with "-" would be an option of ssh.
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]*$")


def profile_of(spec: str, profiles: str | None = None) -> Profile:
    """Give the profile of a SPEC: a dictionary with `kind` and the options of that kind.

    Raises UsageError where the SPEC is not known, GdaskError where a file of profiles is malformed.
    """
    if spec.startswith(ADDRESSES):
        return {"kind": "scheduler", "address": spec}
    file, _, chosen = spec.partition(":")
    if file.endswith((".yaml", ".yml")):
        return _checked_profile(_profile_of_file(file, chosen), f"--cluster {spec}")
    if os.path.isfile(spec):
        return {"kind": "scheduler", "scheduler_file": os.path.abspath(spec)}
    known = load_profiles(profiles)
    name, *counts = spec.split(":")
    if name not in known:
        raise UsageError(
            f"--cluster {spec}: not known{_suggestion(name, known)}; expected tcp://host:port, a "
            f"scheduler file that exists, FILE.yaml, or one of {', '.join(sorted(known))}"
        )
    profile = dict(known[name])
    if profile.get("kind") == "ssh" and counts:
        profile["hosts"] = [host for host in counts.pop(0).split(",") if host]
    if counts:
        _set_count(profile, ":".join(counts), spec, name)
    return _checked_profile(profile, f"--cluster {spec}")


def load_profiles(path: str | None = None) -> dict[str, Profile]:
    """Read the shipped profiles by name, and those of the user's file over them."""
    known = _parse_profiles(
        resources.files(__package__).joinpath("profiles.yaml").read_text(), "profiles.yaml"
    )
    if path:
        known |= {
            name: _resolve_like(profile, known, path)
            for name, profile in _read_profiles(path).items()
        }
    return known


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Say ' (did you mean X?)', or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _set_count(profile: Profile, count: str, spec: str, name: str) -> None:
    if not count.isdigit() or int(count) < 1:
        raise UsageError(
            f"--cluster {spec}: expected a number of workers from 1 after the colon, as in {name}:4"
        )
    profile["jobs" if profile["kind"] == "jobqueue" else "workers"] = int(count)


def _profile_of_file(path: str, name: str) -> Profile:
    """Read the only profile of a file, or the one with this name."""
    content, known = _read_profiles(path), load_profiles()
    if "kind" in content or "like" in content:
        return _resolve_like(content, known, path)
    if not name and len(content) == 1:
        (name,) = content
    if name not in content:
        what = f"{name!r} is not in it{_suggestion(name, content)}" if name else "several profiles"
        raise UsageError(
            f"{path}: {what}; expected --cluster {path}:NAME with one of "
            f"{', '.join(map(str, content))}"
        )
    return _resolve_like(content[name], known, path)


def _resolve_like(profile: object, known: Mapping[str, Profile], path: str) -> Profile:
    """Complete a profile of the user's with what it takes over from a shipped one."""
    if not isinstance(profile, dict):
        raise GdaskError(
            f"{path}: {profile!r} where a profile was expected: kind: and its options, or "
            "like: and a name"
        )
    name = profile.get("like")
    if name is None:
        return profile
    if name not in known:
        raise GdaskError(
            f"{path}: like: {name}{_suggestion(str(name), known)}; expected one of "
            f"{', '.join(sorted(known))}"
        )
    base, changes = known[name], {key: value for key, value in profile.items() if key != "like"}
    options = {**base.get("options", {}), **(changes.get("options") or {})}
    return base | changes | ({"options": options} if options else {})


def _read_profiles(path: str) -> dict[str, Any]:
    if problem := why_no_file(path):
        raise UsageError(f"--cluster {path}: cannot be read ({problem})")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"--cluster {path}: cannot be read ({error.strerror})") from None
    return _parse_profiles(text, path)


def _parse_profiles(text: str, path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        raise GdaskError(
            f"{path}: {line}not YAML ({getattr(error, 'problem', error)}); expected kind: and "
            "its options"
        ) from None
    if not isinstance(content, dict) or not content:
        raise GdaskError(
            f"{path}: no profile in it; expected kind: and its options, or profiles by name"
        )
    return content


def _checked_profile(profile: Profile, where: str) -> Profile:
    """Give the profile; GdaskError where an option is unknown or of another type."""
    kind = profile.get("kind")
    if kind not in OPTIONS:
        raise GdaskError(f"{where}: kind {kind!r} is not known; expected {', '.join(OPTIONS)}")
    for name, value in profile.items():
        if name == "kind":
            continue
        if name not in OPTIONS[kind]:
            raise GdaskError(
                f"{where}: {name} is no option of kind "
                f"{kind}{_suggestion(str(name), OPTIONS[kind])}; it takes "
                f"{', '.join(OPTIONS[kind])}"
            )
        wanted = OPTIONS[kind][name]
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise GdaskError(f"{where}: {name}: {value!r} is not {_type_name(wanted)}")
    if kind == "scheduler" and not ("address" in profile or "scheduler_file" in profile):
        raise GdaskError(
            f"{where}: a scheduler needs address: tcp://host:port, or scheduler_file: FILE"
        )
    if kind == "joined" and "scheduler_file" not in profile:
        raise GdaskError(f"{where}: needs scheduler_file: FILE, for the workers that join")
    if kind == "ssh" and not profile.get("hosts"):
        raise UsageError(f"{where}: no hosts; expected ssh:host1,host2 or ssh:host1,host2:N")
    for host in profile.get("hosts") or ():
        if not _HOST.match(str(host)):
            raise UsageError(
                f"{where}: {str(host)[:60]!r} is not the name of a host; expected such as node1, "
                "user@node1 or an address"
            )
    return profile


def _type_name(wanted: type | tuple[type, ...]) -> str:
    """Say in plain words what types an option takes."""
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "a block of options",
    }
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    return " or ".join(dict.fromkeys(names[kind] for kind in kinds))


def available_cores() -> int:
    """Give the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Usage(NamedTuple):
    """What a compute reads, writes and holds.

    read, written: bytes. memory, limit: bytes of the fullest worker and its limit (0: none).
    workers: their number. user, system: CPU seconds of all workers. together: most bytes held by
    all workers and the client at a time.
    """

    read: int = 0
    written: int = 0
    memory: int = 0
    limit: int = 0
    workers: int = 0
    user: float = 0.0
    system: float = 0.0
    together: int = 0


class Counted(NamedTuple):
    """What a process has read and written (bytes), and its CPU seconds, since it began."""

    read: int = 0
    written: int = 0
    user: float = 0.0
    system: float = 0.0


def counters() -> Counted:
    """Count for this process; bytes are zeros where nothing counts them."""
    import resource

    import psutil

    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        found = psutil.Process().io_counters()
    except (AttributeError, OSError):
        return Counted(user=used.ru_utime, system=used.ru_stime)
    return Counted(
        getattr(found, "read_chars", found.read_bytes),
        getattr(found, "write_chars", found.write_bytes),
        used.ru_utime,
        used.ru_stime,
    )


class MemoryLimit(NamedTuple):
    """A limit: its bytes, and in words what sets it."""

    size: float
    source: str


def machine_memory() -> float:
    """Give the bytes of memory that this process may use: see `memory_limit`."""
    return memory_limit().size


def memory_limit(proc: str = "/proc/self") -> MemoryLimit:
    """Give the smallest of the limits of memory that hold for this process.

    They are the memory of the machine, the limits of the control group that the process is in and
    of all groups above it (SLURM, systemd and containers set them), and the address space that
    `ulimit -v` leaves. `proc`: folder of the process in /proc.
    """
    import psutil

    limits = [MemoryLimit(float(psutil.virtual_memory().total), "the memory of the machine")]
    for file in _control_group_files(Path(proc)):
        try:
            limits.append(MemoryLimit(float(file.read_text()), f"the control group ({file})"))
        except (OSError, ValueError):
            continue  # no such group, or no limit: "max"
    return min(limits + _address_space())


def _address_space() -> list[MemoryLimit]:
    """Give the limit that `ulimit -v` sets on resident memory, if any.

    Libraries and the stacks of threads reserve address space that they never touch: that part of it
    is not left for pixels.
    """
    try:
        import resource
    except ImportError:
        return []  # not on this system
    import psutil

    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft == resource.RLIM_INFINITY:
        return []
    now = psutil.Process().memory_info()
    return [MemoryLimit(max(float(soft - now.vms + now.rss), 0.0), "ulimit -v")]


def _control_group_files(proc: Path) -> Iterator[Path]:
    """Give the files that may hold the limits of memory of this process's control groups."""
    roots = _control_group_roots(proc)
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (group for group in groups if len(group) == 3):
        kind = "cgroup2" if not controllers else "cgroup"
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes",) if controllers else ("memory.max", "memory.high")
        for top, mounted in roots.get(kind, ()):
            yield from (
                folder / name for folder in _folders_of(path, top, mounted) for name in names
            )


def _folders_of(path: str, top: str, mounted: Path) -> Iterator[Path]:
    """Give the folders of the control group `path` and of those above it, up to the mounted one.

    `top` is the group that is mounted. In a container, it may be the process's own, and the path
    that of the host: then the mounted group is all that is to be seen.
    """
    below = Path(path.removeprefix(top.rstrip("/")).lstrip("/"))
    yield from (mounted / part for part in (below, *below.parents) if ".." not in part.parts)


def _control_group_roots(proc: Path) -> dict[str, list[tuple[str, Path]]]:
    """Give, for "cgroup" with memory and "cgroup2", the group and the folder of each mount."""
    roots: dict[str, list[tuple[str, Path]]] = {}
    try:
        lines = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return roots
    for line in lines:
        fields, _, rest = line.partition(" - ")
        kind, options = rest.split(" ")[0], rest.split(" ")[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options):
            group, folder = fields.split(" ")[3:5]
            roots.setdefault(kind, []).append((group, Path(folder)))
    return roots
