"""Which curves are drawn: how time and memory grow with the model, with the number of engines and of clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench import part_clients, part_hit, part_index, part_provision
from bench.many_engines import HUB_LOCAL, HUB_LOOK
from bench.measured import OURS, Run, Way
from bench.plot import Colour, Curve, Panel, svg

#: Where a curve of memory lies whose values are below a page.
_LEAST_BYTES = 4096.0


class _Drawn(NamedTuple):
    """One curve: the rows' ``what``, the way, and which number of it."""

    label: str
    colour: Colour
    what: str
    way: str
    dashed: bool = False


_BY_SIZE = (
    _Drawn("making: plain", "plain", part_provision.WHAT, part_provision.PLAIN),
    _Drawn("making: refit-agent", "ours", part_provision.WHAT, OURS),
    _Drawn("listing: onnx.load", "plain", part_index.EXTERNAL, part_index.ONNX_WHOLE, dashed=True),
    _Drawn("listing: refit-agent", "ours", part_index.EXTERNAL, OURS, dashed=True),
    _Drawn("hit: refit-agent", "more", part_hit.BY_SIZE, OURS),
)
_HITS = (
    _Drawn("refit-agent", "ours", part_hit.BY_COUNT, OURS),
    _Drawn("its cache alone", "more", part_hit.BY_COUNT, part_hit.ALONE),
    _Drawn("hf_hub_download, local", "plain", part_hit.BY_COUNT, HUB_LOCAL),
    _Drawn("try_to_load_from_cache", "other", part_hit.BY_COUNT, HUB_LOOK),
)
_RATES = (
    _Drawn("from the service", "ours", part_clients.FLAT_OUT, part_clients.SERVICE),
    _Drawn("in the process", "more", part_clients.FLAT_OUT, part_clients.IN_PROCESS),
    _Drawn("try_to_load_from_cache", "other", part_clients.FLAT_OUT, HUB_LOOK),
)
_PACED = _Drawn("median", "ours", part_clients.PACED, part_clients.SERVICE)


def draw(run: Run) -> str:
    """The SVG. Curves that the run has no rows for are left out, and panels without any."""
    memory = "private memory that it adds; making: of all its processes"
    panels = [
        Panel("Time, by size of the model", "size of the model", "time", "B", "s", _curves(run, _BY_SIZE, _value)),
        Panel("Memory, by size of the model", "size of the model", memory, "B", "B", _curves(run, _BY_SIZE, _private)),
        Panel("A hit, by number of engines in the cache", "engines in the cache", "time, median", "engines", "s", _curves(run, _HITS, _value), (part_hit.HIT_S, "bound: 0.3 ms")),
        Panel("A hit from the service, 2,000 a second in all", "clients, each a process", "time", "clients", "s", [*_curves(run, [_PACED], _value), *_curves(run, [_PACED._replace(label="99th percentile", dashed=True)], _late)], (part_clients.LATE_S, "bound of the 99th percentile: 3 ms")),
        Panel("Hits a second in all, no pauses", "clients, each a process", "hits a second", "clients", "1/s", _curves(run, _RATES, _value)),
    ]  # fmt: skip
    return svg(
        [panel for panel in panels if panel.curves], _notes(run), "Benchmarks of Refit Agent, both axes logarithmic"
    )


def _notes(run: Run) -> Sequence[str]:
    facts = run.facts
    versions = facts["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("onnx", "onnxruntime", "huggingface_hub") if name in versions
    )
    return (
        f"{facts['date']}, commit {facts['commit']}, load before the run {facts['load_before']:.1f}",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {facts['disk']}",
        f"{', '.join(facts['gpus']) or 'no GPU'}; {facts['python']}",
        named,
        "",
        "making: an engine for the CPU target, whole processes, to the disk",
        "plain: onnx.load, NumPy, set every weight, save, fsync",
        "listing: name, type, shape and place of 400 weights, external data",
        "hit: manifest, choice, look into the cache, lease",
        "memory below a page is drawn as a page (4 KB)",
        "Both axes are logarithmic. All numbers: docs/benchmarks.json;",
        "measured by: python -m tests.bench",
    )


def _value(way: Way) -> float | None:
    return way.value


def _late(way: Way) -> float | None:
    return way.late


def _private(way: Way) -> float | None:
    return None if way.private is None else max(float(way.private), _LEAST_BYTES)


def _curves(run: Run, wanted: Sequence[_Drawn], number: object) -> list[Curve]:
    found = []
    for drawn in wanted:
        ways = [(row.size, row.way(drawn.way)) for row in run.rows if row.what == drawn.what]
        points = [(size, value) for size, way in ways if way and (value := number(way)) is not None]  # type: ignore[operator]
        if points:
            found.append(Curve(drawn.label, drawn.colour, sorted(points), drawn.dashed))
    return found
