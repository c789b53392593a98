"""Small ONNX models, and what holds for the canonical form of every one of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from refit_agent.authoring.canonical import CanonicalReport, canonicalize
from refit_agent.weights import OnnxWeights

Array = np.ndarray[Any, Any]
F, D, H, I64, B = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node
LOCAL = "local"


def value(name: str, shape: Sequence[int | str] | None = None, dtype: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, values: object, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def noise(name: str, *shape: int, dtype: Any = np.float32, seed: int = 0) -> TensorProto:
    rng = np.random.default_rng([seed, *name.encode()])
    return numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), name)


def constant(output: str, values: object, dtype: Any = np.float32) -> NodeProto:
    return node("Constant", [], [output], value=numpy_helper.from_array(np.asarray(values, dtype)))


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    weights: Sequence[TensorProto] = (),
    name: str = "g",
) -> GraphProto:
    return helper.make_graph(list(nodes), name, list(inputs), list(outputs), list(weights))


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 10,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> ModelProto:
    opsets = {"": opset, **({LOCAL: 1} if functions else {}), **(domains or {})}
    return helper.make_model(
        graph(nodes, inputs, outputs, weights),
        opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        ir_version=ir_version,
        functions=list(functions),
    )


class Canonical(NamedTuple):
    """A canonical form, with its weights in the graph again."""

    report: CanonicalReport
    path: Path
    model: ModelProto

    @property
    def nodes(self) -> list[str]:
        return [n.op_type for n in self.model.graph.node]

    @property
    def weights(self) -> dict[str, Array]:
        return {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}

    @property
    def external(self) -> list[str]:
        """Names of the weights in the data file, in its order."""
        raw = onnx.load(str(self.path), load_external_data=False)
        found = {t.name: places(t) for t in raw.graph.initializer if t.data_location == TensorProto.EXTERNAL}
        return sorted(found, key=lambda name: int(found[name]["offset"]))


def places(t: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in t.external_data}


def canonical(
    folder: Path,
    source: ModelProto,
    feeds: Mapping[str, Array] | None = None,
    *,
    expected: Sequence[Array] | None = None,
    tolerance: float = 1e-6,
    left: Iterable[str] = (),
    **options: Any,
) -> Canonical:
    """The canonical form of ``source``, checked for everything that holds for all of them.

    With ``feeds``, both are run by ONNX Runtime and must agree; with ``expected`` too, only the
    canonical form is run, for sources that ONNX Runtime does not take. ``left`` are names of
    Constant outputs that stay.
    """
    given = folder / "given"
    given.mkdir(exist_ok=True)
    path = given / "m.onnx"
    path.write_bytes(source.SerializeToString())
    made = check_file(folder, path, left=left, **{"check": False, **options})
    if feeds is not None:
        wanted = run(path, feeds) if expected is None else expected
        for one, other in zip(wanted, run(made.path, feeds), strict=True):
            assert_close(one, other, tolerance)
    return made


def check_file(folder: Path, path: Path, *, left: Iterable[str] = (), **options: Any) -> Canonical:
    """The canonical form of a file, checked for what holds for all of them."""
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    out = folder / "out" / path.name
    out.parent.mkdir(exist_ok=True)
    report = canonicalize(path, out, force=True, **options)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before
    wanted = {out.name, out.name + ".data"} if report.data else {out.name}
    assert {p.name for p in out.parent.iterdir()} == wanted
    result = Canonical(report, out, onnx.load(str(out)))
    _assert_canonical(result, set(left))
    _assert_stable(folder, path, result, options)
    return result


def _assert_canonical(made: Canonical, left: set[str]) -> None:
    """Every dense weight is an initializer of the main graph, under a name that no other tensor has."""
    assert not made.model.functions
    names: list[str] = []
    for inner in graphs(made.model.graph):
        assert inner is made.model.graph or not inner.initializer
        names += [t.name for t in inner.initializer]
        names += [o for n in inner.node for o in n.output if o] + [i.name for i in inner.input]
    own = [t.name for t in made.model.graph.initializer]
    assert all(names.count(name) == 1 for name in own)
    assert {n.output[0] for n in nodes(made.model.graph) if n.op_type == "Constant"} == left
    with OnnxWeights(made.path) as weights:
        assert list(weights) == [*own, *(key for key in weights if key in left)]
        assert len(weights.external_files()) <= 1 or not made.report.data
        assert len(weights.batch_norms) <= made.report.batch_norms_left
    made.model.graph.doc_string = ""
    assert made.report.weights == len(own)
    assert made.report.onnx_bytes == made.path.stat().st_size
    assert made.report.data_bytes == (Path(made.report.data).stat().st_size if made.report.data else 0)


def _assert_stable(folder: Path, path: Path, made: Canonical, options: Mapping[str, Any]) -> None:
    """The same bytes from the same source, and from the canonical form itself."""
    for number, source in enumerate((path, made.path)):
        again = folder / f"again{number}"
        again.mkdir(exist_ok=True)
        canonicalize(source, again / path.name, **{**options, "check": False})
        for file in made.path.parent.iterdir():
            assert (again / file.name).read_bytes() == file.read_bytes(), (number, file.name)
        shutil.rmtree(again)


def nodes(start: GraphProto) -> Iterator[NodeProto]:
    for inner in graphs(start):
        yield from inner.node


def graphs(start: GraphProto) -> Iterator[GraphProto]:
    yield start
    for n in start.node:
        for attribute in n.attribute:
            for inner in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from graphs(inner)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: Mapping[str, Array]) -> list[Any]:
    results: list[Any] = session(path).run(None, dict(feeds))
    return results


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_close(a, b, tolerance)
        return
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    if one.dtype.kind != "f":
        assert np.array_equal(one, other)
        return
    distance = np.linalg.norm((one.astype(np.float64) - other.astype(np.float64)).reshape(-1))
    assert distance <= tolerance * max(float(np.linalg.norm(one.astype(np.float64).reshape(-1))), 1e-30)


def branches(then: GraphProto, other: GraphProto, output: str = "z", condition: str = "k") -> NodeProto:
    return node("If", [condition], [output], then_branch=then, else_branch=other)


def both_ways(feeds: Mapping[str, Array], check: Callable[[dict[str, Array]], object]) -> None:
    """Call ``check`` with the condition k true and false."""
    for k in (True, False):
        check({**feeds, "k": np.array(k)})
