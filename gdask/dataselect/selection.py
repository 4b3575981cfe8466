"""Selection of files by tags and by an expression of descriptors.

An expression such as `filter_name=='Kshort' and exposure_time>10` is parsed, its tree checked
against a white list, and never evaluated as Python code.

- Names are descriptors, or `tags` (`'FLAT' in tags`).
- Unless strict, exposure_time equals within 1 % and a wavelength within 1e-5, and filter_name,
  disperser and detector_name are the short ("pretty") names, as in DRAGONS' dataselect. `!=` is
  always the opposite of `==`.
- A value per array (gain, array_name ...) compared with one value is true if it is true for every
  array.
- An unknown value (None) equals only None and is neither less nor greater than anything.
"""

from __future__ import annotations

import ast
import datetime as dt
import logging
import operator
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn, Protocol

from gdask.instruments import DESCRIPTORS, View, view
from gdask.instruments.rules import parse_date, parse_time
from gdask.instruments.view import unknown_descriptor
from gdask.model import GdaskError, UsageError

#: Characters of an expression.
EXPRESSION_MAX_LENGTH = 2000
#: Parts of an expression inside each other.
EXPRESSION_MAX_DEPTH = 40
#: Relative difference up to which values count as equal, unless strict (DRAGONS' dataselect has the
#: first two).
RELATIVE_TOLERANCE = {
    "exposure_time": 1e-2,
    "central_wavelength": 1e-5,
    "effective_wavelength": 1e-5,
}
#: Descriptors that are compared by their short names, unless strict.
SHORT_NAMES = frozenset({"filter_name", "disperser", "detector_name"})

_LOG = logging.getLogger(__name__)


class Lookup(Protocol):
    """What an expression is applied to: anything that gives the value of a name, like a dict."""

    def __getitem__(self, name: str, /) -> Any: ...


Value = Callable[[Lookup], Any]


class Expression(NamedTuple):
    """A parsed expression: call it with the values of descriptors by name."""

    text: str
    strict: bool
    test: Value

    def __call__(self, lookup: Lookup) -> bool:
        return self.test(lookup)


class Selection(NamedTuple):
    """Files that match, in order; files that could not be read, with the reason; all tags seen."""

    files: list[str]
    skipped: dict[str, str]
    seen: frozenset[str]


def select(
    paths: Iterable[str | os.PathLike[str]],
    tags: Iterable[str] = (),
    xtags: Iterable[str] = (),
    expression: Expression | str | None = None,
) -> Selection:
    """Files with all `tags`, none of `xtags`, and for which the expression is true.

    Only headers are read. A file whose header cannot be read is skipped with a warning. Raises
    GdaskError if the expression is wrong.
    """
    wanted, unwanted = ({tag.upper() for tag in names} for names in (tags, xtags))
    test = parse_expression(expression) if isinstance(expression, str) else expression
    chosen: list[str] = []
    skipped: dict[str, str] = {}
    seen: set[str] = set()
    for path in (os.fspath(one) for one in paths):
        try:
            file = view(path)
        except GdaskError as error:
            skipped[path] = str(error)
            _LOG.warning("skipped: %s", error)
            continue
        seen |= file.tags
        if (
            wanted <= file.tags
            and not unwanted & file.tags
            and (test is None or test(Values(file, test.strict)))
        ):
            chosen.append(path)
    return Selection(chosen, skipped, frozenset(seen))


class Values:
    """The values of a file that an expression may ask for."""

    def __init__(self, file: View, strict: bool = False) -> None:
        self._file, self._strict = file, strict

    def __getitem__(self, name: str) -> Any:
        if name == "tags":
            return self._file.tags
        short = not self._strict and name in SHORT_NAMES and self._file.accepts(name, "pretty")
        return self._file(name, pretty=True) if short else self._file(name)


def parse_expression(text: str, strict: bool = False) -> Expression:
    """The expression as a function of a file's values.

    Raises UsageError, which points at what is not understood.
    """
    line = " ".join(text.splitlines()).replace("\t", " ").strip()
    if len(line) > EXPRESSION_MAX_LENGTH:
        raise UsageError(
            f"the expression has {len(line)} characters; at most {EXPRESSION_MAX_LENGTH} are "
            "understood"
        )
    source = _ExpressionText(line, strict)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(line, mode="eval")
    except SyntaxError as error:
        source.refuse(_hint(line, error), (error.offset or 1) - 1)
    except (RecursionError, MemoryError, ValueError) as error:
        raise UsageError(f"the expression is too deeply nested, or no text: {error}") from None
    return Expression(line, strict, _truth(tree.body, source, 0))


def _hint(line: str, error: SyntaxError) -> str:
    if not line:
        return "it is empty"
    column = max((error.offset or 1) - 1, 0)
    if "=" in line[column : column + 1] or "==" in (error.msg or ""):
        return "use == to compare"
    if line[column : column + 1] in "&|":
        return "use 'and' and 'or'"
    return (error.msg or "invalid syntax").partition(". ")[0]


class _ExpressionText(NamedTuple):
    """The text of an expression, for messages that point at a place in it.

    strict: whether numbers and names are compared exactly.
    """

    line: str
    strict: bool

    def refuse(self, why: str, where: ast.AST | int) -> NoReturn:
        if isinstance(where, ast.AST):  # ast counts bytes
            where = len(
                self.line.encode()[: getattr(where, "col_offset", 0)].decode(errors="ignore")
            )
        raise UsageError(f"expression not understood: {why}\n  {self.line}\n  {' ' * where}^")


def _truth(node: ast.expr, source: _ExpressionText, depth: int) -> Value:
    """A part of the expression that is true or false."""
    if depth > EXPRESSION_MAX_DEPTH:
        source.refuse(f"nested more than {EXPRESSION_MAX_DEPTH} deep", node)
    if isinstance(node, ast.BoolOp):
        parts = [_truth(part, source, depth + 1) for part in node.values]
        combine = all if isinstance(node.op, ast.And) else any
        return lambda lookup: combine(part(lookup) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        part = _truth(node.operand, source, depth + 1)
        return lambda lookup: not part(lookup)
    if isinstance(node, ast.Compare):
        return _comparison(node, source, depth)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return lambda lookup: node.value
    if isinstance(node, (ast.Constant, ast.Tuple, ast.List)):
        source.refuse("a comparison is expected here, such as exposure_time==60", node)
    value = _value(node, source, depth)

    def truth(lookup: Lookup) -> bool:
        found = value(lookup)
        if found is not None and not isinstance(found, bool):
            source.refuse(
                f"this is {found!r}, neither true nor false; compare it with something", node
            )
        return bool(found)

    return truth


def _comparison(node: ast.Compare, source: _ExpressionText, depth: int) -> Value:
    """`a < b <= c`, `a in (b, c)`: true if every neighbouring pair compares."""
    operands = [node.left, *node.comparators]
    names = [one.id for one in operands if isinstance(one, ast.Name)]
    convert = next((_TIME_CONVERTERS[name] for name in names if name in _TIME_CONVERTERS), None)
    tolerance = (
        0.0
        if source.strict
        else max((RELATIVE_TOLERANCE.get(name, 0.0) for name in names), default=0.0)
    )
    for op, right in zip(node.ops, node.comparators):
        if isinstance(op, (ast.Is, ast.IsNot)):
            source.refuse("use == and != instead of 'is'", node)
        if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(
            right, (ast.Tuple, ast.List, ast.Name)
        ):
            source.refuse("a list is expected after 'in', such as ('H', 'Kshort')", right)
    values = [_value(one, source, depth + 1, convert) for one in operands]

    def compare(lookup: Lookup) -> bool:
        found = [value(lookup) for value in values]
        for op, left, right, operand in zip(node.ops, found, found[1:], operands[1:]):
            try:
                if not comparison_holds(op, left, right, tolerance):
                    return False
            except TypeError:
                source.refuse(
                    f"{left!r} cannot be compared with {right!r}"
                    f"{' (text needs quotes, numbers none)' if not convert else ''}",
                    operand,
                )
        return True

    return compare


def _value(
    node: ast.expr, source: _ExpressionText, depth: int, convert: Callable[[str], Any] | None = None
) -> Value:
    """A descriptor, a literal or a list of them.

    Literals beside a time or date are converted here.
    """
    if depth > EXPRESSION_MAX_DEPTH:
        source.refuse(f"nested more than {EXPRESSION_MAX_DEPTH} deep", node)
    if isinstance(node, ast.Name):
        return _name(node, source)
    if isinstance(node, (ast.Tuple, ast.List)):
        parts = [_value(part, source, depth + 1, convert) for part in node.elts]
        return lambda lookup: [part(lookup) for part in parts]
    literal = _literal(node, source)
    if convert is not None and isinstance(literal, str):
        literal = convert(literal)
        if literal is None:
            source.refuse(f"this is not {convert.__doc__}", node)
    return lambda lookup: literal


def _name(node: ast.Name, source: _ExpressionText) -> Value:
    name = node.id
    if name not in DESCRIPTORS and name != "tags":
        source.refuse(unknown_descriptor(name, [*DESCRIPTORS, "tags"]), node)
    return lambda lookup: lookup[name]


def _literal(node: ast.expr, source: _ExpressionText) -> Any:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Constant) and (
        node.value is None or isinstance(node.value, (bool, int, float, str))
    ):
        return node.value
    kind = {
        ast.Call: "a function call",
        ast.Attribute: "'.'",
        ast.BinOp: "arithmetic",
        ast.Subscript: "'[...]'",
    }
    source.refuse(
        f"{kind.get(type(node), type(node).__name__)} is not allowed; use descriptors, "
        "comparisons, "
        "and, or, not, in",
        node,
    )


def _as_datetime(text: str) -> dt.datetime | None:
    """a date and time like '2017-05-05 02:24:00.5'"""
    date, clock = parse_date(text), text[10:].lstrip("T ")
    time = parse_time(clock) if clock else dt.time()
    return None if date is None or time is None else dt.datetime.combine(date, time)


def _as_date(text: str) -> dt.date | None:
    """a date like '2017-05-05'"""
    return parse_date(text) if len(text.strip()) == 10 else None


def _as_time(text: str) -> dt.time | None:
    """a time like '02:24:00'"""
    return parse_time(text.strip())


_TIME_CONVERTERS: dict[str, Callable[[str], Any]] = {
    "ut_datetime": _as_datetime,
    "ut_date": _as_date,
    "ut_time": _as_time,
    "local_time": _as_time,
}


# How values compare

_ORDER_OPERATORS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def comparison_holds(op: ast.cmpop, left: Any, right: Any, tolerance: float) -> bool:
    """Whether one comparison of two values is true.

    Raises TypeError if they are of kinds that do not compare.
    """
    if isinstance(op, (ast.In, ast.NotIn)):
        return _is_in(left, right, tolerance) is isinstance(op, ast.In)
    if isinstance(op, (ast.Eq, ast.NotEq)):
        return _values_equal(left, right, tolerance) is isinstance(op, ast.Eq)
    return _in_order(_ORDER_OPERATORS[type(op)], left, right)


def _values_equal(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, list) and _nesting_depth(left) > _nesting_depth(right):
        return bool(left) and all(_values_equal(one, right, tolerance) for one in left)
    if isinstance(right, list) and _nesting_depth(right) > _nesting_depth(left):
        return _values_equal(right, left, tolerance)
    if isinstance(left, list):
        return len(left) == len(right) and all(
            _values_equal(a, b, tolerance) for a, b in zip(left, right)
        )
    if left is None or right is None:
        return left is right
    if _comparable_type(left) != _comparable_type(right):
        raise TypeError
    if isinstance(left, (int, float)):
        return abs(left - right) <= tolerance * max(abs(left), abs(right))
    return left == right


def _in_order(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    for values, flipped in ((left, False), (right, True)):
        if isinstance(values, list):
            return bool(values) and all(
                _in_order(compare, left, one) if flipped else _in_order(compare, one, right)
                for one in values
            )
    if left is None or right is None:
        return False
    if _comparable_type(left) != _comparable_type(right):
        raise TypeError
    return compare(left, right)


def _is_in(left: Any, right: Any, tolerance: float) -> bool:
    if right is None:
        return False
    if isinstance(right, str) and isinstance(left, str):
        return left in right
    if not isinstance(right, (list, frozenset)):
        raise TypeError
    if isinstance(left, list) and _nesting_depth(left) >= _nesting_depth(right := list(right)):
        return bool(left) and all(_is_in(one, right, tolerance) for one in left)
    return any(_values_equal(left, one, tolerance) for one in right)


def _nesting_depth(value: Any) -> int:
    return (
        1 + max((_nesting_depth(one) for one in value), default=0) if isinstance(value, list) else 0
    )


def _comparable_type(value: Any) -> type:
    return float if isinstance(value, (bool, int, float)) else type(value)
