"""What SLURM and PBS are asked, and scripts for them. Nothing here knows what a job does.

Every question is asked again for some minutes where no answer comes: a controller that is busy
or restarts is no reason to end.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gdask.model import GdaskError, UsageError, clean

#: Seconds for which a command that fails is asked again, and between two times; seconds that one
#: may take.
PATIENCE, PAUSE, TIMEOUT = 300.0, 5.0, 120.0
#: Elements of an array where the site does not say: SLURM's default of MaxArraySize, and PBS's.
DEFAULT_ARRAY = {"slurm": 1001, "pbs": 10000}
#: Seconds before the wall time at which a job is warned.
WARNING_SECONDS = 120
#: What a batch system says of a request that it will never grant: asked again, it says the same.
_REFUSED = re.compile(
    r"invalid (partition|account|qos|option|feature|time|memory|job array|generic|constraint)"
    r"|invalid .*(specified|specification|limit)|unrecognized option|invalid option|unknown option"
    r"|node configuration is not available|not permitted to use|permission denied|unknown queue"
    r"|unknown resource|illegal (attribute|-)|access denied|time limit .* (invalid|exceeds)"
    r"|unauthorized request|bad ui|qsub: script|memory specification can not be satisfied",
    re.IGNORECASE,
)
#: Reasons for which SLURM lets a job wait for ever.
_NEVER = {
    "DependencyNeverSatisfied", "BadConstraints", "PartitionTimeLimit", "PartitionNodeLimit",
    "InvalidAccount", "InvalidQOS", "AccountNotAllowed",
    "QOSNotAllowed", "AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit",
    "AssocMaxCpuPerJobLimit", "QOSMaxCpuPerJobLimit", "AssocMaxMemPerJob", "QOSMaxMemoryPerJob",
}  # fmt: skip


class Patience(NamedTuple):
    """How long a command that fails is asked again, and how often (s)."""

    seconds: float = PATIENCE
    pause: float = PAUSE
    say: Callable[[str], None] | None = None

    def told(self, command: Sequence[str], said: str) -> None:
        """Say that a command has failed and is asked again."""
        if self.say:
            self.say(f"{command[0]} fails: {clean(said)}; asked again for {self.seconds:.0f} s")


class Request(NamedTuple):
    """What is asked of a batch system for one array. name: unique. elements: how many.

    memory: MiB; minutes: of wall time; None: what the site gives. after: ids of arrays after which
    it may start, however these end. options: lines of the user. command: what an element runs, to
    which its number is added. at_a_time: elements, 0 for no limit (SLURM).
    """

    name: str
    elements: int
    folder: str
    command: tuple[str, ...]
    threads: int = 1
    memory: int | None = None
    minutes: int | None = None
    partition: str = ""
    account: str = ""
    options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    at_a_time: int = 0


class Element(NamedTuple):
    """One element that a batch system has. state: 'waiting' (for others), 'queued', 'running' or
    'never' (it cannot start)."""

    name: str
    id: str
    number: int
    state: str
    reason: str = ""


def user_name() -> str:
    """Give the name of the user of this process, as batch systems know it."""
    return pwd.getpwuid(os.geteuid()).pw_name


class Refused(GdaskError):
    """A request that a batch system will never grant, or no batch system."""


def ask(command: Sequence[str], patience: Patience, hopeless: str = "") -> str:
    """Run a command of a batch system, again and again, and give what it prints.

    hopeless: what it says when it will never answer; then '' is given. Raises Refused, and
    GdaskError where it fails until patience ends.
    """
    end, is_told = time.monotonic() + patience.seconds, False
    while True:
        is_done, said = _asked_once(command)
        if is_done:
            return said
        if hopeless and hopeless in said:
            return ""
        if time.monotonic() >= end:
            raise _no_answer(command, patience, said)
        if not is_told:
            patience.told(command, said)
        is_told = True
        time.sleep(patience.pause)


def _asked_once(command: Sequence[str]) -> tuple[bool, str]:
    """Run a command once: whether it succeeded, and what it said."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise Refused(
            f"no command {command[0]} on this machine; run gdask where jobs are submitted from"
        ) from None
    except subprocess.TimeoutExpired:
        return False, f"no answer within {TIMEOUT:.0f} s"
    if done.returncode == 0:
        return True, done.stdout
    said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    if _REFUSED.search(said):
        raise Refused(f"{command[0]} refuses: {clean(said)}")
    return False, said


def _no_answer(command: Sequence[str], patience: Patience, said: str) -> GdaskError:
    return GdaskError(
        f"{command[0]} has failed for {patience.seconds:.0f} s: {clean(said)}; the same line again "
        "goes on"
    )


def check_installed(system: Slurm | Pbs) -> None:
    """Raise UsageError where the commands of a batch system are not on this machine."""
    for command in system.commands:
        if shutil.which(command) is None:
            raise UsageError(
                f"{command}: not found; run gdask where jobs are submitted from, "
                "or leave out --submit"
            )


class Slurm:
    """SLURM, by sbatch, squeue, scontrol and scancel."""

    name = "slurm"
    commands = ("sbatch", "squeue", "scontrol", "scancel")

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._configuration = ""

    def _setting(self, name: str) -> str:
        """Give a setting of the site, '' where it has none; it is asked once for all."""
        if not self._configuration:
            self._configuration = ask(["scontrol", "show", "config"], self.patience)
        found = re.search(rf"^{name}\s*=\s*(\S+)", self._configuration, re.MULTILINE)
        return found[1] if found else ""

    def max_array(self) -> int:
        """Give how many elements an array may have: the site's MaxArraySize."""
        found = self._setting("MaxArraySize")
        return max(1, int(found)) if found.isdigit() else DEFAULT_ARRAY["slurm"]

    def where(self) -> str:
        """Give the name of the cluster."""
        return self._setting("ClusterName")

    def script(self, request: Request) -> str:
        """Give the text of the script of an array."""
        lines = [
            f"--job-name={request.name}",
            f"--array=0-{request.elements - 1}"
            + (f"%{request.at_a_time}" if request.at_a_time else ""),
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={request.threads}",
            *([f"--mem={request.memory}M"] if request.memory else []),
            *([f"--time={request.minutes}"] if request.minutes else []),
            *([f"--partition={request.partition}"] if request.partition else []),
            *([f"--account={request.account}"] if request.account else []),
            f"--output={_slurm_path(request.folder)}/logs/{request.name}-%a.log",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{_warning(request.minutes)}",
            *request.options,
        ]
        head = "".join(f"#SBATCH {_quoted(line)}\n" for line in lines)
        return _script(head, request, "$SLURM_ARRAY_TASK_ID")

    def submit(self, path: Path, request: Request) -> str:
        """Submit a script and give the id of its array.

        sbatch may fail though the job was taken: before it is asked again, the queue is asked.
        """
        line = ["sbatch", "--parsable", f"--chdir={request.folder}"]
        if request.after:
            line.append(f"--dependency=afterany:{':'.join(request.after)}")
        line.append(str(path))
        end, is_told = time.monotonic() + self.patience.seconds, False
        while True:
            is_done, said = _asked_once(line)
            if is_done:
                return said.strip().splitlines()[-1].partition(";")[0]
            taken = [one.id for one in self.queued(user_name()) if one.name == request.name]
            if taken:
                return taken[0]
            if time.monotonic() >= end:
                raise _no_answer(line, self.patience, said)
            if not is_told:
                self.patience.told(line, said)
            is_told = True
            time.sleep(self.patience.pause)

    def queued(self, user: str) -> list[Element]:
        """Give all elements of a user that wait or run, of any campaign."""
        line = ["squeue", "-h", "-r", "-u", user, "-o", "%F|%K|%T|%r|%j"]
        rows = (text.split("|", 4) for text in ask(line, self.patience).splitlines())
        return [
            Element(name, id_, int(index) if index.isdigit() else 0, _state(state, why), why)
            for id_, index, state, why, name in (row for row in rows if len(row) == 5)
        ]

    def cancel(self, elements: Iterable[Element]) -> None:
        """Cancel elements that wait. One that has started in the meantime goes on."""
        names = [f"{one.id}_{one.number}" for one in elements]
        for begin in range(0, len(names), 200):
            line = ["scancel", "--state=PENDING", *names[begin : begin + 200]]
            ask(line, self.patience)

    def ended(self, ids: Sequence[str]) -> dict[tuple[str, int], str]:
        """Give how elements of these arrays have ended, as far as the site keeps account."""
        if not ids:
            return {}
        line = ["sacct", "-n", "-X", "-P", "-j", ",".join(ids), "-o", "JobID,State"]
        text = ask(line, self.patience, hopeless="disabled")
        found = {}
        for row in text.splitlines():
            name, _, state = row.partition("|")
            id_, _, index = name.partition("_")
            if index.isdigit():
                found[id_, int(index)] = state.split()[0] if state else ""
        return found


class Pbs:
    """PBS Professional and OpenPBS, by qsub, qstat and qdel."""

    name = "pbs"
    commands = ("qsub", "qstat", "qdel")

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()

    def max_array(self) -> int:
        """Give how many elements an array may have: the server's max_array_size."""
        text = ask(["qstat", "-B", "-f"], self.patience)
        found = re.search(r"max_array_size\s*=\s*(\d+)", text)
        return max(1, int(found[1]) if found else DEFAULT_ARRAY["pbs"])

    def where(self) -> str:
        """Give nothing: ids of PBS have the name of its server in them."""
        return ""

    def script(self, request: Request) -> str:
        """Give the text of the script of an array; PBS knows no array of one."""
        memory = f":mem={request.memory}mb" if request.memory else ""
        time_ = request.minutes
        lines = [
            f"-N {request.name}",
            *([f"-J 0-{request.elements - 1}"] if request.elements > 1 else []),
            f"-l select=1:ncpus={request.threads}{memory}",
            *([f"-l walltime={time_ // 60:02d}:{time_ % 60:02d}:00"] if time_ else []),
            *([f"-q {request.partition}"] if request.partition else []),
            *([f"-A {request.account}"] if request.account else []),
            "-j oe",
            "-r y",
            "-V",
            *request.options,
        ]
        head = "".join(f"#PBS {line}\n" for line in lines)
        return _script(head, request, "${PBS_ARRAY_INDEX:-0}")

    def submit(self, path: Path, request: Request) -> str:
        """Submit a script and give the id of its array."""
        line = ["qsub", "-o", f"{request.folder}/logs/"]
        if request.after:
            line += ["-W", f"depend=afterany:{':'.join(request.after)}"]
        return ask([*line, str(path)], self.patience).strip().splitlines()[-1]

    def queued(self, user: str) -> list[Element]:
        """Give all elements of a user that wait or run, of any campaign."""
        return parse_qstat(ask(["qstat", "-t", "-f", "-u", user], self.patience))

    def cancel(self, elements: Iterable[Element]) -> None:
        """Cancel elements that wait."""
        for one in elements:
            name = one.id.replace("[]", f"[{one.number}]")
            ask(["qdel", name], self.patience)

    def ended(self, ids: Sequence[str]) -> dict[tuple[str, int], str]:
        """Nothing: PBS keeps no account that is the same at all sites."""
        return {}


def parse_qstat(text: str) -> list[Element]:
    """Give the elements in what `qstat -t -f` prints."""
    found = []
    states = {"R": "running", "E": "running", "X": "", "F": "", "C": "", "B": ""}
    for block in re.split(r"^Job Id: ", text, flags=re.MULTILINE)[1:]:
        block = block.replace("\n\t", "")
        values = dict(re.findall(r"^\s+(\w+)(?:\.\w+)? = (.*)$", block, re.MULTILINE))
        id_ = block.split("\n", 1)[0].strip()
        index = re.search(r"\[(\d+)\]", id_)
        letter = values.get("job_state", "Q")
        waits = letter == "H" and "depend" in values
        state = states.get(letter, "waiting" if waits else "queued")
        if state and "[]" not in id_:
            plain = re.sub(r"\[\d+\]", "[]", id_)
            found.append(
                Element(values.get("Job_Name", ""), plain, int(index[1]) if index else 0, state)
            )
    return found


SYSTEMS: dict[str, type[Slurm | Pbs]] = {"slurm": Slurm, "pbs": Pbs}


def _state(state: str, reason: str) -> str:
    if state != "PENDING":
        return "running"
    if reason in _NEVER:
        return "never"
    return "waiting" if reason == "Dependency" else "queued"


def _warning(minutes: int | None) -> int:
    """Give the seconds before its end at which a job is warned: at most a tenth of its time."""
    return min(WARNING_SECONDS, max(10, 6 * minutes)) if minutes else WARNING_SECONDS


def _script(head: str, request: Request, index: str) -> str:
    command = " ".join(shlex.quote(word) for word in request.command)
    return (
        f"#!/bin/sh\n{head}\n# One element is one job of the campaign. It looks itself at what it "
        f"needs.\ncd {shlex.quote(request.folder)} || exit 1\nexec {command} {index}\n"
    )


def _slurm_path(path: str) -> str:
    return path.replace("\\", "\\\\").replace("%", "%%")


def _quoted(line: str) -> str:
    return f'"{line}"' if " " in line and '"' not in line and not line.startswith("-C ") else line
