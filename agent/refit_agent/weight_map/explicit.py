"""The explicit weight map of a bundle's manifest: engine name -> where its content comes from.

    {"from": NAME}                                                    an ONNX weight, as it is or as imported
    {"batch_norm": "scale"|"bias", "scale": NAME, "bias": NAME,
     "mean": NAME, "variance": NAME, "epsilon": 1e-5}                 a folded BatchNormalization
    {"fill": 0.0, "count": N, "dtype": "float32"}                     one number throughout

It overrides the naming rules for the names it holds. The same checks apply: types and counts must
be those of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from refit_agent.errors import ManifestInvalid, WeightsMismatch
from refit_agent.weight_map.families import Generation
from refit_agent.weight_map.origins import Filled, Folded, Origin, Stored, float32
from refit_agent.weight_map.parsed import Weight
from refit_agent.weight_map.sources import MisfitError, NoSourceError, Prototype, RefusedError, WeightSource

if TYPE_CHECKING:
    from refit_agent.weights import OnnxWeights

_INTEGER_LIMITS = {
    "int8": (-(2**7), 2**7 - 1),
    "uint8": (0, 2**8 - 1),
    "bool": (0, 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}
_FLOAT_LIMITS = {"float16": 65504.0, "float32": 3.4028234663852886e38, "bfloat16": 3.3895313892515355e38}

_FOLD_FIELDS = ("scale", "bias", "mean", "variance")


def read_explicit(
    explicit: Mapping[str, object],
    wanted: Mapping[str, Prototype],
    weights: OnnxWeights,
    generation: Generation,
) -> tuple[dict[str, WeightSource], dict[str, RefusedError]]:
    """The sources that ``explicit`` names, and for each of its names without one the reason.

    Raises:
        ManifestInvalid: an entry is not of one of the three forms; says which entry and field.
        WeightsMismatch: an entry for a name that the plan does not ask for.
    """
    sources: dict[str, WeightSource] = {}
    refusals: dict[str, RefusedError] = {}
    for name, entry in explicit.items():
        if name not in wanted:
            detail = "the explicit weight map has an entry for it, and the plan asks for no weight of that name"
            raise WeightsMismatch(name=name, detail=detail)
        try:
            origin = _read_entry(name, entry, weights)
            sources[name] = origin.source(name, wanted[name], generation)
        except RefusedError as e:
            kind = MisfitError if isinstance(e, MisfitError) else NoSourceError
            refusals[name] = kind(f"explicit weight map: {e}")
    return sources, refusals


def _read_entry(name: str, entry: object, weights: OnnxWeights) -> Origin:
    if not isinstance(entry, Mapping):
        raise _invalid(name, "must be an object")
    if "from" in entry:
        _only(name, entry, ("from",))
        return Stored(_weight(_text(name, entry, "from"), weights))
    if "batch_norm" in entry:
        _only(name, entry, ("batch_norm", *_FOLD_FIELDS, "epsilon"))
        role = _text(name, entry, "batch_norm")
        if role not in ("scale", "bias"):
            raise _invalid(name, f"field 'batch_norm' must be 'scale' or 'bias', not {role!r}")
        texts = [_text(name, entry, field) for field in _FOLD_FIELDS]
        epsilon = _number(name, entry, "epsilon") if "epsilon" in entry else 1e-5
        if not 0 <= epsilon <= _FLOAT_LIMITS["float32"]:
            raise _invalid(name, f"field 'epsilon' must be a float32 that is not negative, not {epsilon!r}")
        scale, bias, mean, variance = (_weight(text, weights) for text in texts)
        return Folded(name, (scale, bias, mean, variance), float32(epsilon), role)
    if "fill" in entry:
        return _read_fill(name, entry)
    raise _invalid(name, "needs one of the fields 'from', 'batch_norm' and 'fill'")


def _read_fill(name: str, entry: Mapping[object, object]) -> Filled:
    _only(name, entry, ("fill", "count", "dtype"))
    value = _number(name, entry, "fill")
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise _invalid(name, f"field 'count' must be a whole number from 0 on, not {count!r}")
    dtype = _text(name, entry, "dtype")
    if dtype in _INTEGER_LIMITS:
        low, high = _INTEGER_LIMITS[dtype]
        fits = value == int(value) and low <= value <= high
    elif dtype in _FLOAT_LIMITS:
        fits = abs(value) <= _FLOAT_LIMITS[dtype]
    else:
        known = ", ".join([*_FLOAT_LIMITS, *_INTEGER_LIMITS])
        raise _invalid(name, f"field 'dtype' must be one of {known}, not {dtype!r}")
    if not fits:
        raise _invalid(name, f"field 'fill' is {value!r}, which is no {dtype}")
    return Filled(value, count, f"{value!r} throughout, by the explicit weight map", (dtype,))


def _weight(key: str, weights: OnnxWeights) -> Weight:
    """The weight with this key, or the only one with this plain name."""
    found = (weights[key],) if key in weights else tuple(weights.definitions(key))
    if not found:
        raise NoSourceError(f"the model has no weight {key!r}")
    if len(found) > 1:
        raise NoSourceError(
            f"the model has {len(found)} weights {key!r}; use one of the keys " + ", ".join(w.key for w in found)
        )
    ref = found[0]
    return Weight(ref.name, ref.key, ref.dtype, ref.count, False, 0, False, ref)


def _only(name: str, entry: Mapping[object, object], fields: tuple[str, ...]) -> None:
    strangers = [str(key) for key in entry if key not in fields]
    if strangers:
        raise _invalid(name, f"field {strangers[0]!r} does not belong beside {fields[0]!r}")


def _text(name: str, entry: Mapping[object, object], field: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str):
        raise _invalid(name, f"field {field!r} must be a string, not {value!r}")
    return value


def _number(name: str, entry: Mapping[object, object], field: str) -> float:
    value = entry.get(field)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise _invalid(name, f"field {field!r} must be a number, not {value!r}")
    return value


def _invalid(name: str, what: str) -> ManifestInvalid:
    return ManifestInvalid(path="bundle.json", detail=f"the weight map's entry {name!r}: {what}")
