"""Weights that are found in a checkpoint by name alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.errors import ManifestInvalid, RefitAgentError, WeightsMismatch, WeightsUncovered
from refit_agent.weight_map import Prototype, resolve_by_name
from refit_agent.weights.safetensors import SafetensorsWeights
from safetensors_bytes import of_arrays

ARRAYS = {"a": np.arange(4, dtype=np.float16), "b": np.arange(6, dtype=np.float32), "c": np.arange(4, dtype=np.float16)}
KNOWN = {name: Prototype(str(array.dtype), array.size) for name, array in ARRAYS.items()}


@pytest.fixture
def weights(tmp_path: Path) -> SafetensorsWeights:
    path = tmp_path / "w.safetensors"
    path.write_bytes(of_arrays(ARRAYS))
    return SafetensorsWeights(path)


def test_every_name_gets_the_tensor_of_its_name(weights: SafetensorsWeights) -> None:
    """In the order of the plan, straight from the file; a tensor that is not wanted is left."""
    sources = resolve_by_name({"b": KNOWN["b"], "a": KNOWN["a"]}, weights)
    assert list(sources) == ["b", "a"]
    for name, source in sources.items():
        assert (source.engine_name, source.transform, source.sources) == (name, "identity", (name,))
        assert source.array().tobytes() == ARRAYS[name].tobytes()
        assert not source.array().flags.owndata
    assert sources["a"].explain() == "a: the tensor 'a' (float16, 4 elements)"


def test_without_a_prototype_the_tensor_s_own_type_counts(weights: SafetensorsWeights) -> None:
    """TensorRT before 10 tells neither type nor count."""
    source = resolve_by_name({"b": Prototype(None, None)}, weights)["b"]
    assert (source.dtype, source.count) == ("float32", 6)


def test_the_explicit_map_goes_first_and_entries_for_others_are_left_alone(weights: SafetensorsWeights) -> None:
    """Two names may share a tensor."""
    explicit = {"x": {"from": "a"}, "a": {"from": "c"}, "for another rank": {"from": "gone"}}
    sources = resolve_by_name({"x": KNOWN["a"], "a": KNOWN["a"]}, weights, explicit)
    assert [source.sources for source in sources.values()] == [("a",), ("c",)]


@pytest.mark.parametrize(
    ("wanted", "explicit", "kind", "says"),
    [
        ({"x": KNOWN["a"], "a": KNOWN["a"], "y": KNOWN["a"]}, {}, WeightsUncovered, "2 of the plan's weights have no source in .*: x, y. Weights are found by name"),
        ({"a": KNOWN["a"]}, {"a": {"from": "x"}}, WeightsUncovered, "a. The weight map names 'x', which is not there"),
        ({"a": Prototype("float32", 4)}, {}, WeightsMismatch, "'a' .*wants float32, and the tensor 'a' is float16"),
        ({"a": Prototype("float16", 5)}, {}, WeightsMismatch, "'a' .*wants 5 elements, and the tensor 'a' has 4"),
        ({"a": Prototype(None, 5)}, {}, WeightsMismatch, "wants 5 elements"),
        ({"a": KNOWN["a"]}, {"a": {"from": "b"}}, WeightsMismatch, "wants float16, and the tensor 'b' is float32"),
        ({"a": KNOWN["a"]}, {"a": {}}, ManifestInvalid, "entry 'a' must be"),
        ({"a": KNOWN["a"]}, {"b": ["from"]}, ManifestInvalid, "entry 'b' must be"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    weights: SafetensorsWeights, wanted: dict[str, Prototype], explicit: Any, kind: type[RefitAgentError], says: str
) -> None:
    """No conversion, no transposition, nothing made up."""
    with pytest.raises(kind, match=says):
        resolve_by_name(wanted, weights, explicit)


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
PROTOTYPES = st.builds(Prototype, st.sampled_from([None, "float16", "float32"]), st.sampled_from([None, 4, 6]))


@given(st.dictionaries(NAMES, PROTOTYPES), st.dictionaries(NAMES, NAMES.map(lambda name: {"from": name})))
def test_all_that_is_wanted_is_covered_as_it_is_or_nothing(
    wanted: dict[str, Prototype], explicit: dict[str, Any]
) -> None:
    """Whatever the plan and the map say."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w")
        path.write_bytes(of_arrays(ARRAYS))
        with SafetensorsWeights(path) as weights:
            chosen = {name: explicit.get(name, {"from": name})["from"] for name in wanted}
            fits = all(
                tensor in ARRAYS
                and wanted[name].dtype in (None, str(ARRAYS[tensor].dtype))
                and wanted[name].count in (None, ARRAYS[tensor].size)
                for name, tensor in chosen.items()
            )
            try:
                sources = resolve_by_name(wanted, weights, explicit)
            except (WeightsUncovered, WeightsMismatch):
                assert not fits
                return
            assert fits
            assert {name: source.array().tobytes() for name, source in sources.items()} == {
                name: ARRAYS[tensor].tobytes() for name, tensor in chosen.items()
            }
