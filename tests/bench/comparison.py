"""Two runs beside each other: every number of the new one divided by the same one of the old."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measured import Run, shown

#: What makes runs incomparable, rather than one of them better.
_SAME = ("cpu", "cores", "python", "gpus", "quick", "disk")


def comparison(old: Run, new: Run) -> str:
    """A table of ratios; below 1 is better, but for rates. What only one of the runs has is named at the end."""
    before, after = dict(_numbers(old)), dict(_numbers(new))
    text = [f"{new.facts['commit']} against {old.facts['commit']} (new / old)"]
    for name in _SAME:
        one, two = _fact(old, name), _fact(new, name)
        if one != two:
            text.append(f"not comparable as it is: {name} is {two} and was {one}")
    for key in after:
        if key in before:
            unit = key[2]
            ratio = after[key] / before[key] if before[key] else float("nan")
            values = f"{shown(after[key], unit):>10} / {shown(before[key], unit):>10}"
            text.append(f"{ratio:7.2f}  {values}  {key[0]}, {key[1]}")
    text += [f"   only in the new run  {key[0]}, {key[1]}" for key in after if key not in before]
    text += [f"   only in the old run  {key[0]}, {key[1]}" for key in before if key not in after]
    return "\n".join(text)


def _fact(run: Run, name: str) -> object:
    return run.quick if name == "quick" else run.facts.get(name)


def _numbers(run: Run) -> Iterator[tuple[tuple[str, str, str], float]]:
    for row in run.rows:
        for way in row.ways:
            yield (row.name, way.name, row.unit), way.value
            if way.late is not None:
                yield (row.name, f"{way.name}, 99 %", row.unit), way.late
            if way.private is not None:
                yield (row.name, f"{way.name}, private memory", "B"), float(way.private)
