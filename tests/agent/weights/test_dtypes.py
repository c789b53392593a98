from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from refit_agent.weights.dtypes import FIELD_NAMES, TYPES


def test_every_type_of_onnx_is_known_and_fits_the_scan_marker():
    assert {t.code: t.name for t in TYPES.values()}.keys() == set(TensorProto.DataType.values()) - {0}
    # scan._HOLDS_TENSOR takes codes below 32 for data types
    assert max(TYPES) < 32


@pytest.mark.parametrize("dtype", TYPES.values(), ids=lambda t: t.name)
def test_field_and_name_as_in_onnx(dtype):
    assert FIELD_NAMES[dtype.field] == helper.tensor_dtype_to_field(dtype.code)
    onnx_name = TensorProto.DataType.Name(dtype.code).lower()
    assert dtype.name == {"float": "float32", "double": "float64"}.get(onnx_name, onnx_name)
    if dtype.bits >= 8:
        assert np.dtype(dtype.storage).itemsize * 8 == dtype.bits
        assert helper.tensor_dtype_to_np_dtype(dtype.code).itemsize * 8 == dtype.bits


def test_field_numbers_as_in_onnx():
    fields = onnx.TensorProto.DESCRIPTOR.fields_by_name
    assert {fields[name].number: name for name in FIELD_NAMES.values()} == FIELD_NAMES


@pytest.mark.parametrize(
    ("code", "count", "nbytes", "entries"), [(21, 3, 2, 2), (25, 5, 2, 2), (27, 3, 3, 3), (14, 2, 16, 4), (9, 3, 3, 3)]
)
def test_sizes(code, count, nbytes, entries):
    assert TYPES[code].byte_count(count) == nbytes
    assert TYPES[code].entry_count(count) == entries
