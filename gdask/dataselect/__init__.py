"""Choose files by tags and descriptors, from Python, with the names that DRAGONS' users know."""

from __future__ import annotations

from collections.abc import Iterable

from gdask.dataselect.selection import Expression, parse_expression, select

__all__ = ["expr_parser", "select_data"]


def expr_parser(expression: str, strict: bool = False) -> Expression:
    """Parse an expression for `select_data`.

    With `strict`, numbers are compared exactly and filter names with component numbers.
    """
    return parse_expression(expression, strict)


def select_data(
    inputs: Iterable[str],
    tags: Iterable[str] = (),
    xtags: Iterable[str] = (),
    expression: Expression | str | None = None,
) -> list[str]:
    """Files, in order, with all `tags`, none of `xtags`, and for which the expression is true.

    A file whose header cannot be read is skipped with a warning. Raises GdaskError if the
    expression is wrong.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    return select(inputs, _names(tags), _names(xtags), expression).files


def _names(tags: Iterable[str]) -> list[str]:
    parts = tags.split(",") if isinstance(tags, str) else tags
    return [tag.strip() for tag in parts if tag.strip()]
