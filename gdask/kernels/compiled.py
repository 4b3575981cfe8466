"""Compiled functions: `njit` decorates them, and what it compiles is kept on disk, for all runs.

numba compiles a function when it is first called with arguments of some types: a tenth of a second
to some seconds. `njit` here is numba's with three differences:

- numba is imported with the first call, not with the module, so that commands that read headers
  alone never load it. `few` is the function as plain Python, for a handful of points.
- What is compiled is kept under names that say all that it depends on (`compiled_files`). numba
  numbers its files in an index: two processes that begin with an empty folder can each take number
  1 for other types, and then load each other's code; it also keeps a caller whose callee in
  another module has changed.
- One process compiles what many need at the same time; the others wait for its file.

This module uses parts of numba that its documentation does not promise, and is the only one.
"""

from __future__ import annotations

import ast
import functools
import importlib
import logging
import pickle
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from gdask.kernels.compiled_files import (
    Use,
    claim_or_wait,
    folder,
    path_of,
    read_kept,
    release,
    write_kept,
)

log = logging.getLogger("gdask")

#: Seconds of compiling after which the log says so.
ANNOUNCED_AFTER = 2.0

#: Types of single numbers, by numba's names.
_SCALARS = (
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float32", "float64", "complex128", "none", "bool"),
)


class Account:
    """What this process has used, in order, and the seconds that it has waited for compilation."""

    def __init__(self) -> None:
        self.used: dict[Use, None] = {}
        self.compiled: list[Use] = []
        self.seconds = 0.0
        self.is_announced = False

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the seconds of the `with` block; when there have been many, say so at once."""
        announcer = threading.Timer(max(ANNOUNCED_AFTER - self.seconds, 0.0), self._announce)
        announcer.daemon = True
        announcer.start()
        started = time.perf_counter()
        try:
            yield
        finally:
            announcer.cancel()
            self.seconds += time.perf_counter() - started

    def _announce(self) -> None:
        if not self.is_announced:
            self.is_announced = True
            log.info("compiling for this machine, once (`gdask warm-up` does it beforehand) ...")

    def report(self) -> None:
        """Say in the log how long it took, where that was announced, and begin again."""
        if self.is_announced:
            log.info("compiling for this machine, once: %.0f s", self.seconds)
        self.seconds, self.is_announced = 0.0, False


ACCOUNT = Account()


class Compiled:
    """A function that is compiled when it is first called; see the module's text."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        if function.__closure__ is not None:
            raise TypeError(f"{function.__qualname__}: compiled functions take no outer variables")
        functools.update_wrapper(self, function)
        self.py_func, self._place = function, (function.__module__, function.__qualname__)
        self._options = options
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        return (self._dispatcher or self.dispatcher)(*arguments)

    @property
    def is_loaded(self) -> bool:
        """Tell whether the function has been called or compiled in this process."""
        return self._dispatcher is not None

    @property
    def dispatcher(self) -> Any:
        """numba's object of this function."""
        if self._dispatcher is None:
            from numba.core.compiler_lock import global_compiler_lock

            with global_compiler_lock:  # a thread that compiles may ask for it, holding this lock
                if self._dispatcher is None:
                    self._dispatcher = _dispatcher_of(self.py_func, self._options)
        return self._dispatcher

    @functools.cached_property
    def few(self) -> Callable[..., Any]:
        """The function as plain Python, and all that it calls: for a handful of points."""
        scope = self.py_func.__globals__
        called = {
            name: scope[name].few
            for name in self.py_func.__code__.co_names
            if isinstance(scope.get(name), Compiled) and scope[name] is not self
        }
        return types.FunctionType(self.py_func.__code__, {**scope, **called})

    @property
    def _numba_type_(self) -> Any:
        """The type by which other compiled functions call this one."""
        return self.dispatcher._numba_type_

    def __reduce__(self) -> tuple[Any, ...]:
        return by_name, self._place

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self._place


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function as `numba.njit` does; the options are numba's, and one more.

    borrows: the function, and all that it calls, makes no arrays and gives none back. Then it does
    not count references to those that it is given, which takes an atomic instruction for each slice
    and each passing on, in memory that threads share: a sixth to a third of resampling.
    """
    return lambda function: Compiled(function, options)


def by_name(module: str, name: str) -> Any:
    """Give what a module of gdask calls so."""
    return getattr(importlib.import_module(module), name)


def _dispatcher_of(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    import numba

    options = dict(options)
    is_kept = options.pop("cache", False)
    if options.pop("borrows", False):
        options["_nrt"] = False
    made = numba.njit(**options)(function)
    if is_kept:
        made._cache = Kept(function)
    return made


# What is kept on disk -------------------------------------------------------------------------


class Kept:
    """The compiled forms of one function on disk: what numba asks for as a dispatcher's cache."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.module, self.function = function.__module__, function.__qualname__

    @property
    def cache_path(self) -> str:
        return str(folder())

    def enable(self) -> None:
        """Nothing to do: it is enabled."""

    def disable(self) -> None:
        """Nothing to do: it stays enabled."""

    def flush(self) -> None:
        """Nothing to do: what is kept never changes."""

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Load what was compiled for these types; None, and the duty to compile, without it."""
        use = Use(self.module, self.function, types_text(signature))
        is_inner = bool(_compiling())  # called by a function that is being compiled
        if not is_inner:
            ACCOUNT.used[use] = None
        content = read_kept(use)
        if content is None:
            with nullcontext() if is_inner else ACCOUNT.counted():
                content = claim_or_wait(use)
        if content is None:
            counted = nullcontext() if is_inner else ACCOUNT.counted()
            counted.__enter__()
            _compiling().append((use, counted))
            return None
        from numba.core.compiler import CompileResult
        from numba.core.runtime import rtsys

        # What numba loads to type and to lower code (0.25 s) it loads itself when it compiles;
        # code that is made needs its reference counts alone.
        rtsys.initialize(context)
        return CompileResult._rebuild(context, *pickle.loads(content))

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled. Where it cannot be written, it is compiled again next time."""
        from numba.core.serialize import dumps

        use = Use(self.module, self.function, types_text(signature))
        stack = _compiling()
        while stack:  # those above this one have failed to compile
            last, counted = stack.pop()
            counted.__exit__(None, None, None)
            if last == use:
                break
        ACCOUNT.compiled.append(use)
        try:
            if not result.library.has_dynamic_globals and all(
                part.can_cache for part in result.lifted
            ):
                write_kept(use, dumps(result._reduce()))
        except OSError as error:
            log.debug("%s: compiled code is not kept: %s", path_of(use), error)
        finally:
            release(use)


_state = threading.local()


def _compiling() -> list[tuple[Use, AbstractContextManager[None]]]:
    """Give what this thread is compiling, the outermost first, and what counts its seconds."""
    if not hasattr(_state, "stack"):
        _state.stack = []
    stack: list[tuple[Use, AbstractContextManager[None]]] = _state.stack
    return stack


# Types as texts -------------------------------------------------------------------------------


def types_text(signature: Any) -> str:
    """Give the types of arguments as a text that `types_of` reads: 'array(float32, 2, C), int64'.

    Types that kernels do not take are named as numba does, and cannot be read again.
    """
    return ", ".join(_type_text(each) for each in getattr(signature, "args", signature))


def _type_text(kind: Any) -> str:
    known: Any = importlib.import_module("numba.types")

    if isinstance(kind, known.Array) and kind.aligned:
        readonly = "" if kind.mutable else ", readonly"
        return f"array({_type_text(kind.dtype)}, {kind.ndim}, {kind.layout}{readonly})"
    if isinstance(kind, known.BaseNamedTuple):
        place = kind.instance_class.__module__, kind.instance_class.__qualname__
        return f"named({', '.join((*map(repr, place), *map(_type_text, kind)))})"
    if isinstance(kind, known.BaseAnonymousTuple):
        return f"plain({', '.join(map(_type_text, kind))})"
    return str(kind)


def types_of(text: str) -> tuple[Any, ...]:
    """Give the types that `types_text` wrote; ValueError where a text is not of its kind."""
    call: Any = ast.parse(f"given({text})", mode="eval").body
    return tuple(_type_of(node) for node in call.args)


def _type_of(node: ast.expr) -> Any:
    known: Any = importlib.import_module("numba.types")

    if isinstance(node, ast.Name) and node.id in _SCALARS:
        return known.boolean if node.id == "bool" else getattr(known, node.id)
    made_by = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    given = node.args if isinstance(node, ast.Call) else []
    words = [str(getattr(each, "id", getattr(each, "value", ""))) for each in given]
    if made_by == "array":
        return known.Array(
            _type_of(given[0]), int(words[1]), words[2], readonly="readonly" in words[3:]
        )
    if made_by == "plain":
        return known.BaseTuple.from_types([_type_of(each) for each in given])
    if made_by == "named":
        kinds = [_type_of(each) for each in given[2:]]
        return known.BaseTuple.from_types(kinds, by_name(words[0], words[1]))
    raise ValueError(f"not the type of an argument: {ast.unparse(node)}")
