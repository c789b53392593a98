"""The table: one line for each way, those of one row one below the other."""

from __future__ import annotations

from collections.abc import Iterable

from bench.measured import Bound, Left, Row, Run, Way, shown, shown_size

_WIDTHS = (52, 42, 10, 10, 8, 10)
#: Load before a run, for each core, above which a missed bound says nothing of the code.
_BUSY = 0.5
_HEAD = ("what", "way", "median", "99 %", "of ours", "private")


def head() -> str:
    return _line(_HEAD) + "\n" + "-" * (sum(_WIDTHS) + 2 * (len(_WIDTHS) - 1))


def lines(row: Row) -> str:
    """All ways of one row; "of ours" is a way's value divided by that of the first."""
    first = row.ways[0]
    found = []
    for way in row.ways:
        what = f"{row.what}, {shown_size(row.size, row.size_unit)}" if way is first else ""
        share = "" if way is first or not first.value else _times(way.value / first.value)
        found.append(_line((what, way.name, *_cells(way, row), share, _memory(way))))
    return "\n".join(found)


def closing(rows: Iterable[Row], bounds: Iterable[Bound], left: Iterable[Left]) -> str:
    """What the columns mean, the bounds, and what is not there."""
    meanings = sorted({f"{row.part}: {row.memory}" for row in rows if any(w.private is not None for w in row.ways)})
    text = ["", "private: memory that the kernel cannot take back (anonymous and dirty pages).", *(f"  {m}" for m in meanings)]  # fmt: skip
    text += [""] + [
        f"bound {'kept  ' if b.kept else 'MISSED'}  {b.text}: {shown(b.value, b.unit)}, "
        f"{'at least' if b.least else 'at most'} {shown(b.limit, b.unit)} (ratio {b.ratio:.2f})"
        for b in bounds
    ]
    text += [f"left out  {item.part}, {item.what}: {item.reason}" for item in left]
    return "\n".join(text)


def doubt(run: Run) -> str:
    """Why a missed bound may not be the code's; "" where none was missed, or the machine was idle."""
    load, cores = run.facts["load_before"], run.facts["cores"]
    if all(bound.kept for bound in run.bounds) or load is None or load <= _BUSY * cores:
        return ""
    return (
        f"The machine was too busy to judge: a load of {load:.1f} on {shown_size(cores, 'cores')} before the run. "
        "What was missed is to be measured again on an idle one."
    )


def _cells(way: Way, row: Row) -> tuple[str, str]:
    return shown(way.value, row.unit), "" if way.late is None else shown(way.late, row.unit)


def _memory(way: Way) -> str:
    return "" if way.private is None else shown(way.private, "B")


def _times(share: float) -> str:
    return f"{share:.2f} x" if share < 10 else f"{share:,.0f} x"


def _line(cells: Iterable[str]) -> str:
    padded = [
        cell.ljust(width) if number < 2 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return "  ".join(padded).rstrip()
