"""Write gdask/engine/kernels.toml: which compiled functions each recipe needs, and in what order.

    python -m benchmarks.kernel_list

Recipes of both instruments reduce small simulated nights, each in a process of its own, which says
what it has called. Run it after a change of a kernel's name or arguments or of a recipe;
tests/engine/test_warm_up.py says when it is due. It takes two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from astropy.table import Table

from gdask.engine.warm_up import LIST
from gdask.kernels.compiled_files import Use
from gdask.simulate import simulate_f2, simulate_gsaoi

_REDUCE = """
import json, sys
from gdask.cli.reduce import main
from numba.core import event
from gdask.kernels.compiled import ACCOUNT
with event.install_recorder("numba:compile") as recorder:
    code = main(["-q", "--cluster", "threads:1", *json.loads(sys.argv[1])])
print("ACCOUNT", json.dumps([list(ACCOUNT.used), len(recorder.buffer)]))
sys.exit(code)
"""
_FIX = ("-p", "prepare:bad_wcs=fix", "skyCorrect:offset_sky=False")
_MASK = ("-p", "addDQ:user_bpm=S20131129S0320_bpm.fits")
_F2_FLATS = ("flat_on", "flat_off")


class Reduction(NamedTuple):
    """One command: where the files are, the recipe's module, kinds of files, more arguments."""

    night: str
    module: str
    kinds: tuple[str, ...]
    more: tuple[str, ...] = ()


class Account(NamedTuple):
    """What a command has called, in order, and how many compilations numba has begun for it."""

    used: list[Use]
    compilations: int


#: In an order in which each command finds its calibrations.
REDUCTIONS = (
    Reduction("gsaoi", "gsaoi_dark", ("dark",)),
    Reduction("gsaoi", "gsaoi_flat", ("flat_on", "flat_off")),
    Reduction("gsaoi", "gsaoi_flat", ("flat_on", "flat_off"), ("-r", "makeProcessedBPM")),
    Reduction("gsaoi", "gsaoi_image", ("std",), _FIX),
    Reduction("gsaoi", "gsaoi_image", ("science", "sky"), _FIX),
    Reduction("gsaoi", "gsaoi_image", ("science", "sky"), ("-r", "ultradeep", *_FIX)),
    Reduction("f2", "f2_dark", ("long",)),
    Reduction("f2", "f2_flat", (*_F2_FLATS, "short"), ("-r", "makeProcessedBPM")),
    Reduction("f2", "f2_flat", _F2_FLATS, _MASK),
    Reduction("f2", "f2_image", ("science",), _MASK),
    Reduction("f2", "f2_image", ("science",), ("-r", "ultradeep", *_MASK)),
)


def simulate(folder: Path) -> None:
    """Write the nights into folders of their names."""
    simulate_gsaoi(folder / "gsaoi", size=320, n_flats=3, n_darks=3, n_science=5, n_sky=4, n_std=3)
    simulate_f2(
        folder / "f2",
        size=288,
        n_science=6,
        n_darks=3,
        n_short_darks=3,
        n_lamps=3,
        field="crowded",
    )
    for night in {each.night for each in REDUCTIONS}:
        (folder / night / "dragonsrc").write_text(
            "[calibs]\ndatabases = cal_manager.db get store\n"
        )
    bpm = next((folder / "gsaoi" / "raw").glob("bpm*.fits"))
    _python(
        "from gdask.cli import main; main(['caldb', 'add', *sys.argv[1:]])", bpm.parents[1], bpm
    )


def files_of(night: Path, kinds: tuple[str, ...]) -> list[str]:
    """Give the files of a night of some kinds; darks of F2 are 'long' or 'short'."""
    rows = Table.read(night / "truth" / "frames.ecsv")

    def kind_of(row: Table.Row) -> str:
        is_f2_dark = row["kind"] == "dark" and night.name == "f2"
        return ("short" if row["exptime"] == 2 else "long") if is_f2_dark else row["kind"]

    return [f"raw/{row['file']}" for kind in kinds for row in rows if kind_of(row) == kind]


def account_of(reduction: Reduction, folder: Path) -> Account:
    """Run a command and say what it has called and compiled."""
    night = folder / reduction.night
    arguments = [*files_of(night, reduction.kinds), *reduction.more]
    text = _python(_REDUCE, night, json.dumps(arguments))
    (line,) = (line for line in text.splitlines() if line.startswith("ACCOUNT "))
    used, compilations = json.loads(line.removeprefix("ACCOUNT "))
    return Account([Use(*use) for use in used], compilations)


def _python(code: str, folder: Path, *arguments: object) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"DRAGONSRC": str(folder / "dragonsrc")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments))}: {done.stderr[-2000:]}")
    return done.stdout


def as_toml(recipes_of: Mapping[Use, list[str]]) -> str:
    """Give the list as text: functions in order of need, with the recipes that call them."""
    blocks = [
        f'[[kernel]]\nmodule = "{use.module}"\nfunction = "{use.function}"\n'
        f'types = """\n{_wrapped(use.types)}"""\nrecipes = {json.dumps(recipes)}\n'
        for use, recipes in recipes_of.items()
    ]
    return "# Written by `python -m benchmarks.kernel_list`.\n\n" + "\n".join(blocks)


def _wrapped(text: str) -> str:
    """Break a text into lines; a line of TOML that ends with a backslash goes on in the next."""
    return text.replace("), ", "), \\\n")


def main() -> int:
    """Write the list."""
    recipes_of: dict[Use, list[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulate(folder)
        for reduction in REDUCTIONS:
            used = account_of(reduction, folder).used
            print(f"{reduction.module} {' '.join(reduction.more)}: {len(used)}", flush=True)
            for use in used:
                recipes = recipes_of.setdefault(use, [])
                if reduction.module not in recipes:
                    recipes.append(reduction.module)
    LIST.write_text(as_toml(recipes_of))
    return 0


if __name__ == "__main__":
    sys.exit(main())
