"""Finding the weights of an ONNX file: their names, types, shapes and places, by us and by the onnx package.

The files are sparse: neither way looks at values, but onnx.load has to read what lies between the names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from bench.measured import OURS, Bound, Findings, Row, Way, shown_size
from bench.models import holes, make_external, make_inside
from bench.process_memory import growth
from bench.timing import in_turn

_Lister: TypeAlias = Callable[[str], list[Any]]

PART = "index"
_TENSORS = 400
_INSIDE = (1_000_000, 16_000_000, 128_000_000, 1_000_000_000)
_EXTERNAL = (1_000_000, 16_000_000, 128_000_000, 1_000_000_000, 4_000_000_000)
_QUICK = (1_000_000, 16_000_000)
_MEMORY = "what listing all weights adds to a process at its peak, the result held"
_MB, _GB = 1_000_000, 1_000_000_000
#: onnx.load holds a file's bytes and its tensors at once.
_LOADED_TIMES = 2.5
#: What may come and go with the allocator, which takes memory from the system a megabyte at a time.
_ALLOCATOR_BYTES = 2.0 * _MB
NAMES = f"{OURS}, names alone"
ONNX_WHOLE = "onnx.load"
INSIDE, EXTERNAL = "listing weights inside the file", "listing weights in external data"
ONNX_EXTERNAL = "onnx.load without external data"


def list_ours(path: str) -> list[Any]:
    """Name, type, shape, file, offset and size of every weight."""
    from refit_agent.weights import OnnxWeights

    with OnnxWeights(path) as weights:
        return [(w.name, w.dtype, w.shape, w.file, w.offset, w.nbytes) for w in weights.values()]


def list_names(path: str) -> list[Any]:
    """The names alone."""
    from refit_agent.weights import OnnxWeights

    with OnnxWeights(path) as weights:
        return list(weights)


def list_by_onnx(path: str) -> list[Any]:
    """The same of the external form; of weights inside, the onnx package gives no place, but holds the values."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return [
        (t, t.name, t.data_type, tuple(t.dims), {entry.key: entry.value for entry in t.external_data})
        for t in graph.initializer
    ]


def load_by_onnx(path: str) -> list[Any]:
    """With the values of all weights."""
    import onnx

    return list(onnx.load(path).graph.initializer)


def measure(findings: Findings, work: Path, *, quick: bool) -> None:
    """Both forms at every size."""
    small = make_inside(work / "small", _MB, _TENSORS, holes).path
    for what, make, sizes in ((INSIDE, make_inside, _INSIDE), (EXTERNAL, make_external, _EXTERNAL)):
        for size in _QUICK if quick else sizes:
            made = make(work / "model", size, _TENSORS, holes)
            ways: dict[str, _Lister] = {OURS: list_ours, NAMES: list_names}
            if what == EXTERNAL:
                ways[ONNX_EXTERNAL] = list_by_onnx
            if what == INSIDE or _fits(size):
                ways[ONNX_WHOLE] = load_by_onnx
            else:
                findings.leave(PART, f"{ONNX_WHOLE} of {shown_size(size, 'B')}", "it takes more memory than is free")
            findings.add(_row(what, size, ways, str(made.path), str(small), rounds=5 if quick else 20))
            shutil.rmtree(work / "model")
    _bound(findings)


def _fits(size: int) -> bool:
    """Whether loading the whole model leaves the machine some memory."""
    return bool(_LOADED_TIMES * size < psutil.virtual_memory().available)


def _row(what: str, size: int, listed: Mapping[str, _Lister], path: str, small: str, rounds: int) -> Row:
    assert all(len(way(path)) == _TENSORS for way in listed.values())
    fast = {name: partial(way, path) for name, way in listed.items() if name != ONNX_WHOLE or size <= 50 * _MB}
    times = in_turn(fast, rounds)
    if ONNX_WHOLE in listed and ONNX_WHOLE not in fast:
        times |= in_turn({ONNX_WHOLE: partial(load_by_onnx, path)}, 3 if size < 2 * _GB else 1)
    ways = tuple(
        Way(name=name, value=times[name].median, private=_memory(way.__name__, path, small))
        for name, way in listed.items()
    )
    return Row(part=PART, what=what, size=size, size_unit="B", unit="s", memory=_MEMORY, ways=ways)


def _memory(function: str, path: str, small: str) -> int:
    here = str(Path(__file__).resolve().parents[1])
    # Once before, on a small file: what imports cost is no matter of size.
    prepare = f"sys.path.insert(0, {here!r})\nfrom bench.part_index import {function} as listed\nlisted(sys.argv[2])"
    return growth(prepare, "listed(sys.argv[1])", path, small)


def _bound(findings: Findings) -> None:
    for what in (INSIDE, EXTERNAL):
        ours = [row.ways[0] for row in findings.rows if row.part == PART and row.what == what]
        more = max(way.private or 0 for way in ours) - (ours[0].private or 0)
        findings.bounds.append(
            Bound(
                text=f"index, {what}: memory at any size above that of the smallest model",
                value=float(max(more, 0)),
                limit=_ALLOCATOR_BYTES,
                unit="B",
            )
        )
