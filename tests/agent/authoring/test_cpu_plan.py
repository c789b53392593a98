from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bundles import SIZE, make_onnx
from refit_agent.authoring.cpu_plan import MIN_STRIPPED_BYTES, make_cpu_plan
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.errors import ManifestInvalid, OnnxError, OnnxMalformed, PlanInvalid
from refit_agent.manifest import App, Engine, FileRef, Manifest, Model


def test_a_plan_holds_the_graph_and_none_of_the_weights(tmp_path: Path) -> None:
    """Small tensors stay, large ones are named with their places, page by page."""
    make_onnx(tmp_path / "m.onnx")
    made = make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    data = (tmp_path / "plan").read_bytes()
    assert made == (len(data), 2 * SIZE * SIZE * 4, 0, "1.18", "")
    source = onnx.load(str(tmp_path / "m.onnx"))
    for tensor in source.graph.initializer:
        assert (tensor.raw_data in data) == (len(tensor.raw_data) < MIN_STRIPPED_BYTES)
    plan = onnx.load(str(tmp_path / "plan"), load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in plan.graph.initializer if t.external_data}
    assert sorted(places) == ["w1", "w2"]
    offsets = sorted(int(p["offset"]) for p in places.values())
    assert offsets == [0, 12288]
    assert all(p["location"] == "weights.bin" for p in places.values())
    onnx.checker.check_model(onnx.load(str(tmp_path / "m.onnx")))


def test_the_same_model_gives_the_same_plan(tmp_path: Path) -> None:
    """Two builds of one app share their cache entries."""
    make_onnx(tmp_path / "m.onnx")
    for name in ("one", "two"):
        make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_weights_in_external_files_are_stripped_as_well(tmp_path: Path) -> None:
    """Wherever the source keeps them, the plan is the same."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    make_onnx(tmp_path / "a/m.onnx")
    make_onnx(tmp_path / "b/m.onnx", external="w.bin")
    made = [make_cpu_plan(str(tmp_path / d / "m.onnx"), str(tmp_path / d / "plan")) for d in "ab"]
    assert made[0].stripped_bytes == made[1].stripped_bytes


def _domains(path: Path) -> tuple[set[str], set[str]]:
    """Of the operators, and of the operator sets that the model imports."""
    model = onnx.load(str(path), load_external_data=False)
    return {node.domain for node in model.graph.node}, {opset.domain for opset in model.opset_import}


def test_a_plan_keeps_to_the_standard_s_operators(tmp_path: Path) -> None:
    """What ONNX Runtime would fuse into its own, as MatMul with Transpose, an older one could not run."""
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.standard_normal((SIZE, SIZE), np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t"], ["m"]),
        helper.make_node("Mul", ["m", "half"], ["y"]),
    ]
    half = numpy_helper.from_array(np.float32(0.5).reshape(1), "half")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, half])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    assert made.min_runtime == "1.18"
    assert _domains(tmp_path / "plan") == ({""}, {""})


def test_a_plan_with_operators_of_its_release_promises_nothing(tmp_path: Path) -> None:
    """A source with ONNX Runtime's own operators keeps them, and everything that they need."""
    rng = np.random.default_rng(3)
    weight = numpy_helper.from_array(rng.standard_normal((SIZE, SIZE), np.float32), "w")
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", alpha=0.5)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=imports, ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    assert (made.min_runtime, made.why_newer) == (None, "it has operators of com.microsoft")
    operators, imported = _domains(tmp_path / "plan")
    assert operators == {"com.microsoft"} and {"", "com.microsoft", "ai.onnx.ml"} <= imported


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_a_quantised_model_is_fused_in_the_plan(domain: str, tmp_path: Path) -> None:
    """Golden data are compared with the graph in the file: unfused it would give other results than the author saw."""
    rng = np.random.default_rng(3)
    codes = numpy_helper.from_array(rng.integers(-127, 127, (SIZE, SIZE)).astype(np.int8), "w")
    scale = numpy_helper.from_array(np.float32(0.02), "s")
    zero = numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], domain=domain),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], domain=domain),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], domain=domain),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"], domain=domain),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"], domain=domain),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE, SIZE])
    graph = helper.make_graph(nodes, "g", [x], [y], [codes, scale, zero])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    assert made.min_runtime is None and ("quantised" in made.why_newer or domain in made.why_newer.split())
    plan = onnx.load(str(tmp_path / "plan"), load_external_data=False)
    assert "QLinearMatMul" in {node.op_type for node in plan.graph.node}


def test_a_model_that_names_no_opset_promises_nothing(tmp_path: Path) -> None:
    """ONNX Runtime writes its own newest into the plan, which an older one refuses to read."""
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[2.0])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    imports = [helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(helper.make_graph([scaler], "g", [x], [y]), opset_imports=imports, ir_version=8)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    made = make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    assert made.min_runtime is None and made.why_newer


def _save(path: Path, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIZE])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x, c], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def test_weights_of_a_nested_graph_never_get_lost(tmp_path: Path) -> None:
    """They stay in the plan, or the author is told at once and gets none."""
    branches = []
    for seed in (1, 2):
        weight = numpy_helper.from_array(
            np.random.default_rng(seed).standard_normal((SIZE, SIZE), np.float32), f"w{seed}"
        )
        out = helper.make_tensor_value_info(f"o{seed}", TensorProto.FLOAT, [SIZE])
        node = helper.make_node("MatMul", ["x", f"w{seed}"], [f"o{seed}"])
        branches.append(helper.make_graph([node], f"b{seed}", [], [out], [weight]))
    _save(
        tmp_path / "m.onnx",
        [helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])],
        [],
    )
    try:
        make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    except (PlanInvalid, OnnxMalformed):  # ONNX Runtime 1.23 writes one of them twice
        assert not (tmp_path / "plan").exists()
    else:
        assert (tmp_path / "plan").stat().st_size > 2 * SIZE * SIZE * 4


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(OnnxMalformed, match="it is empty"):
        make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))


def test_a_damaged_source_is_refused(tmp_path: Path) -> None:
    """By an error of ours or the runtime's, and without a plan."""
    (tmp_path / "m.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0fgarbage")
    with pytest.raises(Exception) as info:
        make_cpu_plan(str(tmp_path / "m.onnx"), str(tmp_path / "plan"))
    assert isinstance(info.value, OnnxError) or "onnxruntime" in type(info.value).__module__
    assert not (tmp_path / "plan").exists()


def _manifest(app: str = "org.example") -> Manifest:
    engine = Engine(path="p", size=1, sha256="0" * 64, runtime="onnxruntime", built_with="1.0", plan_size=1)
    model = Model(name="m", onnx=FileRef(path="m", size=1, sha256="0" * 64), engines=(engine,))
    return Manifest(schema=1, app=App(id=app, name="n", version="1"), models=(model,))


def test_a_manifest_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """One that would not be read again does not replace one that would."""
    path = Path(write_manifest(str(tmp_path), _manifest()))
    before = path.read_bytes()
    assert json.loads(before)["schema"] == 1
    with pytest.raises(ManifestInvalid, match=r"\$\.app\.id"):
        write_manifest(str(tmp_path), _manifest("no dots"))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle.json"]
    assert file_ref(str(tmp_path), "bundle.json").size == len(before)
