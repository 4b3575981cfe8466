"""Recipes: found by the tags of the first file, by name, or in a file of the user's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import pkgutil
import shlex
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from types import ModuleType

from gdask import steps
from gdask.instruments import tags
from gdask.model import GdaskError, UsageError, why_no_file
from gdask.params import closest, snake_case
from gdask.types import Frame, Frames

Recipe = Callable[..., object]
#: Shipped recipes that read no pixels.
_HEADER_RECIPES = {"check_wcs"}


def find_recipe(name: str | None, tags: AbstractSet[str]) -> Recipe:
    """Find the recipe `name` for files with these tags.

    None is the default one, 'file.py:function' a recipe of the user's. Raises UsageError with the
    names there are, and the closest one.
    """
    return locate(name, tags)[0]


def locate(name: str | None, tags: AbstractSet[str]) -> tuple[Recipe, ModuleType]:
    """Find a recipe as `find_recipe`, and its module, which says what files its recipes are for."""
    if name and (".py" in name or os.sep in name):
        return _from_file(name)
    module = library_for(tags)
    known = recipes_of(module)
    wanted = snake_case(name or "default")
    if wanted not in known:
        raise UsageError(
            f"-r {name}: no such recipe for {', '.join(sorted(module.TAGS))}; there are "
            f"{', '.join(sorted(known))}{closest(wanted, known)}"
        )
    return known[wanted], module


def library_for(tags: AbstractSet[str]) -> ModuleType:
    """Find the most specific of the recipe modules whose tags are all among these."""
    fitting = [module for module in libraries() if module.TAGS <= tags]
    refused = sorted(set().union(*(getattr(module, "NOT_FOR", set()) for module in fitting)) & tags)
    if refused or (not fitting and "SPECT" in tags):
        if "TWILIGHT" in refused:
            raise GdaskError(
                "twilight flats are not handled by makeProcessedFlat: take lamp flats "
                f"(all tags: {' '.join(sorted(tags))})"
            )
        what = " and ".join(refused) or "SPECT"
        raise GdaskError(
            f"files tagged {what} are not reduced: gdask reduces images and their calibrations "
            f"(all tags: {' '.join(sorted(tags))})"
        )
    if not fitting:
        kinds = "; ".join(sorted(" ".join(sorted(module.TAGS)) for module in libraries()))
        raise GdaskError(
            f"no recipes for files tagged {' '.join(sorted(tags))}; there are some for: {kinds}"
        )
    return max(fitting, key=lambda module: (len(module.TAGS), module.__name__))


def libraries() -> list[ModuleType]:
    """Give all shipped recipe modules that name the tags they are for."""
    package = importlib.import_module("gdask.recipes")
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"gdask.recipes.{name}") for name in names]
    return [module for module in modules if hasattr(module, "TAGS")]


def recipes_of(module: ModuleType) -> dict[str, Recipe]:
    """Give the recipes of a module by name, and `default`.

    They are its functions of exactly (run, frames).
    """
    found = {
        name: function
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and list(inspect.signature(function).parameters) == ["run", "frames"]
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }
    return found | {"default": module.default}


def steps_in(recipe: Recipe) -> dict[str, Callable[..., object]]:
    """Give the steps that a recipe can call, by name, in the order of a run.

    They are its own and those of functions that it calls.
    """
    found: dict[str, Callable[..., object]] = {}
    _collect(recipe, found, set())
    return found


def known_steps() -> dict[str, Callable[..., object]]:
    """Give all steps by name: a config file may serve several recipes."""
    return {name: getattr(steps, name) for name in steps.__all__}


def kernels_needed_by(recipe: Recipe, tags: AbstractSet[str]) -> str:
    """Give the module of recipes whose compiled functions a recipe for these tags needs.

    A recipe of the user's is taken to need what the shipped ones do. '' where it reads no pixels.
    """
    if recipe.__name__ in _HEADER_RECIPES:
        return ""
    try:
        return library_for(tags).__name__.rpartition(".")[2]
    except GdaskError:
        return ""


def _collect(function: Recipe, found: dict[str, Callable[..., object]], seen: set[Recipe]) -> None:
    """Add the steps that a function calls to `found`; `seen` are functions read already."""
    seen.add(function)
    scope = (
        vars(inspect.getmodule(function)) if inspect.getmodule(function) else function.__globals__
    )
    for node in _names_in_order(function):
        target = scope.get(node)
        if not inspect.isfunction(target) or target in seen:
            continue
        if target.__module__.startswith("gdask.steps"):
            if target.__name__ in steps.__all__:
                found.setdefault(target.__name__, target)
        elif list(inspect.signature(target).parameters)[:1] == ["run"]:
            _collect(target, found, seen)
        elif target.__module__ == function.__module__:
            found.setdefault(target.__name__, target)


def _names_in_order(function: Recipe) -> list[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return [name for statement in tree.body for name in _names(statement)]


def _names(node: ast.AST) -> Iterator[str]:
    """Give names in the order in which Python comes to them.

    What a call is given goes before the call, and the step of a call is the last of all.
    """
    if isinstance(node, ast.Name):
        yield node.id
        return
    parts: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        first, *others = node.args or [node.func]
        parts = [*others, *node.keywords, first, *([node.func] if node.args else [])]
    elif isinstance(node, ast.FunctionDef):
        parts = list(node.body)
    elif isinstance(node, ast.IfExp):
        parts = [node.test, node.body, node.orelse]
    for part in parts:
        yield from _names(part)


def _from_file(name: str) -> tuple[Recipe, ModuleType]:
    path, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    if (problem := why_no_file(path)) or not path.endswith(".py"):
        text = f" ({problem})" if problem and problem != "no such file" else ""
        raise UsageError(f"-r {name}: no file {path} of Python{text}; expected FILE.py:FUNCTION")
    module = load_file(path)
    known = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__.startswith((module.__name__, "gdask.recipes"))
        and list(inspect.signature(value).parameters)[:2] == ["run", "frames"]
    }
    if callable(getattr(module, "default", None)):
        known["default"] = module.default
    wanted = function or ("default" if "default" in known or len(known) != 1 else next(iter(known)))
    if wanted not in known:
        raise UsageError(
            f"-r {name}: {path} has no function {wanted}; it has "
            f"{', '.join(known) or 'none'}{closest(wanted, known)}"
        )
    return known[wanted], module


def load_file(path: str) -> ModuleType:
    """Load a user's recipe file as a module that worker processes can use too.

    It is not left among the imported modules: its functions then travel by value to workers, which
    could not import them. Its name holds a digest of its text, so that checkpoints of another
    version of the file do not count.
    """
    import hashlib
    import sys
    from pathlib import Path

    stem = "".join(c if c.isalnum() else "_" for c in Path(path).stem)
    name = f"gdask_user_{stem}_{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"-r {path}: the file does not run: "
            f"{_error_line(error, path)}{type(error).__name__}: {error}"
        ) from error
    finally:
        del sys.modules[name]
    return module


def _error_line(error: BaseException, path: str) -> str:
    """Say 'line 3: ' of the user's file, where the error happened."""
    if isinstance(error, SyntaxError):
        return ""  # its own text names the line
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(path)
    ]
    return f"line {lines[-1]}: " if lines else ""


# Lists that hold calibrations beside what needs them ------------------------------------------

#: Kinds of files in the order in which they are dealt with: name, tags that they have and have
#: not, and how `dataselect` chooses them.
_KINDS: tuple[tuple[str, set[str], set[str], str], ...] = (
    ("bad-pixel masks", {"BPM"}, set(), ""),
    ("darks", {"DARK", "RAW"}, set(), "--tags DARK"),
    ("flats", {"FLAT", "RAW"}, {"DARK"}, "--tags FLAT"),
    ("images", {"IMAGE", "RAW"}, {"CAL"}, "--tags IMAGE --xtags CAL"),
)


def what_to_do_first(frames: Frames, kept: Frames) -> str:
    """Say in which order a list is reduced that holds several kinds of files; '' for one kind.

    frames: all that could be opened; kept: those that the recipe takes.
    """
    taken = {frame.attrs["path"] for frame in kept}
    kinds = [(name, _of_kind(frames, has, lacks), how) for name, has, lacks, how in _KINDS]
    present = [(name, found, how) for name, found, how in kinds if found]
    if len(present) < 2 or all(f.attrs["path"] in taken for _, found, _ in present for f in found):
        return ""
    counts = ", ".join(f"{len(found)} {name}" for name, found, _ in present)
    lines = [f"the list holds several kinds of files ({counts}); one is reduced at a time:"]
    for name, found, how in present:
        now = "  (this run)" if any(f.attrs["path"] in taken for f in found) else ""
        lines.append(f"    {_command(name, found, how)}{now}")
    return "\n".join(lines)


def _of_kind(frames: Iterable[Frame], has: set[str], lacks: set[str]) -> list[Frame]:
    found = []
    for frame in frames:
        try:
            own = tags(frame)
        except GdaskError:  # of no known instrument
            continue
        if has <= own and not lacks & own:
            found.append(frame)
    return found


def _command(name: str, found: list[Frame], how: str) -> str:
    """Give the command that deals with the files of a kind."""
    if not how:
        return "caldb add " + " ".join(shlex.quote(_shown(frame)) for frame in found)
    folders = dict.fromkeys(os.path.dirname(_shown(frame)) for frame in found)
    patterns = " ".join(os.path.join(shlex.quote(f) if f else "", "*.fits") for f in folders)
    return f"dataselect {patterns} {how} -o {name}.list; reduce @{name}.list"


def _shown(frame: Frame) -> str:
    """Give the path of a file as one below the working folder, where it is."""
    path = os.path.abspath(frame.attrs["path"])
    near = os.path.relpath(path)
    return path if near.startswith("..") else near
