"""Small charts of a number over time, as SVG in the page: no picture, sharp at any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gdask.model import late
from gdask.report import words

if TYPE_CHECKING:
    import markupsafe
else:
    markupsafe = late("markupsafe")

_WIDTH, _HEIGHT = 460, 120
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 12, 24


def chart(points: Sequence[Mapping[str, Any]], name: str, unit: str = "") -> Any:
    """Draw a number of points over their nights; '' where fewer than two have it.

    The chart has a text alternative; the table beside it has the numbers.
    """
    known = [one for one in points if isinstance(one["values"].get(name), int | float)]
    if len(known) < 2:
        return ""
    values = [float(one["values"][name]) for one in known]
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - margin, high + margin
    width = _WIDTH - _LEFT - _RIGHT
    xs = [_LEFT + width * (place + 0.5) / len(values) for place in range(len(values))]
    height = _HEIGHT - _TOP - _BOTTOM
    ys = [_TOP + height * (high - value) / (high - low) for value in values]
    title = (
        f"{words.label(name)} of {len(values)} nights, from {words.number(min(values))} to "
        f"{words.number(max(values))} {words.UNITS.get(unit, unit)}"
    )
    parts = [_axis(values, high, low, height)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    parts.append(markupsafe.Markup('<polyline points="{}"/>').format(path))
    for x, y, one in zip(xs, ys, known, strict=True):
        said = f"{words.night(one['night'])}: {words.number(one['values'][name])}"
        mark = '<g class="{}"><title>{}</title>{}</g>'
        parts.append(markupsafe.Markup(mark).format(one["state"], said, _mark(one["state"], x, y)))
    parts += [
        markupsafe.Markup('<text x="{:.1f}" y="{}" class="{}">{}</text>').format(
            x, _HEIGHT - 6, align, words.night(known[place]["night"])
        )
        for place, x, align in ((0, _LEFT, "first"), (-1, _WIDTH - _RIGHT, "last"))
    ]
    begin = '<svg class="chart" role="img" viewBox="0 0 {} {}" aria-label="{}">'
    head = markupsafe.Markup(begin).format(_WIDTH, _HEIGHT, title)
    return head + markupsafe.Markup("").join(parts) + markupsafe.Markup("</svg>")


def _axis(values: Sequence[float], high: float, low: float, height: float) -> Any:
    """Draw lines at the least and the largest value, with their numbers."""
    parts = markupsafe.Markup("")
    for value in dict.fromkeys((max(values), min(values))):
        y = _TOP + height * (high - value) / (high - low)
        parts += markupsafe.Markup(
            '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
            '<text x="{}" y="{:.1f}" class="last">{}</text>'
        ).format(_LEFT, _WIDTH - _RIGHT, y, y, _LEFT - 6, y + 4, words.number(value))
    return parts


def _mark(state: str, x: float, y: float) -> Any:
    """Draw a point whose shape tells its state: circle, triangle, square; hollow: not checked."""
    if state == "warning":
        points = f"{x:.1f},{y - 5:.1f} {x - 5:.1f},{y + 4:.1f} {x + 5:.1f},{y + 4:.1f}"
        return markupsafe.Markup('<polygon points="{}"/>').format(points)
    if state == "failure":
        box = '<rect x="{:.1f}" y="{:.1f}" width="8" height="8"/>'
        return markupsafe.Markup(box).format(x - 4, y - 4)
    return markupsafe.Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x, y)
