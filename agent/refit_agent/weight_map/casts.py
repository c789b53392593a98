"""The type conversions that the parser makes when it imports a tensor; there are no others.

Source: weight_naming section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

CASTS = frozenset({("int64", "int32"), ("float64", "float32"), ("uint8", "int32")})


def cast(values: npt.NDArray[Any], source: str, target: str) -> npt.NDArray[Any]:
    """``values`` of ONNX type ``source`` as a fresh contiguous array of type ``target``.

    int64 is clamped to the range of int32, float64 to that of float32 (NaN passes).

    Raises:
        ValueError: a conversion that the parser does not make, such as float32 to float16.
    """
    import numpy as np

    if (source, target) not in CASTS:
        raise ValueError(f"the parser never converts {source} to {target}")
    if source == "float64":
        from refit_agent.weight_map.batch_norm import clamp_double

        return np.ascontiguousarray(clamp_double(values))
    limits = np.iinfo(np.int32)
    return np.ascontiguousarray(np.clip(values, limits.min, limits.max) if source == "int64" else values, np.int32)
