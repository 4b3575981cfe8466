"""Commands of a SLURM that only remembers: for tests of what is asked of it, and how often.

`install` writes sbatch, squeue, scontrol and scancel into a folder; `Fake` looks at what they have
been told, and tells them how to answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct")

PROGRAM = """#!{python}
import json, os, re, signal, sys
from pathlib import Path
home = Path({home!r})
state = json.loads((home / "state.json").read_text())
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
state["calls"].append([name, *words])

def leave(code=0, text="", error=""):
    (home / "state.json").write_text(json.dumps(state))
    sys.stdout.write(text)
    sys.stderr.write(error)
    sys.exit(code)

fails = state["fails"].get(name, [])
failure = fails.pop(0) if fails else ""
if failure and failure not in ("taken", "killed"):
    leave(1, error=f"{{name}}: error: {{failure}}\\n")
if name == "scontrol":
    leave(text=f"ClusterName = {{state['cluster']}}\\nMaxArraySize = {{state['max_array']}}\\n")
if name == "squeue":
    rows = [f"{{job['id']}}|{{n}}|{{one[0]}}|{{one[1]}}|{{job['name']}}\\n"
            for job in state["jobs"] for n, one in enumerate(job["elements"]) if one[0] != "ENDED"]
    leave(text="".join(rows))
if name == "scancel":
    for word in words:
        found = re.fullmatch(r"(\\d+)_(\\d+)", word)
        for job in state["jobs"]:
            if found and job["id"] == found[1] and job["elements"][int(found[2])][0] == "PENDING":
                job["elements"][int(found[2])] = ["ENDED", ""]
    leave()
if name == "sbatch":
    script = Path(words[-1]).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    after = [word.partition("afterany:")[2].split(":") for word in words if "afterany" in word]
    first, last = options["array"].split("-")
    job = {{"id": str(len(state["jobs"]) + 1), "name": options["job-name"], "options": options,
           "after": after[0] if after else [], "script": words[-1],
           "elements": [["PENDING", "Dependency" if after else "Priority"]] * (int(last) + 1)}}
    state["jobs"].append(job)
    if failure == "killed":
        (home / "state.json").write_text(json.dumps(state))
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit(1)
    if failure == "taken":
        leave(1, error="sbatch: error: Socket timed out on send/recv operation\\n")
    leave(text=job["id"] + "\\n")
if name == "sacct" and state["ends"]:
    leave(text=state["ends"])
leave(1, error="Slurm accounting storage is disabled\\n")
"""


class Fake:
    """A SLURM that only remembers. Its commands are in `folder`, to be put on PATH."""

    def __init__(self, folder: Path, max_array: int = 1001) -> None:
        self.folder = folder
        folder.mkdir()
        self._write(
            {
                "jobs": [],
                "calls": [],
                "fails": {},
                "max_array": max_array,
                "cluster": "one",
                "ends": "",
            }
        )
        for name in COMMANDS:
            path = folder / name
            path.write_text(PROGRAM.format(python=sys.executable, home=str(folder)))
            path.chmod(0o755)

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())

    def _write(self, state: dict[str, Any]) -> None:
        (self.folder / "state.json").write_text(json.dumps(state))

    def fail(self, command: str, *how: str) -> None:
        """Let the next calls of a command fail with these words.

        'taken': sbatch fails though it took the job; 'killed': it kills who has called it.
        """
        state = self.state()
        state["fails"][command] = list(how)
        self._write(state)

    def change(self, element: str, state: str, reason: str = "") -> None:
        """Change the state of an element, ID_N."""
        found = self.state()
        id_, _, number = element.partition("_")
        job = next(one for one in found["jobs"] if one["id"] == id_)
        job["elements"][int(number)] = [state, reason]
        self._write(found)

    def answer(self, **changes: Any) -> None:
        """Change the name of the cluster, what sacct says (ends), the jobs."""
        self._write(self.state() | changes)

    def submitted(self) -> list[str]:
        """Give the jobs of the campaign in the queue, by the lists beside the scripts."""
        found = []
        for job in self.state()["jobs"]:
            script = Path(job["script"])
            jobs = json.loads((script.parent / "arrays" / f"{job['name']}.json").read_text())[
                "jobs"
            ]
            found += [
                name
                for name, one in zip(jobs, job["elements"], strict=True)
                if one[0] != "ENDED" and name != "(tables)"
            ]
        return found

    def calls(self, command: str) -> int:
        return sum(call[0] == command for call in self.state()["calls"])
