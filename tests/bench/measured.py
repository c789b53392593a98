"""What a run of the benchmarks found: rows, bounds, and what was left out and why. It is also the JSON file.

A row is one thing done in several ways in one run, ours first. Times are in seconds, sizes and memory in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

OURS = "refit-agent"
FORMAT = 1
Unit = Literal["s", "1/s", "B"]
SizeUnit = Literal["B", "engines", "clients"]


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One way to do what the row says. ``value`` is a median, ``late`` the 99th percentile where there is one; of
    several rounds both are the rounds' medians.

    ``private`` is the memory that the kernel cannot take back (anonymous and dirty pages); what of it, the row's
    ``memory`` says.
    """

    name: str
    value: float
    late: float | None = None
    private: int | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One thing, at one size. ``size`` is what a curve has on its x axis, in ``size_unit``."""

    part: str
    what: str
    size: float
    size_unit: SizeUnit
    unit: Unit
    memory: str
    ways: tuple[Way, ...]

    @property
    def name(self) -> str:
        """What names this row in every run."""
        return f"{self.part}: {self.what}, {shown_size(self.size, self.size_unit)}"

    def way(self, name: str) -> Way | None:
        return next((way for way in self.ways if way.name == name), None)


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """What a number may be: at most ``limit``, or with ``least`` at least that. Checked as a ratio."""

    text: str
    value: float
    limit: float
    unit: Unit
    least: bool = False

    @property
    def ratio(self) -> float:
        """Above 1 it is missed."""
        return self.limit / max(self.value, 1e-12) if self.least else self.value / self.limit

    @property
    def kept(self) -> bool:
        return self.ratio <= 1.0


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """A part, or rows of it, that could not be measured here."""

    part: str
    what: str
    reason: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run on one machine."""

    format: int
    quick: bool
    facts: dict[str, Any]
    rows: tuple[Row, ...]
    bounds: tuple[Bound, ...]
    left: tuple[Left, ...]


class Findings:
    """What the parts of one run have found so far; a row is told as soon as it is there."""

    def __init__(self, tell: Callable[[Row], None] = lambda row: None) -> None:
        self.rows: list[Row] = []
        self.bounds: list[Bound] = []
        self.left: list[Left] = []
        self._tell = tell

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self._tell(row)

    def leave(self, part: str, what: str, reason: str) -> None:
        self.left.append(Left(part=part, what=what, reason=reason))


def shown_size(size: float, unit: str) -> str:
    """A size for people, in decimal units."""
    if unit != "B":
        return f"{size:,.0f} {unit if size != 1 else unit.removesuffix('s')}"
    scale, name = next(((s, n) for s, n in _BYTES if size >= s), (1.0, "B"))
    return f"{size / scale:.3g} {name}"


_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def shown(value: float, unit: str) -> str:
    """A value with three digits and its unit."""
    if unit == "1/s":
        return f"{value:,.0f} /s"
    for scale, name in _BYTES if unit == "B" else _SECONDS:
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {name}"
    return f"{value:.0f} B" if unit == "B" else f"{value:.0f} s"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(abs(value)))) + 1)}f}" if value < 100 else f"{value:.0f}"


def encode(run: Run) -> bytes:
    """The JSON file, indented: people read it, and diffs of it."""
    return msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n"


def decode(data: bytes) -> Run:
    """A run from its JSON file. Raises msgspec.DecodeError, or ValueError for one of another format."""
    run = msgspec.json.decode(data, type=Run)
    if run.format != FORMAT:
        raise ValueError(f"the file has format {run.format}, this is {FORMAT}")
    return run
