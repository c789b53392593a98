"""The index of an ONNX file is what the onnx package reads from it: every type, encoding and place of a tensor."""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.onnx_oracle import require_same
from refit_agent.errors import OnnxMalformed
from refit_agent.weights import OnnxWeights
from refit_agent.weights.dtypes import STRING, TYPES, DataType
from refit_agent.weights.wire_writer import blob, integer, text
from wild_onnx import Maker, Wild, wild_models

from . import thorough

#: 2**63 - 1 bytes: what a file's offsets can say.
_MOST_BYTES = (1 << 63) - 1
_MOST_DIMS = 32
_random = st.randoms(use_true_random=False, note_method_calls=False)


def compared(wild: Wild) -> int:
    """Write the model, read it in both ways; gives the number of tensors whose values were compared."""
    with tempfile.TemporaryDirectory() as name:
        path = wild.write(Path(name, "in"))
        with OnnxWeights(path) as weights:
            return require_same(weights, onnx.ModelProto.FromString(wild.model), str(path.parent))


@thorough(200)
@given(wild=wild_models())
def test_whatever_a_model_looks_like(wild: Wild) -> None:
    """Fields in any order, nested graphs, functions, sparse tensors, external data, lengths that are padded."""
    compared(wild)


class _OfOneType(Maker):
    """Makes models all of whose tensors are of one type."""

    only: DataType

    def tensor(self, name: str | None, dtype: DataType | None = None) -> bytes:
        return super().tensor(name, self.only if dtype is None else dtype)


@pytest.mark.parametrize("code", TYPES, ids=lambda code: TYPES[code].name)
def test_every_type_in_every_place(code: int) -> None:
    """Initializers and Constants of the main graph, of a branch in it, and of a function."""

    @thorough(12)
    @given(rng=_random, overlong=st.booleans())
    def run(rng: random.Random, overlong: bool) -> None:
        maker = _OfOneType(rng, overlong)
        maker.only = TYPES[code]
        found = compared(_model_with_every_place(maker))
        # External data without a length leaves onnx no opinion; strings have none to compare.
        seen["values"] += found
        seen["models"] += 1

    seen: Counter[str] = Counter()
    run()
    if TYPES[code] is STRING:
        assert seen["values"] == 0
    else:
        assert seen["values"] >= 4 * seen["models"], seen


def _constant(maker: Maker) -> bytes:
    value = maker.attribute("value", 5, maker.tensor(None))
    return maker.shuffled(maker.sub(2, maker.name("c")), maker.sub(4, "Constant"), value)


def _model_with_every_place(maker: Maker) -> Wild:
    inner = maker.sub(1, _constant(maker)) + maker.sub(5, maker.tensor(maker.name("w")))
    branch = maker.shuffled(maker.sub(4, "If"), maker.attribute("then_branch", 6, inner))
    table = maker.shuffled(
        maker.sub(4, "Custom"), maker.sub(7, "org.example"), maker.attribute("t", 5, maker.tensor(None))
    )
    graph = [maker.sub(1, _constant(maker)), maker.sub(1, branch), maker.sub(1, table)]
    graph += [maker.sub(5, maker.tensor(maker.name("w"))) for _ in range(3)]
    function = maker.sub(1, "F") + maker.sub(7, _constant(maker)) + maker.sub(7, branch)
    data = integer(1, 8) + maker.sub(7, maker.shuffled(*graph)) + maker.sub(25, function)
    return Wild(data, {name: bytes(content) for name, content in maker.files.items()})


_dims = st.lists(
    st.one_of(
        st.integers(0, 4),
        st.sampled_from([-1, -(2**31), -(2**63), 2**31, 2**32, 2**62, 2**63 - 1]),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=5,
)


@thorough(400)
@given(dims=_dims, ones=st.sampled_from([0, 0, 0, 26, 32, 33]), code=st.sampled_from([c for c in TYPES if c != 8]), odd=st.sampled_from([0, 0, 1, -1]))  # fmt: skip
def test_a_shape_is_taken_exactly_if_its_payload_is_there(dims: list[int], ones: int, code: int, odd: int) -> None:
    """Negative ones, those whose product no integer of 64 bits holds, too many of them, and zeros among them."""
    dims = [*dims, *([1] * ones)]
    dtype = TYPES[code]
    volume, count = math.prod(dim or 1 for dim in dims), math.prod(dims)
    needed = dtype.byte_count(count)
    there = max(0, (needed if 0 <= needed <= 4096 else 8) + odd)
    fits = (
        len(dims) <= _MOST_DIMS
        and all(dim >= 0 for dim in dims)
        and volume * max(dtype.bits, 8) // 8 <= _MOST_BYTES
        and there == needed
    )
    tensor = b"".join(integer(1, dim) for dim in dims) + integer(2, code) + text(8, "w") + blob(9, bytes(there))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "m.onnx")
        path.write_bytes(integer(1, 8) + blob(7, blob(5, tensor)))
        with OnnxWeights(path) as weights:
            assert list(weights) == ["w"]
            if not fits:
                with pytest.raises(OnnxMalformed):
                    weights["w"]
                return
            ref = weights["w"]
            assert (ref.shape, ref.count, ref.nbytes) == (tuple(dims), count, needed)
            assert ref.array().nbytes == needed
            assert dtype.bits < 8 or ref.array().shape == tuple(dims)
