"""What resolve promises whatever the rule: everything or an error that lists all of it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from onnx import helper

from refit_agent.errors import WeightsAmbiguous, WeightsMismatch, WeightsUncovered

from .models import V8_6, V10_9, ask, batch_norm, chain, f32, folded, parameters, save, tensor


def test_every_uncovered_name_is_listed_with_its_reason(tmp_path):
    nodes, weights = chain([4])
    opened = save(tmp_path, nodes, [*weights, tensor("w", [1], np.uint16)], outputs=["x1"])
    wanted = ["w", "nobody", "tmp_batch_norm_weight_7", "gone KERNEL"]
    with pytest.raises(WeightsUncovered) as caught:
        ask(opened, wanted, V10_9)
    facts = caught.value.facts
    assert facts["count"] == 4
    assert facts["names"] == "w, nobody, tmp_batch_norm_weight_7, gone KERNEL"
    for words in ("uint16", "no naming rule", "only 2 such names", "0 nodes"):
        assert words in str(facts["detail"])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_comes_before_misfit_and_misfit_before_ambiguous(tmp_path):
    nodes, weights = chain([4, 4])
    opened = save(tmp_path, nodes, [*weights, tensor("w", [1])], outputs=["x2"])
    ambiguous = f32(tmp_weight_0=4, tmp_weight_1=4)
    with pytest.raises(WeightsAmbiguous) as caught:
        ask(opened, ambiguous, V8_6)
    assert "tmp_weight_1" in caught.value.facts["detail"]
    with pytest.raises(WeightsMismatch):
        ask(opened, {**ambiguous, "w": ("float32", 2)}, V8_6)
    with pytest.raises(WeightsUncovered):
        ask(opened, {**ambiguous, "w": ("float32", 2), "gone": (None, None)}, V8_6)


def test_nothing_wanted_is_nothing_resolved(tmp_path):
    assert ask(save(tmp_path, *chain([4]), outputs=["x1"]), [], V8_6) == {}


def test_computed_arrays_are_fresh_and_contiguous(tmp_path):
    opened = save(tmp_path, *chain([4]), outputs=["x1"])
    source = ask(opened, f32(tmp_batch_norm_weight=4), V10_9)["tmp_batch_norm_weight"]
    first, second = source.array(), source.array()
    assert first.ctypes.data != second.ctypes.data
    assert first.flags.c_contiguous
    assert first.flags.owndata


def conv(name: str, output: str = "y", bias: str = "b"):
    return helper.make_node("Conv", ["x", "k", bias], [output], name=name)


def test_layer_and_role(tmp_path):
    constants = [tensor("k", np.ones((2, 2, 1, 1))), tensor("b", [1, 2])]
    opened = save(
        tmp_path, [conv("c1", "1"), conv("", "2"), batch_norm("bn", "x", "y")], [*constants, *parameters("bn", 3)]
    )
    wanted = f32(**{"c1 KERNEL": 4, "c1 BIAS": 2, "node_of_2 BIAS": 2, "bn SCALE": 3, "bn SHIFT": 3})
    sources = ask(opened, wanted, V10_9)
    assert [sources[n].sources for n in ("c1 KERNEL", "c1 BIAS", "node_of_2 BIAS")] == [("k",), ("b",), ("b",)]
    assert sources["bn SCALE"].array().tobytes() == folded(opened, "bn")[0].tobytes()
    assert sources["bn SHIFT"].array().tobytes() == folded(opened, "bn")[1].tobytes()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("twice BIAS", "2 nodes"),
        ("c1 CONSTANT", "no constant"),
        ("c1 SCALE", "no constant"),
        ("dynamic BIAS", "no constant"),
    ],
)
def test_a_layer_that_is_not_certain_is_uncovered(name, reason, tmp_path):
    constants = [tensor("k", np.ones((2, 2, 1, 1))), tensor("b", [1, 2])]
    nodes = [conv("twice", "1"), conv("twice", "2"), conv("c1", "3"), conv("dynamic", "y", bias="x")]
    with pytest.raises(WeightsUncovered, match=reason):
        ask(save(tmp_path, nodes, constants), [name], V10_9)


def test_a_version_needs_two_numbers(tmp_path):
    with pytest.raises(ValueError, match="two numbers"):
        ask(save(tmp_path, *chain([4]), outputs=["x1"]), [], (8,))


def test_importing_the_package_does_not_import_numpy():
    code = "import sys, refit_agent.weight_map; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
