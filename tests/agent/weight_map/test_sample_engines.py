"""The real weight names of the four TensorRT 8.6 sample engines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from refit_agent.errors import WeightsAmbiguous, WeightsUncovered
from refit_agent.weights import OnnxWeights

from .models import V8_6, ask, batch_norm, folded, parameters, save, tensor

DATA = Path(__file__).parent / "data"
CHANNELS = 4


def names_of(model: str) -> list[str]:
    return json.loads((DATA / f"{model}.weights.json").read_text())


class Recipe:
    """The sample models' node order and names, with few channels."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.batch_norms: list[str] = []
        self.channels = 2

    def op(self, kind: str, *inputs: str) -> str:
        output = f"t{len(self.nodes) + 1}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"n{len(self.nodes) + 1}_{kind}"))
        return output

    def weight(self, name: str) -> str:
        self.initializers.append(tensor(name, np.full((2, 2), float(len(self.initializers)))))
        return name

    def conv_bn(self, x: str, weight: str, prefix: str, bias: tuple[str, ...] = ()) -> str:
        x = self.op("Conv", x, self.weight(weight), *map(self.weight, bias))
        output = f"t{len(self.nodes) + 1}"
        self.nodes.append(batch_norm(prefix, x, output))
        # Every length is different, so that a source in the wrong place shows.
        self.channels += 1
        self.initializers += parameters(prefix, self.channels)
        self.batch_norms.append(prefix)
        return output


def tiny() -> Recipe:
    r = Recipe()
    x = r.op("Relu", r.conv_bn("x", "c1.w", "bn1", ("c1.b",)))
    x = r.op("Relu", r.conv_bn(x, "c2.w", "bn2"))
    x = r.op("Flatten", r.op("GlobalAveragePool", x))
    r.op("Gemm", x, r.weight("fc.w"), r.weight("fc.b"))
    return r


def resnet50() -> Recipe:
    r = Recipe()
    x = r.op("MaxPool", r.op("Relu", r.conv_bn("x", "stem.conv.weight", "stem.bn")))
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            p, skip = f"layer{stage}.{block}", x
            y = x
            for i in "123":
                y = r.conv_bn(y, f"{p}.{i}.conv.weight", f"{p}.{i}.bn")
                y = r.op("Relu", y) if i != "3" else y
            if block == 0:
                skip = r.conv_bn(skip, f"{p}.down.conv.weight", f"{p}.down.bn")
            x = r.op("Relu", r.op("Add", y, skip))
    x = r.op("Flatten", r.op("GlobalAveragePool", x))
    r.op("Gemm", x, r.weight("fc.weight"), r.weight("fc.bias"))
    return r


@pytest.mark.parametrize(("model", "recipe"), [("tiny", tiny), ("resnet50", resnet50)])
def test_names_of_a_batch_norm_network_resolve_without_prototypes(model, recipe, tmp_path):
    made = recipe()
    weights = save(tmp_path, made.nodes, made.initializers)
    wanted = names_of(model)

    sources = ask(weights, wanted, V8_6)

    assert list(sources) == wanted
    temporaries = ["tmp_weight", *(f"tmp_weight_{i}" for i in range(2 * len(made.batch_norms) - 1))]
    assert set(temporaries) == {n for n in wanted if n.startswith("tmp_")}
    for k, prefix in enumerate(made.batch_norms):
        scale, bias = folded(weights, prefix)
        assert sources[temporaries[2 * k]].array().tobytes() == scale.tobytes()
        assert sources[temporaries[2 * k + 1]].array().tobytes() == bias.tobytes()
    for name in set(wanted) - set(temporaries):
        assert sources[name].sources == (name,)


def test_resnet50_with_one_dropped_batch_norm_is_ambiguous(tmp_path):
    made = resnet50()
    weights = save(tmp_path, made.nodes, made.initializers)
    wanted = [n for n in names_of("resnet50") if n not in ("tmp_weight_9", "tmp_weight_10")]

    with pytest.raises(WeightsAmbiguous):
        ask(weights, wanted, V8_6)


def test_resnet50_with_half_a_pair_is_refused(tmp_path):
    made = resnet50()
    weights = save(tmp_path, made.nodes, made.initializers)
    wanted = [n for n in names_of("resnet50") if n != "tmp_weight_9"]

    with pytest.raises(WeightsUncovered, match="cannot be matched"):
        ask(weights, wanted, V8_6)


@pytest.mark.parametrize("model", ["tiny", "resnet50", "bert_fp16", "bert_large_fp16"])
def test_names_of_the_real_models(model):
    folder = Path(os.environ.get("REFIT_AGENT_TEST_MODELS", "/tmp/models"))
    path = folder / f"{model}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing; make it with make_models.py, or set REFIT_AGENT_TEST_MODELS")
    weights = OnnxWeights(path)
    wanted = names_of(model)

    sources = ask(weights, wanted, V8_6)

    assert list(sources) == wanted
    prefixes = [b.scale.removesuffix(".weight") for b in weights.batch_norms]
    for k, prefix in enumerate(prefixes):
        g, b, m, v = (weights[f"{prefix}.{p}"].array() for p in ("weight", "bias", "running_mean", "running_var"))
        scale = g / np.sqrt(v + np.float32(1e-5))
        names = ["tmp_weight" if i < 0 else f"tmp_weight_{i}" for i in (2 * k - 1, 2 * k)]
        assert sources[names[0]].array().tobytes() == scale.tobytes()
        assert sources[names[1]].array().tobytes() == (b - m * scale).tobytes()
    plain = [s for s in sources.values() if not s.engine_name.startswith("tmp_")]
    assert {s.transform for s in plain} == {"identity"}
    assert all(s.array().ctypes.data == weights[s.engine_name].array().ctypes.data for s in plain)
