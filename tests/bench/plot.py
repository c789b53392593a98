"""Panels of curves with logarithmic axes, as one SVG file that can be read on light and on dark pages.

Colours follow the reader's scheme by a media query inside the file, so that it works in an <img> too. Every curve has
its label at its end: nobody has to match colours, and a print in grey can still be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Literal, NamedTuple

from bench.measured import Unit, shown_size

Colour = Literal["ours", "plain", "other", "more"]
_PLOT_WIDTH, _PLOT_HEIGHT = 258, 190
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 50, 150, 50
_CELL_WIDTH, _CELL_HEIGHT = _LEFT + _PLOT_WIDTH + _RIGHT, _TOP + _PLOT_HEIGHT + _BOTTOM
_COLUMNS = 2
_LABEL_STEP = 14.0
_STYLE = """
  .page { fill: #ffffff } text { fill: #24292f; font: 12px system-ui, sans-serif } .title { font-weight: 600; font-size: 14px }
  .quiet { fill: #57606a; font-size: 11px } .grid { stroke: #d8dee4; stroke-width: 1 } .axis { stroke: #57606a; stroke-width: 1 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round } .dashed { stroke-dasharray: 5 3 }
  .limit { stroke: #cf222e; stroke-dasharray: 2 3; stroke-width: 1.5 } text.limit { fill: #cf222e; stroke: none; font-size: 11px }
  .ours { stroke: #0550ae } .plain { stroke: #bc4c00 } .other { stroke: #8250df } .more { stroke: #1a7f37 }
  circle { stroke: none } circle.ours, text.ours { fill: #0550ae } circle.plain, text.plain { fill: #bc4c00 }
  circle.other, text.other { fill: #8250df } circle.more, text.more { fill: #1a7f37 } text.ours, text.plain, text.other, text.more { stroke: none }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #e6edf3 } .quiet { fill: #9198a1 } .grid { stroke: #30363d } .axis { stroke: #9198a1 }
    .limit { stroke: #ff7b72 } text.limit { fill: #ff7b72 }
    .ours { stroke: #79c0ff } .plain { stroke: #ffa657 } .other { stroke: #d2a8ff } .more { stroke: #7ee787 }
    circle.ours, text.ours { fill: #79c0ff } circle.plain, text.plain { fill: #ffa657 }
    circle.other, text.other { fill: #d2a8ff } circle.more, text.more { fill: #7ee787 }
  }
"""


class Curve(NamedTuple):
    """Points by growing x, all above 0."""

    label: str
    colour: Colour
    points: Sequence[tuple[float, float]]
    dashed: bool = False


class Panel(NamedTuple):
    """One pair of axes. ``limit`` is drawn across, with its words."""

    title: str
    x_title: str
    y_title: str
    x_unit: str
    y_unit: Unit
    curves: Sequence[Curve]
    limit: tuple[float, str] | None = None


def svg(panels: Sequence[Panel], notes: Sequence[str], title: str) -> str:
    """The picture; ``notes`` stand in the last cell, a line each."""
    rows = math.ceil((len(panels) + 1) / _COLUMNS)
    width, height = _COLUMNS * _CELL_WIDTH, rows * _CELL_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t">',
        f'<title id="t">{escape(title)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        parts += [_group(number), *_panel(panel), "</g>"]
    parts += [_group(len(panels))]
    parts += [_text(_LEFT, _TOP + 10 + 18 * n, note, "quiet") for n, note in enumerate(notes)]
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _group(number: int) -> str:
    return f'<g transform="translate({number % _COLUMNS * _CELL_WIDTH} {number // _COLUMNS * _CELL_HEIGHT})">'


class _Axis(NamedTuple):
    """Maps ``low`` to ``high``, by their logarithms, to ``start`` and ``end`` in the picture."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def decades(self) -> Iterator[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        yield from (10.0**n for n in range(first, last + 1))


def _panel(panel: Panel) -> Iterator[str]:
    xs = [x for curve in panel.curves for x, _ in curve.points]
    ys = [y for curve in panel.curves for _, y in curve.points] + ([panel.limit[0]] if panel.limit else [])
    right, bottom = _LEFT + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT
    across = _Axis(min(xs), max(max(xs), min(xs) * 1.01), _LEFT, right)
    low, high = 10.0 ** math.floor(math.log10(min(ys))), 10.0 ** math.ceil(math.log10(max(ys)))
    up = _Axis(low, max(high, low * 10), bottom, _TOP)
    yield _text(_LEFT, _TOP - 26, panel.title, "title")
    yield _text(_LEFT, _TOP - 9, panel.y_title, "quiet")
    yield _text(right, bottom + 34, panel.x_title, "quiet", "end")
    for y in up.decades():
        yield _segment("grid", _LEFT, up.place(y), right, up.place(y))
        yield _text(_LEFT - 6, up.place(y) + 4, _tick(y, panel.y_unit), "quiet", "end")
    for x in across.decades():
        yield _segment("grid", across.place(x), _TOP, across.place(x), bottom)
        yield _text(across.place(x), bottom + 16, _tick(x, panel.x_unit), "quiet", "middle")
    yield _segment("axis", _LEFT, bottom, right, bottom)
    yield _segment("axis", _LEFT, _TOP, _LEFT, bottom)
    if panel.limit:
        y = up.place(panel.limit[0])
        yield _segment("limit", _LEFT, y, right, y)
        yield _text(_LEFT + 6, y - 5, panel.limit[1], "limit")
    for curve in panel.curves:
        yield from _curve(curve, across, up)
    ends = [up.place(curve.points[-1][1]) for curve in panel.curves]
    for curve, end, y in zip(panel.curves, ends, spread(ends, _TOP + 4.0, bottom - 2.0), strict=True):
        x = across.place(curve.points[-1][0])
        if abs(end - y) > 4 or x < right - 4:  # the label is not beside its end
            yield _segment(f"{curve.colour} lead", x + 4, end, right + 7, y, 'stroke-width="0.7"')
        yield _text(right + 10, y + 4, curve.label, curve.colour)


def _curve(curve: Curve, across: _Axis, up: _Axis) -> Iterator[str]:
    places = [(across.place(x), up.place(y)) for x, y in curve.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="line {curve.colour}{" dashed" if curve.dashed else ""}" points="{path}"/>'
    yield from (f'<circle class="{curve.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places)


def spread(places: Sequence[float], low: float, high: float, step: float = _LABEL_STEP) -> list[float]:
    """The places, moved as little as keeps all of them ``step`` apart, between ``low`` and ``high`` if they fit."""
    order = sorted(range(len(places)), key=lambda n: places[n])
    found = list(places)
    limit = high
    for number in reversed(order):
        found[number] = min(found[number], limit)
        limit = found[number] - step
    limit = low
    for number in order:
        found[number] = max(found[number], limit)
        limit = found[number] + step
    return found


def _tick(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"
    return shown_size(value, "B") if unit == "B" else f"{value:,.0f}"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {more}/>'
