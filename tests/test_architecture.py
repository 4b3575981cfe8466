"""Rules of docs/architecture.md: imports between rooms, where is computed, lengths of code."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Night

from gdask.cli import main as cli_main

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "gdask": ROOT / "gdask",
    "gdask.recipes": ROOT / "recipes",
    "gdask.cluster": ROOT / "cluster",
}

#: Rooms in the order in which imports may look back; rooms of one row may use each other.
ROWS = (
    ("types", "model", "params"),
    ("kernels", "headers", "logutils", "cluster"),
    ("instruments",),
    ("io", "caldb", "cal_service", "dataselect"),
    ("steps", "engine"),
    ("recipes", "reduction", "plot"),
    ("campaign",),
    ("report",),
    ("cli",),
)
LEVELS = {room: level for level, row in enumerate(ROWS) for room in row}
#: Rooms that must not know the pipeline, or not all that their row would allow.
ONLY = {
    "simulate": {
        "types",
        "model",
    },  # a simulator that shares the pipeline's geometry proves nothing
    "cluster": {"types", "model", "logutils"},
    "params": {"types", "model"},
    "recipes": {"steps"},  # what an astronomer copies needs nothing else
    "io": {"types", "model", "kernels", "headers", "instruments"},
    "plot": {"types", "model", "kernels", "headers", "instruments", "io"},  # it shows what is there
}
MAX_BODY_LINES, MAX_MODULE_LINES = 60, 450


class Module(NamedTuple):
    """One source file of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first name below gdask; empty for gdask itself."""
        return room_of(self.name)


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@functools.cache
def modules() -> tuple[Module, ...]:
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found.append(Module(name, path, ast.parse(path.read_text())))
    return tuple(found)


def rooms(*names: str) -> list[Module]:
    """Give the modules of these rooms."""
    found = [module for module in modules() if module.room in names]
    assert found, names
    return found


def imported(tree: ast.AST, for_type_checkers: bool = False) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of all imports, also those inside functions.

    for_type_checkers: whether also what is imported for type checkers alone.
    """
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if _for_type_checkers(branch) and not for_type_checkers
        for statement in branch.body
        for node in ast.walk(statement)
    }  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _for_type_checkers(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def places(module: Module, nodes: Iterable[object]) -> list[str]:
    """Give file and line of nodes of a module, as editors take them, with their text."""
    return [
        f"{module.path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)[:60]}" for node in nodes
    ]  # type: ignore


def calls(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def test_the_checks_see_what_they_look_for() -> None:
    tree = ast.parse("""
import dask
if TYPE_CHECKING:
    import xarray
def f(a):
    "Doc."
    from gdask.io import read
    x.values
    return dask.compute(a.values())
""")
    assert [name for name, _ in imported(tree)] == ["dask", "gdask.io.read"]
    assert sorted(name for name, _ in imported(tree, True)) == ["dask", "gdask.io.read", "xarray"]
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}, "e": {"f"}, "f": {"g"}, "g": {"e"}}
    assert circles(graph) == [["b", "c"], ["e", "f", "g"]]
    (function,) = functions(tree)
    assert body_length(function) == 3
    assert sum(calls(node, {"dask.compute"}) for node in ast.walk(function)) == 1
    assert sorted(computing_attributes(tree)) == ["dask.compute", "x.values"]


# Rooms -----------------------------------------------------------------------------------------


def test_every_module_has_a_room() -> None:
    assert {module.room for module in modules()} <= {"", "simulate", *LEVELS}
    assert len(modules()) > 60  # the walk has found the package


def test_imports_point_one_way() -> None:
    wrong = []
    for module in modules():
        if module.room:  # not gdask/__init__.py, the table of public names
            wrong += [
                f"{module.name}:{line} imports {name}"
                for name, line in imported(module.tree)
                if name.startswith("gdask.")
                and name != "gdask.__version__"
                and room_of(name) not in may_use(module.room)
            ]
    assert wrong == []


def may_use(room: str) -> set[str]:
    """Give the rooms from which a room may import."""
    if room in ONLY:
        return ONLY[room] | {room}
    left = {other for other, level in LEVELS.items() if level <= LEVELS[room]}
    return left | {"simulate"} if room == "cli" else left


def import_graph() -> dict[str, set[str]]:
    """Give the modules that each module imports: at its top, in functions, for type checkers.

    `from package.module import name` is an import of the module, not of the package.
    """
    names = {module.name for module in modules()}
    graph: dict[str, set[str]] = {}
    for module in modules():
        graph[module.name] = set()
        for name, _ in imported(module.tree, for_type_checkers=True):
            while name and name not in names:
                name = name.rpartition(".")[0]
            graph[module.name] |= {name} - {"", module.name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Find groups of modules that import one another, directly or through others."""
    reached: dict[str, set[str]] = {}
    for start, neighbours in graph.items():
        found: set[str] = set()
        ahead = list(neighbours)
        while ahead:
            name = ahead.pop()
            if name not in found:
                found.add(name)
                ahead += graph[name]
        reached[start] = found
    groups = {
        tuple(sorted(name for name in reached[start] if start in reached[name]))
        for start in graph
        if start in reached[start]
    }
    return sorted(list(group) for group in groups)


def test_no_modules_import_one_another() -> None:
    graph = import_graph()
    assert sum(map(len, graph.values())) > 200  # the walk has found the imports
    assert circles(graph) == []


#: What compiles kernels and keeps compiled code.
COMPILERS = ("gdask.kernels.compiled", "gdask.kernels.compiled_files")


def test_kernels_are_numpy_in_numpy_out() -> None:
    """They use no scheduler, no labelled arrays, no files and no log.

    Of astropy they use headers and WCS objects, as values. `compiled` and `compiled_files` are
    no kernels, but what compiles them and keeps that on disk.
    """
    strangers = {"dask", "distributed", "xarray", "logging", "os", "pathlib", "rich", "sqlalchemy"}
    found = []
    for module in rooms("kernels"):
        if module.name in COMPILERS:
            continue
        found += [
            f"{module.name}:{line} imports {name}"
            for name, line in imported(module.tree)
            if name.split(".")[0] in strangers
            or name.startswith("astropy")
            and not name.startswith(("astropy.io.fits", "astropy.wcs", "astropy.units"))
        ]
        found += places(
            module, (n for n in ast.walk(module.tree) if calls(n, {"print", "open", "fits.open"}))
        )
    assert found == []


def test_compiled_kernels_release_the_lock_and_keep_their_bits() -> None:
    """Threads run side by side, and no result depends on their number."""
    found = []
    for module in rooms("kernels"):
        for function in functions(module.tree):
            for decorator in function.decorator_list:
                if "jit" in ast.unparse(decorator):
                    given = {
                        k.arg: ast.unparse(k.value) for k in getattr(decorator, "keywords", ())
                    }
                    if given.get("nogil") != "True" or {"parallel", "fastmath"} & set(given):
                        found.append(f"{module.name}.{function.name}: {given}")
    assert found == []


def computing_attributes(tree: ast.Module) -> list[str]:
    """Find attributes that compute.

    `.values()`, called, is a mapping's; `.values`, read, is xarray's.
    """
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"compute", "load", "persist", "values", "to_numpy"}
        and not (node.attr == "values" and id(node) in called)
    ]


def test_steps_and_recipes_never_compute() -> None:
    found = {}
    for module in rooms("steps", "recipes"):
        found[module.name] = computing_attributes(module.tree)
        found[module.name] += places(
            module, (n for n in ast.walk(module.tree) if calls(n, {"compute", "persist"}))
        )
    assert {name: nodes for name, nodes in found.items() if nodes} == {}


def test_only_the_run_computes() -> None:
    """`gdask.write` is the one exception: to compute one Frame is its purpose."""
    found = {
        f"{module.name}.{function.name}"
        for module in modules()
        for function in functions(module.tree)
        if any(
            calls(n, {"dask.compute", "dask.persist", "client.compute"}) for n in ast.walk(function)
        )
    }
    assert {name for name in found if not name.startswith("gdask.engine.compute.")} <= {
        "gdask.io.write.write"
    }


# The road of a night ---------------------------------------------------------------------------


def test_few_rooms_in_few_layers() -> None:
    assert len({module.room for module in modules()} - {""}) <= 21
    assert len(ROWS) <= 9


#: A program that runs a command and prints the modules whose functions the client enters in it. It
#: leaves imports out, and work of tasks, which is on other threads.
PRINT_ENTERED_MODULES = """
import sys
from gdask import cli

seen = set()

def profile(frame, event, argument):
    name = frame.f_globals.get("__name__", "")
    if event != "call" or not name.startswith("gdask") or name in seen:
        return
    caller = frame
    while caller is not None:
        if caller.f_code.co_name == "<module>" and caller.f_globals.get("__name__") != "__main__":
            return
        caller = caller.f_back
    seen.add(name)

if __name__ == "__main__":
    sys.setprofile(profile)
    code = cli.main(sys.argv[1:])
    sys.setprofile(None)
    print("ENTERED", *sorted(seen))
    sys.exit(code)
"""
#: The most modules between the command and the written stack. 45 were wanted; docs/architecture.md
#: says what prevents it.
MAX_ENTERED_MODULES = 88


def test_a_reader_of_a_night_enters_few_modules(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAGONSRC", str(tmp_path / "dragonsrc"))
    Path("dragonsrc").write_text("[calibs]\ndatabases = cal_manager.db get store\n")
    Path("entered.py").write_text(PRINT_ENTERED_MODULES)
    assert cli_main(["caldb", "init"]) == 0
    assert cli_main(["reduce", "-q", *night.flat_on, *night.flat_off]) == 0
    command = [
        "reduce",
        *night.sequence,
        "-p",
        "prepare:bad_wcs=fix",
        "skyCorrect:offset_sky=False",
    ]
    done = subprocess.run(
        [sys.executable, "entered.py", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    entered = done.stdout.partition("ENTERED ")[2].split()
    assert len(entered) > 30  # the count has seen the night
    assert len(entered) <= MAX_ENTERED_MODULES, entered


# Safety ----------------------------------------------------------------------------------------


def test_text_is_never_code_and_nothing_is_unpickled() -> None:
    """Compiled code alone is kept as numba keeps it: pickled, in a folder of the user's."""
    unpicklers = {"pickle", "dill", "joblib", "shelve", "marshal"}
    code = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "os.system"}
    found = []
    for module in modules():
        found += [
            f"{module.name}:{line} imports {name}"
            for name, line in imported(module.tree)
            if name.split(".")[0] in unpicklers and module.name != COMPILERS[0]
        ]
        found += places(module, (n for n in ast.walk(module.tree) if calls(n, code)))
        found += places(
            module,
            (
                n
                for n in ast.walk(module.tree)
                if isinstance(n, ast.keyword)
                and (
                    n.arg == "shell" or n.arg == "allow_pickle" and ast.unparse(n.value) != "False"
                )
            ),
        )
    assert found == []


#: What the system or gdask itself has written, or what came with the package.
READ_TEXT_THEMSELVES = {
    "gdask.model",
    "gdask.caldb.association",
    "gdask.engine.account",
    "gdask.engine.checkpoint",
    "gdask.engine.warm_up",
    "gdask.instruments",
    "gdask.instruments.gemini",
    "gdask.io.lazy_arrays",
    "gdask.io.process_memory",
    "gdask.kernels.compiled_files",
    "gdask.reduction.benchmark",
    "gdask.reduction.gates",
    "gdask.report.pages",
    "gdask.cluster.__main__",
    "gdask.cluster.profiles",
}


def test_text_files_are_read_by_one_function() -> None:
    """A pipe is not waited for, a device not read for ever, nesting no traceback."""
    found = [
        place
        for module in modules()
        if module.name not in READ_TEXT_THEMSELVES and "simulate" not in module.name
        for place in places(
            module,
            (
                n
                for n in ast.walk(module.tree)
                if isinstance(n, ast.Attribute)
                and (n.attr == "read_text" or ast.unparse(n) in {"json.load", "tomllib.load"})
            ),
        )
    ]
    assert found == []


def test_files_are_opened_with_astropy_by_one_function() -> None:
    """In a damaged file astropy goes round for ever; checksums go into what was just written."""
    found = {
        module.name
        for module in modules()
        if "simulate" not in module.name
        and any(calls(n, {"fits.open"}) for n in ast.walk(module.tree))
    }
    assert found == {"gdask.headers.reading", "gdask.io.checksum"}


# Size and annotations --------------------------------------------------------------------------


def test_modules_and_functions_are_short() -> None:
    long = {
        m.name: n
        for m in modules()
        if (n := len(m.path.read_text().splitlines())) > MAX_MODULE_LINES
    }
    long |= {
        f"{m.name}.{f.name}": n
        for m in modules()
        for f in functions(m.tree)
        if (n := body_length(f)) > MAX_BODY_LINES
    }
    assert long == {}, (
        f"at most {MAX_MODULE_LINES} lines for a module, {MAX_BODY_LINES} for a function's body"
    )


def test_function_bodies_are_short_in_the_median() -> None:
    lengths = sorted(
        body_length(function) for module in modules() for function in functions(module.tree)
    )
    assert lengths[len(lengths) // 2] <= 12


def test_every_argument_is_annotated() -> None:
    """Recipes have no annotations: astronomers read and copy them."""
    bare = []
    for module in modules():
        for function in functions(module.tree) if module.room != "recipes" else ():
            given = function.args
            arguments = [
                *given.posonlyargs,
                *given.args,
                *given.kwonlyargs,
                given.vararg,
                given.kwarg,
            ]
            bare += [
                f"{module.name}:{a.lineno} {function.name}({a.arg})"
                for a in arguments
                if a and a.annotation is None and a.arg not in {"self", "cls"}
            ]
            bare += [f"{module.name}:{function.lineno} {function.name} ->"] * (
                function.returns is None
            )
    assert bare == []


def test_every_module_says_what_it_is_for() -> None:
    assert [m.name for m in modules() if m.tree.body and not ast.get_docstring(m.tree)] == []


# Weight ----------------------------------------------------------------------------------------

HEAVY = (
    "astropy",
    "dask",
    "distributed",
    "xarray",
    "numba",
    "scipy",
    "reproject",
    "sqlalchemy",
    "matplotlib",
    "jinja2",
    "pandas",
)


#: What header commands and `import gdask` may load; each must leave what is heavy alone.
LIGHT = (
    "gdask",
    "gdask.types",
    "gdask.model",
    "gdask.params",
    "gdask.steps",
    "gdask.dataselect.selection",
    "gdask.dataselect",
    "gdask.instruments",
    "gdask.headers",
    "gdask.logutils",
    "gdask.cal_service",
    "gdask.cluster",
    "gdask.cli",
    "gdask.cli.typewalk",
    "gdask.cli.showd",
    "gdask.cli.dataselect",
    "gdask.cli.caldb",
    "gdask.cli.reduce",
    "gdask.cli.showpars",
    "gdask.cli.showrecipes",
    "gdask.cli.simulate",
    "gdask.simulate",
    "gdask.cli.regions",
    "gdask.cli.verify",
    "gdask.cli.replay",
    "gdask.cli.report",
    "gdask.report",
    "gdask.cli.benchmark",
    "gdask.cli.show",
    "gdask.plot",
)


def test_importing_is_light() -> None:
    """A command that reads headers must not wait for modules that read pixels.

    One process imports all light modules, one after another.
    """
    code = (
        f"import importlib, sys\nfor name in {LIGHT}:\n    importlib.import_module(name)\n"
        f"    print(name, *sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == list(LIGHT)


def test_a_recipe_of_headers_loads_what_frames_need_and_no_more(
    night: Night, tmp_path: Path
) -> None:
    """xarray loads dask.array and some of scipy; compiled code and astropy are not needed."""
    code = (
        f"import sys; from gdask import cli; code = cli.main(['reduce', '-r', 'checkWCS', "
        f"*{night.science!r}]); print('HEAVY', *sorted({{'astropy', 'numba', 'reproject', "
        "'distributed', 'scipy.ndimage', 'scipy.optimize', 'scipy.spatial'} & set(sys.modules))); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY"


@pytest.mark.parametrize(
    "arguments",
    [
        ["typewalk", "-d", "."],
        ["showd", "S1.fits", "-d", "object"],
        ["dataselect", "--tags", "GSAOI", "S1.fits"],
    ],
)
def test_header_commands_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    from astropy.io import fits

    phu = fits.PrimaryHDU()
    phu.header.update(
        {"INSTRUME": "GSAOI", "OBJECT": "NGC 5128", "OBSTYPE": "OBJECT", "OBSCLASS": "science"}
    )
    fits.HDUList([phu, fits.ImageHDU()]).writeto(tmp_path / "S1.fits")
    code = (
        f"import sys; from gdask import cli; code = cli.main({arguments!r}); "
        f"print('HEAVY', *sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr.split()) == (0, ["HEAVY"])
    assert "S1.fits" in done.stdout
