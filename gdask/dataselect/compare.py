"""How the values of descriptors compare in an expression (see select.py)."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

_ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}


def holds(op: ast.cmpop, left: Any, right: Any, tolerance: float) -> bool:
    """One comparison of two values. TypeError if they are of kinds that do not compare."""
    if isinstance(op, (ast.In, ast.NotIn)):
        return _within(left, right, tolerance) is isinstance(op, ast.In)
    if isinstance(op, (ast.Eq, ast.NotEq)):
        return _equal(left, right, tolerance) is isinstance(op, ast.Eq)
    return _ordered(_ORDER[type(op)], left, right)


def _equal(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, list) and _nested(left) > _nested(right):
        return bool(left) and all(_equal(one, right, tolerance) for one in left)
    if isinstance(right, list) and _nested(right) > _nested(left):
        return _equal(right, left, tolerance)
    if isinstance(left, list):
        return len(left) == len(right) and all(_equal(a, b, tolerance) for a, b in zip(left, right))
    if left is None or right is None:
        return left is right
    if _kind(left) != _kind(right):
        raise TypeError
    if isinstance(left, (int, float)):
        return abs(left - right) <= tolerance * max(abs(left), abs(right))
    return left == right


def _ordered(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    for values, flipped in ((left, False), (right, True)):
        if isinstance(values, list):
            return bool(values) and all(
                _ordered(compare, left, one) if flipped else _ordered(compare, one, right)
                for one in values
            )
    if left is None or right is None:
        return False
    if _kind(left) != _kind(right):
        raise TypeError
    return compare(left, right)


def _within(left: Any, right: Any, tolerance: float) -> bool:
    if right is None:
        return False
    if isinstance(right, str) and isinstance(left, str):
        return left in right
    if not isinstance(right, (list, frozenset)):
        raise TypeError
    if isinstance(left, list) and _nested(left) >= _nested(right := list(right)):
        return bool(left) and all(_within(one, right, tolerance) for one in left)
    return any(_equal(left, one, tolerance) for one in right)


def _nested(value: Any) -> int:
    return 1 + max((_nested(one) for one in value), default=0) if isinstance(value, list) else 0


def _kind(value: Any) -> type:
    return float if isinstance(value, (bool, int, float)) else type(value)
