"""Models as they come: a residual network and a transformer encoder; and what a refit sees of their canonical form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from refit_agent.authoring.canonical import CanonicalReport, canonicalize
from refit_agent.weight_map import Prototype, resolve
from refit_agent.weights import OnnxWeights

from .models import B, F, H, branches, canonical, constant, graph, model, node, noise, tensor, value


class _Builder:
    def __init__(self, dtype: Any = np.float32) -> None:
        self.rng = np.random.default_rng(5)
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.weights: list[TensorProto] = []

    def weight(self, name: str, *shape: int, low: float | None = None) -> str:
        if low is None:
            numbers = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)
        else:
            numbers = self.rng.uniform(low, low + 1, shape)
        self.weights.append(tensor(name, numbers, self.dtype))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, list(inputs), [name], name=f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def conv_norm(self, x: str, name: str, inside: int, outside: int, size: int = 3, stride: int = 1) -> str:
        x = self.op("Conv", x, self.weight(f"{name}.weight", outside, inside, size, size), strides=[stride] * 2, pads=[size // 2] * 4)  # fmt: skip
        parts = [self.weight(f"{name}.bn.{p}", outside, low=low) for p, low in (("g", 0.5), ("b", -0.5), ("m", -0.5), ("v", 0.5))]  # fmt: skip
        return self.op("BatchNormalization", x, *parts)


def residual_network(dtype: Any = np.float32, code: int = F) -> ModelProto:
    """A stem, four blocks of two convolutions, each with BatchNormalization, and a norm in front of the head."""
    b = _Builder(dtype)
    x = b.op("Relu", b.conv_norm("image", "stem", 3, 8, 7, 2))
    inside = 8
    for block, outside in enumerate((8, 16, 16, 32)):
        skip = x if inside == outside else b.conv_norm(x, f"{block}.down", inside, outside, 1, 2)
        y = b.op("Relu", b.conv_norm(x, f"{block}.1", inside, outside, 3, 1 if inside == outside else 2))
        x = b.op("Relu", b.op("Add", b.conv_norm(y, f"{block}.2", outside, outside), skip))
        inside = outside
    x = b.op("GlobalAveragePool", x)
    parts = [b.weight(f"head.bn.{p}", 32, low=low) for p, low in (("g", 0.5), ("b", -0.5), ("m", -0.5), ("v", 0.5))]
    x = b.op("Flatten", b.op("BatchNormalization", x, *parts))
    b.nodes.append(node("Gemm", [x, b.weight("fc.w", 10, 32), b.weight("fc.b", 10)], ["logits"], transB=1))
    return model(b.nodes, [value("image", ["n", 3, 32, 32], code)], [value("logits", ["n", 10], code)], b.weights)


def encoder(dtype: Any = np.float32, code: int = F) -> ModelProto:
    """Two layers of attention and a feed-forward part, with embeddings, constants in nodes, and a tied weight."""
    b = _Builder(dtype)
    dim, heads, seq = 32, 4, 6

    def fixed(values: Any, kind: Any = dtype) -> str:
        name = f"/const{len(b.nodes)}"
        b.nodes.append(constant(name, values, kind))
        return name

    def norm(x: str, name: str) -> str:
        return b.op("LayerNormalization", x, b.weight(f"{name}.g", dim, low=0.5), b.weight(f"{name}.b", dim))

    def linear(x: str, name: str, inside: int, outside: int) -> str:
        return b.op("Add", b.op("MatMul", x, b.weight(f"{name}.w", inside, outside)), b.weight(f"{name}.b", outside))

    table = b.weight("tokens", 50, dim)
    x = norm(b.op("Add", b.op("Gather", table, "ids"), b.weight("positions", 1, seq, dim)), "ln0")
    for layer in ("l0", "l1"):
        q, k, v = (
            b.op("Transpose", b.op("Reshape", linear(x, f"{layer}.{n}", dim, dim), fixed([0, 0, heads, dim // heads], np.int64)), perm=[0, 2, 1, 3])
            for n in "qkv"
        )  # fmt: skip
        scores = b.op("Mul", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), fixed((dim / heads) ** -0.5))
        mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
        joined = b.op("Reshape", b.op("Transpose", mixed, perm=[0, 2, 1, 3]), fixed([0, 0, dim], np.int64))
        x = norm(b.op("Add", x, linear(joined, f"{layer}.o", dim, dim)), f"{layer}.ln1")
        y = linear(x, f"{layer}.fc1", dim, 2 * dim)
        y = b.op("Mul", b.op("Mul", y, fixed(0.5)), b.op("Add", b.op("Erf", b.op("Mul", y, fixed(2**-0.5))), fixed(1.0)))  # fmt: skip
        x = norm(b.op("Add", x, linear(y, f"{layer}.fc2", 2 * dim, dim)), f"{layer}.ln2")
    tied = b.op("Transpose", b.op("Identity", table))
    b.nodes.append(node("MatMul", [x, tied], ["scores"]))
    return model(b.nodes, [value("ids", ["n", seq], TensorProto.INT32)], [value("scores", ["n", seq, 50], code)], b.weights)  # fmt: skip


@pytest.mark.parametrize(("dtype", "code", "allowed"), [(np.float32, F, 1e-6), (np.float16, H, 5e-3)])
def test_a_residual_network(tmp_path: Path, dtype: Any, code: int, allowed: float) -> None:
    """Eleven norms go into their convs, the last one becomes Mul and Add; the results are the same but for rounding."""
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(dtype)
    made = canonical(tmp_path, residual_network(dtype, code), {"image": image}, tolerance=allowed, check=True)
    assert (made.report.folded, made.report.scaled, made.report.batch_norms_left) == (11, 1, 0)
    assert made.report.check.done and 0 < made.report.check.errors["logits"] < allowed
    with OnnxWeights(made.path) as weights:
        assert weights.batch_norms == ()


@pytest.mark.parametrize(("dtype", "code"), [(np.float32, F), (np.float16, H)])
def test_an_encoder(tmp_path: Path, dtype: Any, code: int) -> None:
    """No arithmetic changes, so the results are equal bit for bit; the tied weight has one name."""
    ids = np.random.default_rng(0).integers(0, 50, (2, 6)).astype(np.int32)
    made = canonical(tmp_path, encoder(dtype, code), {"ids": ids}, tolerance=0.0, check=True)
    assert made.report.identities_removed == 1 and made.report.hoisted == 16
    assert [n.input[0] for n in made.model.graph.node if n.op_type == "Gather"] == ["tokens"]
    assert made.report.check.errors == {"scores": 0.0}


def _nested() -> ModelProto:
    """Constants of one name in both branches, in a form that every parser names otherwise."""
    sides = [
        graph([constant("c", [number] * 2), node("Add", ["x", "c"], [f"o{number}"])], [], [value(f"o{number}", None)])
        for number in (1, 2)
    ]
    shape = [tensor("s", [2], np.int64)]
    fill = node("ConstantOfShape", ["s"], ["f"], value=tensor("v", [3]))
    parts = [fill, branches(*sides), node("Mul", ["z", "f"], ["y"])]
    return model(parts, [value("x", [2]), value("k", [], B)], [value("y", None)], shape)


@pytest.mark.parametrize(("builder", "rtx"), [((8, 6, 0, 12), False), ((10, 0, 1, 6), False), ((10, 9, 0, 34), False), ((10, 14, 1, 48), False), ((1, 7, 1, 116), True)])  # fmt: skip
@pytest.mark.parametrize("source", [residual_network, encoder, _nested], ids=lambda f: f.__name__)
def test_every_parser_names_every_weight_by_its_initializer(tmp_path: Path, source: Any, builder: tuple[int, ...], rtx: bool) -> None:  # fmt: skip
    """So a refit takes the bytes as they lie in the file. 8.6 alone imports int64 as int32."""
    (tmp_path / "m.onnx").write_bytes(source().SerializeToString())
    report: CanonicalReport = canonicalize(tmp_path / "m.onnx", tmp_path / "o.onnx", check=False)
    with OnnxWeights(tmp_path / "o.onnx") as weights:
        wanted = {}
        for name, ref in weights.items():
            imported = "int32" if ref.dtype == "int64" and builder[0] == 8 and not rtx else ref.dtype
            wanted[name] = Prototype(None if builder[0] == 8 and not rtx else imported, ref.count)
        sources = resolve(wanted, weights, builder=builder, rtx=rtx)
        assert len(sources) == report.weights > 0
        for name, found in sources.items():
            is_cast = weights[name].dtype == "int64" and builder[0] == 8 and not rtx
            assert (found.transform, found.sources) == ("cast" if is_cast else "identity", (name,))
        data = [ref for ref in weights.values() if ref.file.suffix == ".data"]
        offsets = [ref.offset for ref in data]
        assert offsets == sorted(offsets) and all(ref.is_view for ref in data)


def test_the_source_as_it_is_has_names_that_no_initializer_has(tmp_path: Path) -> None:
    """What the canonical form is for: without it the same question depends on the parser's counters."""
    (tmp_path / "m.onnx").write_bytes(residual_network().SerializeToString())
    with OnnxWeights(tmp_path / "m.onnx") as weights:
        assert len(weights.batch_norms) == 12
        found = resolve({"tmp_batch_norm_weight": Prototype("float32", 8)}, weights, builder=(10, 9, 0, 34))
        assert found["tmp_batch_norm_weight"].transform == "batch-norm-scale"


def test_weights_of_another_training_run(tmp_path: Path) -> None:
    """Their canonical form has the same graph, so that it can take the place of the first."""
    one, other = residual_network(), residual_network()
    for t in other.graph.initializer:
        fresh = noise(t.name, *t.dims, seed=8)
        if t.name.endswith(".v"):
            fresh = tensor(t.name, np.full(t.dims, 0.7))
        t.CopyFrom(fresh)
    for name, source in (("one", one), ("other", other)):
        (tmp_path / name).mkdir()
        (tmp_path / "m.onnx").write_bytes(source.SerializeToString())
        canonicalize(tmp_path / "m.onnx", tmp_path / name / "o.onnx", check=False)
    assert (tmp_path / "one/o.onnx").read_bytes() == (tmp_path / "other/o.onnx").read_bytes()
    assert (tmp_path / "one/o.onnx.data").read_bytes() != (tmp_path / "other/o.onnx.data").read_bytes()
