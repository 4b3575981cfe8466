"""What a night takes on this machine: the commands of the tutorial, measured one after another.

Each command is a `reduce` of its own process, so that CPU seconds and memory are of its tree of
processes alone. Beside it stands the floor: to read the same raw bytes and to write as many bytes
as its products have, with nothing in between.

In this order: which commands (from the files' tags); one command, measured; all of them; the floor;
the machine.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gdask.model import GdaskError, UsageError, read_json, read_text

#: Parameters of the tutorials' commands for science frames.
SCIENCE_PARAMETERS = {
    "GSAOI": ("-p", "skyCorrect:offset_sky=False", "prepare:bad_wcs=fix"),
    "F2": (),
}
#: Scratch and products of one reduction take at most so many times the bytes of the raw frames.
SCRATCH_PER_RAW = 5.0
#: Bytes read or written at a time where the floor is measured.
FLOOR_CHUNK = 1 << 24
#: Seconds between two looks at the memory of a tree of processes.
MEMORY_INTERVAL = 0.2


class Command(NamedTuple):
    """One `reduce` of these files. with_mask: give it the mask that an earlier command has made."""

    name: str
    files: tuple[str, ...]
    options: tuple[str, ...] = ()
    with_mask: bool = False

    def text(self) -> str:
        """The command as it would be typed."""
        mask = ("-p", "addDQ:user_bpm=BPM.fits") if self.with_mask else ()
        return " ".join(("reduce", f"@{self.name}.list", *self.options, *mask))


class Plan(NamedTuple):
    """The commands for a set of files. unused: how many of the files none of them takes."""

    instrument: str
    calibrations: tuple[str, ...]
    commands: tuple[Command, ...]
    unused: int

    @property
    def raw_files(self) -> list[str]:
        """The raw files of all commands, once each."""
        return sorted({path for command in self.commands for path in command.files})

    @property
    def raw_bytes(self) -> int:
        """Their bytes."""
        return sum(os.path.getsize(path) for path in self.raw_files)


class Place(NamedTuple):
    """Where and how commands run.

    kind: threads or processes. workers: of these. memory: most of each, as in `reduce --memory`.
    numba_cache: folder of compiled code, None for the usual one. python: interpreter whose gdask
    it is.
    """

    folder: Path
    kind: str
    workers: int
    memory: str | None = None
    numba_cache: str | None = None
    python: str = sys.executable


# Which commands --------------------------------------------------------------------------------


class _File(NamedTuple):
    path: str
    tags: frozenset[str]
    observation_class: str
    object: str
    filter: str
    seconds: float


def plan(paths: Sequence[str]) -> Plan:
    """Give the commands of the tutorial for these files, as far as their tags allow.

    The science frames are those of the filter and exposure time that has most of them; flats,
    darks and standard go with these. Raises GdaskError for a file that cannot be read, UsageError
    where two files have one name, the files are of two instruments, or there is nothing to reduce.
    """
    names = [os.path.basename(path) for path in paths]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{twice}: two files have this name; give one of them")
    files = [_facts(path) for path in sorted(paths, key=os.path.basename)]
    instruments = sorted({tag for one in files for tag in one.tags & set(SCIENCE_PARAMETERS)})
    if len(instruments) > 1:
        raise UsageError(f"files of {' and '.join(instruments)}; give those of one instrument")
    ready = [one for one in files if one.tags & {"BPM", "PROCESSED"}]
    raw = [one for one in files if one not in ready and not one.tags & {"SPECT", "ACQUISITION"}]
    commands = _commands(instruments[0], raw) if instruments else []
    if not commands:
        raise UsageError(f"none of {len(paths)} files is a raw flat, dark or science frame")
    taken = {path for command in commands for path in command.files} | {one.path for one in ready}
    calibrations = tuple(one.path for one in ready)
    return Plan(instruments[0], calibrations, tuple(commands), len(paths) - len(taken))


def _facts(path: str) -> _File:
    from gdask.instruments import view

    about = view(path)
    return _File(
        path,
        frozenset(about.tags),
        str(about("observation_class")),
        str(about("object")),
        str(about("filter_name", pretty=True)),
        float(about("exposure_time") or 0.0),
    )


def _commands(instrument: str, raw: Sequence[_File]) -> list[Command]:
    on_sky = [one for one in raw if one.observation_class == "science" and "CAL" not in one.tags]
    science = _largest(on_sky, lambda one: (one.filter, one.seconds))
    flats = _largest(
        [one for one in raw if "FLAT" in one.tags and _fits(one, science)], lambda one: one.filter
    )
    standard = _largest(
        [one for one in raw if one.observation_class == "partnerCal" and _fits(one, science)],
        lambda one: (one.object, one.filter, one.seconds),
    )
    options = SCIENCE_PARAMETERS[instrument]
    darks = [one for one in raw if "DARK" in one.tags] if instrument == "F2" else []
    commands = _calibrating(flats, darks, science)
    masked = any(command.name == "bpm" for command in commands)
    commands += [
        Command("standard", _paths(standard), (), masked),
        Command("checkWCS", _paths(science), ("-r", "checkWCS")),
        Command("science", _paths(science), options, masked),
    ]
    return [command for command in commands if command.files]


def _calibrating(
    flats: Sequence[_File], darks: Sequence[_File], science: Sequence[_File]
) -> list[Command]:
    """Give the commands for darks, mask and flat; darks are those of FLAMINGOS-2."""
    wanted = {one.seconds for one in science}
    commands = [
        Command("dark", _paths(one for one in darks if one.seconds in wanted)),
    ]
    short = min((one.seconds for one in darks), default=0.0)
    masking = [one for one in darks if one.seconds == short and short not in wanted]
    if masking and flats:
        recipe = ("-r", "makeProcessedBPM")
        commands.append(Command("bpm", _paths([*flats, *masking]), recipe))
    # In the K bands the closed shutter is the lamp, and darks of its time are taken off.
    lamp = {one.seconds for one in flats if one.filter.startswith("K")}
    taken_off = [one for one in darks if one.seconds in lamp]
    commands.append(Command("flat", _paths([*flats, *taken_off]), (), bool(masking and flats)))
    return commands


def _largest(files: Iterable[_File], group: Callable[[_File], object]) -> list[_File]:
    """Give the files of the group that has most of them; the first of equals."""
    groups: dict[object, list[_File]] = {}
    for one in files:
        groups.setdefault(group(one), []).append(one)
    return max(groups.values(), key=len, default=[])


def _fits(calibration: _File, science: Sequence[_File]) -> bool:
    return not science or calibration.filter == science[0].filter


def _paths(files: Iterable[_File]) -> tuple[str, ...]:
    return tuple(one.path for one in files)


# One command -----------------------------------------------------------------------------------


def measure_command(command: Command, place: Place) -> dict[str, Any]:
    """Run one command in the place's folder and give what it took, as names and numbers.

    seconds: of wall, with the start of the process. user, system: CPU seconds; memory: most bytes,
    both of the tree of processes. others: cores that all else on the machine kept busy meanwhile.
    account: `RunAccount.as_dict()`. floor: seconds, 0 where only headers are read. Raises
    GdaskError with the end of what the command has said where it fails.
    """
    account = place.folder / f"{command.name}.json"
    taken, failure = run_command(command, place, ("--account", account.name))
    if failure and not (account.exists() and account.stat().st_size):
        raise GdaskError(failure)  # where frames were left out, the account is there
    figures = read_json(account)
    for phase in figures["phases"]:
        phase["name"] = phase["name"].partition(":")[0]
    floor = 0.0
    if figures["phases"]:
        floor = floor_seconds(command.files, figures["product"], place.folder, place.workers)
    return taken | {"account": figures, "floor": floor}


def run_command(
    command: Command, place: Place, options: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """Run one command; give what it took but for `account` and `floor`, and how it failed or ''."""
    folder, log = place.folder, place.folder / f"{command.name}.txt"
    (folder / f"{command.name}.list").write_text(
        "".join(f"raw/{os.path.basename(path)}\n" for path in command.files)
    )
    line = [place.python, "-m", "gdask.cli.reduce", f"@{command.name}.list", *command.options]
    if command.with_mask:
        mask = next(folder.glob("*_bpm.fits")).name
        line += ["-p", f"addDQ:user_bpm={mask}"]
    line += ["--cluster", f"{place.kind}:{place.workers}", *options]
    line += ["--memory", place.memory] if place.memory else []
    taken = _watched(line, place, log)
    code = taken.pop("code")
    said = read_text(log, errors="replace").strip().splitlines()[-8:]
    failure = "\n    ".join([f"{command.text()} failed (exit code {code}):", *said])
    return {"name": command.name, **taken}, failure if code else ""


def _watched(line: Sequence[str], place: Place, log: Path) -> dict[str, Any]:
    """Run a command line; give seconds, user, system, others, memory (0: threads) and exit code."""
    environment = os.environ | {"DRAGONSRC": "dragonsrc"}
    if place.python != sys.executable:
        environment.pop("PYTHONPATH", None)  # it would lead to this gdask
    if place.numba_cache:
        environment["NUMBA_CACHE_DIR"] = place.numba_cache
    peak, ended = [0], threading.Event()
    with log.open("w") as stream:
        begun, busy = time.perf_counter(), _busy_seconds()
        process = subprocess.Popen(
            line,
            cwd=place.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
        watch = threading.Thread(target=_watch_memory, args=(process.pid, peak, ended), daemon=True)
        if place.kind != "threads":  # the kernel keeps the exact peak of one process
            watch.start()
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            ended.set()
        seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "seconds": seconds,
        "user": used.ru_utime,
        "system": used.ru_stime,
        "others": max(_busy_seconds() - busy - used.ru_utime - used.ru_stime, 0.0) / seconds,
        "memory": max(peak[0], used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)),
        "code": process.returncode,
    }


def _busy_seconds() -> float:
    """Give the CPU seconds that all cores of the machine have been busy."""
    import psutil

    times = psutil.cpu_times()._asdict()
    # What guests use is in `user` already; a hypervisor's other machines are `steal`.
    return sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def _watch_memory(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Keep in peak[0] the most bytes that a process and its descendants hold together."""
    import psutil

    while not ended.wait(MEMORY_INTERVAL):
        held = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    held += each.memory_info().rss
        peak[0] = max(peak[0], held)


# All commands ----------------------------------------------------------------------------------


def measure_night(
    night: Plan, place: Place, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run all commands of a night in an empty folder, and give what each took.

    `progress` is called with the name of a command before it, and with its seconds after it.
    """
    prepare_folder(night, place.folder)
    taken = []
    for command in night.commands:
        progress(command.name)
        taken.append(measure_command(command, place))
        progress(f"{taken[-1]['seconds']:.1f} s")
    return taken


def prepare_folder(night: Plan, folder: Path) -> None:
    """Make a folder to reduce a night in: links to its files, its own calibration database."""
    from gdask.cal_service import set_local_database

    (folder / "raw").mkdir(parents=True)
    for path in (*night.raw_files, *night.calibrations):
        (folder / "raw" / os.path.basename(path)).symlink_to(os.path.abspath(path))
    (folder / "dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    database = set_local_database(folder / "cal_manager.db")
    database.init()
    for path in night.calibrations:
        database.add_cal(folder / "raw" / os.path.basename(path))


# The floor -------------------------------------------------------------------------------------


def floor_seconds(files: Sequence[str], product: int, folder: Path, workers: int) -> float:
    """Give the seconds to read files and then to write `product` bytes, flushed, with threads."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(_read_through, files))
    target = folder / "floor.bin"
    with target.open("wb", buffering=0) as stream:
        chunk = os.urandom(1 << 20) * (FLOOR_CHUNK >> 20)
        for start in range(0, product, FLOOR_CHUNK):
            stream.write(memoryview(chunk)[: min(FLOOR_CHUNK, product - start)])
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - begun
    target.unlink()
    return seconds


def _read_through(path: str) -> None:
    buffer = bytearray(FLOOR_CHUNK)
    with open(path, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


# The machine -----------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, Any]:
    """Describe this machine and the file system of a folder, without any name of host or path."""
    from gdask.cluster import available_cores, machine_memory

    return {
        "processor": processor(),
        "cores": available_cores(),
        "memory": int(machine_memory()),
        "file_system": file_system(folder),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Give the model of the processor as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def file_system(folder: Path, mounts: Sequence[Any] | None = None) -> str:
    """Give the kind of file system that a folder is on, such as ext4 or lustre.

    mounts: those of the machine (`psutil.disk_partitions`).
    """
    import psutil

    if mounts is None:
        mounts = psutil.disk_partitions(all=True)
    path = folder.resolve()
    above = [one for one in mounts if path.is_relative_to(one.mountpoint)]
    # Of several mounted at one place the last one is seen.
    deepest = sorted(above, key=lambda one: len(Path(one.mountpoint).parts))[-1:]
    return deepest[0].fstype if deepest else ""


def versions() -> Mapping[str, str]:
    """Give versions of gdask, of its code (the beginning of a digest), of Python and libraries."""
    from gdask.reduction.provenance import versions as of_products

    found = of_products()
    return found | {"code": found["code"][:12]}
