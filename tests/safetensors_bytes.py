"""safetensors files made byte by byte, sound and otherwise."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np


def packed(header: bytes | Mapping[str, Any], payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of this header and payload; ``length`` is a lie about the header's."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + payload


def entry(dtype: str, shape: list[int], begin: int, end: int, **more: Any) -> dict[str, Any]:
    """What a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def of_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], dtypes: Mapping[str, str] | None = None) -> bytes:
    """A file of these arrays, in their order; ``dtypes`` names types other than the arrays' own."""
    names = {"float32": "F32", "float16": "F16", "int32": "I32", "int64": "I64", "int8": "I8", "uint8": "U8"}
    header, payload = {}, b""
    for name, array in arrays.items():
        data = array.tobytes()
        kind = (dtypes or {}).get(name) or names[str(array.dtype)]
        header[name] = entry(kind, list(array.shape), len(payload), len(payload) + len(data))
        payload += data
    return packed(header, payload)
