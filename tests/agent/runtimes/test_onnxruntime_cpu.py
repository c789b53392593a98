from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bundles import SIZE, edit, make_bundle, model_of
from jobs import installed_version, job_for
from refit_agent.errors import PlanInvalid, PlanRefused, RefitAgentError, RefitRefused, WeightsUncovered
from refit_agent.refit.pipeline import run
from refit_agent.refit.unpack import PlanImage
from refit_agent.runtimes.onnxruntime_cpu import OnnxRuntime, OpenedGraph, stripped_tensors
from refit_agent.weights import OnnxWeights


def ort_runtime() -> OnnxRuntime:
    """The runtime as a worker makes it, for the ONNX Runtime that is installed."""
    job = SimpleNamespace(
        module="onnxruntime", module_folder="", module_version=installed_version(), engine=SimpleNamespace(path="p")
    )
    return OnnxRuntime(job)  # type: ignore[arg-type]


def test_a_load_is_that_of_a_host_app_and_a_run_is_of_the_graph_as_it_stands(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an app's own optimisations need must be there; what only copies the weights is left out of both."""
    assert run(job_for(bundle, tmp_path / "staging"), lambda _: None).check == "golden"
    engine = str(tmp_path / "staging" / "model.onnx")
    made: list[tuple[object, list[str]]] = []
    session = onnxruntime.InferenceSession

    def recorded(path: str, options: onnxruntime.SessionOptions, **more: object) -> onnxruntime.InferenceSession:
        made.append((options.graph_optimization_level, list(more["disabled_optimizers"])))  # type: ignore[call-overload]
        return session(path, options, **more)

    runtime = ort_runtime()
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    runtime.load(engine)
    runtime.run(engine, {"x": np.ones((1, SIZE), np.float32)})
    (loading, without), (running, nothing) = made
    level = onnxruntime.GraphOptimizationLevel
    assert (loading, running, nothing) == (level.ORT_ENABLE_ALL, level.ORT_DISABLE_ALL, [])
    assert "ConvBNFusion" in without and "NchwcTransformer" in without


def image_of(path: Path) -> PlanImage:
    with open(path, "rb") as file:
        return PlanImage(str(path), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _external(tensor: onnx.TensorProto, location: str, **entries: int) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _tensor(name: str, location: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, dims=[SIZE], data_type=TensorProto.FLOAT)
    return _external(tensor, location, offset=0, length=SIZE * 4)


def _place(number: int, **entries: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = [t for t in model.graph.initializer if t.external_data][number]
        old = {e.key: e.value for e in tensor.external_data}
        new = {**old, **entries}
        location = new.pop("location")
        _external(tensor, str(location), **new)  # type: ignore[arg-type]

    return change


def _in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=_tensor("c", "../x")))


def _in_other_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("ConstantOfShape", ["x"], ["c"], value=_tensor("c", "../x")))


def _in_branch(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, [SIZE])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["i"], ["o"])], "b", [], [value], [_tensor("i", "weights.bin")]
    )
    model.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=branch, else_branch=branch))


def _in_sparse(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor("s", "../x"))
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [SIZE], list(range(SIZE))))
    sparse.dims.append(1000)


def _in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=_tensor("c", "../x"))
    model.functions.append(helper.make_function("d", "F", [], ["c"], [node], [helper.make_opsetid("", 17)]))


def _twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


HOSTILE = {
    "parent": _place(0, location="../weights.bin"),
    "absolute": _place(0, location="/etc/passwd"),
    "other file": _place(0, location="model.onnx"),
    "empty": _place(0, location=""),
    "dot": _place(0, location="./weights.bin"),
    "overlap": _place(1, offset=4096),
    "gap": _place(1, offset=1 << 40),
    "past the end": _place(1, offset=(1 << 63) - 8),
    "negative": _place(0, offset=-4096),
    "short": _place(0, length=8),
    "long": _place(0, length=1 << 40),
    "no number": _place(0, offset="x"),
    "constant": _in_constant,
    "other attribute": _in_other_attribute,
    "branch": _in_branch,
    "sparse": _in_sparse,
    "function": _in_function,
    "twice": _twice,
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_plan_that_keeps_weights_anywhere_else_is_refused_before_anything_is_written(
    bundle: Path, tmp_path: Path, attack: str
) -> None:
    """Other files, other places, nested graphs, overlaps and gaps."""
    plan = bundle / "plans/mlp.cpu"
    model = onnx.load(str(plan), load_external_data=False)
    assert len([t for t in model.graph.initializer if t.external_data]) == 2
    HOSTILE[attack](model)
    plan.write_bytes(model.SerializeToString())

    def rewrite(document: dict[str, object]) -> None:
        from refit_agent.authoring.write_bundle import file_ref

        ref = file_ref(str(bundle), "plans/mlp.cpu")
        engine = model_of(document)["engines"][0]
        engine.update(size=ref.size, sha256=ref.sha256, plan_size=ref.size, plan_sha256=ref.sha256)

    edit(bundle, rewrite)
    staging = tmp_path / "staging"
    with pytest.raises(RefitAgentError) as info:
        run(job_for(bundle, staging), lambda _: None)
    assert info.value.code in ("plan-invalid", "onnx-malformed", "onnx-external-missing"), info.value
    assert list(staging.iterdir()) == []


def test_a_plan_that_names_another_file_is_called_invalid_with_the_name(bundle: Path) -> None:
    """The message says what a CPU plan may do."""
    plan = bundle / "plans/mlp.cpu"
    model = onnx.load(str(plan), load_external_data=False)
    HOSTILE["absolute"](model)
    plan.write_bytes(model.SerializeToString())
    with pytest.raises(PlanInvalid, match="'/etc/passwd', and a CPU plan may keep them only in weights.bin"):  # noqa: RUF043
        stripped_tensors(image_of(plan))


def test_a_finished_model_loads_and_computes_in_any_onnx_runtime(bundle: Path, tmp_path: Path) -> None:
    """With the default optimisations, from wherever its folder was moved to."""
    import onnxruntime

    staging = tmp_path / "staging"
    done = run(job_for(bundle, staging), lambda _: None)
    assert [f.name for f in done.files] == ["model.onnx", "weights.bin"]
    staging.rename(tmp_path / "moved")
    x = np.load(bundle / "golden/x.npy")
    session = onnxruntime.InferenceSession(str(tmp_path / "moved/model.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], np.load(bundle / "golden/y.npy"), rtol=1e-5)


def test_a_refit_without_all_its_weights_is_refused(bundle: Path) -> None:
    """The missing ones are named."""
    opened = OpenedGraph(image_of(bundle / "plans/mlp.cpu"))
    assert sorted(opened.wanted()) == ["w1", "w2"]
    with OnnxWeights(bundle / "models/mlp.onnx") as weights:
        opened.set_weight("w1", "float32", weights["w1"].array())
        with pytest.raises(RefitRefused, match="weights were not set: w2"):
            opened.refit()
        opened.close()


def test_of_many_missing_weights_some_are_named(bundle: Path) -> None:
    """The message fits into one event to the parent."""
    opened = OpenedGraph(image_of(bundle / "plans/mlp.cpu"))
    ref = opened._tensors["w1"]
    opened._tensors = {f"weight number {n}": ref for n in range(100_000)}
    weights = OnnxWeights(bundle / "models/mlp.onnx")
    with weights, pytest.raises(WeightsUncovered, match="100000 of the plan's weights") as info:
        opened.sources(weights, None)
    assert len(str(info.value)) < 1000
    assert "weight number 0," in str(info.value)
    assert "and others" in str(info.value)


def test_a_run_without_inputs_makes_some_up_of_every_type(tmp_path: Path) -> None:
    """Symbolic dimensions become one."""
    types = ["FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"]
    inputs = [helper.make_tensor_value_info(t, getattr(TensorProto, t), ["n", 2]) for t in types]
    outputs = [helper.make_tensor_value_info("o" + t, getattr(TensorProto, t), ["n", 2]) for t in types]
    nodes = [helper.make_node("Identity", [t], ["o" + t]) for t in types]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    path = tmp_path / "m.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )
    got = ort_runtime().run(str(path), None)
    assert {name: array.shape for name, array in got.items()} == {"o" + t: (1, 2) for t in types}


def test_a_model_that_the_runtime_does_not_take_is_refused_with_its_words(tmp_path: Path) -> None:
    """Path and version are in the message."""
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(PlanRefused, match=r"m\.onnx"):
        ort_runtime().run(str(tmp_path / "m.onnx"), None)


def test_running_out_of_memory_is_not_held_against_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be skipped on this machine from then on."""
    runtime = ort_runtime()

    class Greedy:
        def __getattr__(self, name: str) -> object:
            raise MemoryError

    root = make_bundle(tmp_path / "bundle")
    monkeypatch.setattr(runtime._module, "InferenceSession", lambda *_, **__: Greedy())
    with pytest.raises(MemoryError):
        runtime.run(str(root / "models/mlp.onnx"), {})
