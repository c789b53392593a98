"""How far an engine's results may be off, by the precision that it computes in.

One set of golden data serves engines of every precision: its outputs are ONNX Runtime's, and each engine has a
tolerance of its own (relative L2, see `refit.golden`). The four sample engines were off by 6.6e-4 and 8.8e-4
(fp32, which TensorRT computes as TF32 by default), and by 2.7e-3 and 4.2e-3 (fp16); a single weight that was
never set was off by more than 1. Their tolerances here are a little more than twice the worst of them; those of
the coarser types are set by the same distance from their rounding, and not measured.
"""

from __future__ import annotations

from refit_agent.errors import SettingInvalid

BY_PRECISION: dict[str, float] = {
    "fp32": 2e-3,
    "tf32": 2e-3,
    "fp16": 1e-2,
    "bf16": 5e-2,
    "int8": 1e-1,
    "fp8": 1e-1,
    "int4": 2e-1,
    "fp4": 2e-1,
}


def tolerance_for(precision: str) -> float | None:
    """The tolerance for a precision such as "fp16", or of the coarsest in "fp16+int8"; None if one is not known."""
    found = [BY_PRECISION.get(part.strip().lower()) for part in precision.replace(",", "+").split("+")]
    known = [tolerance for tolerance in found if tolerance is not None]
    return max(known) if len(known) == len(found) else None


def require_tolerance(value: float | None) -> None:
    """Raise SettingInvalid unless ``value`` is None or a tolerance that a manifest may have."""
    if value is not None and not 0 < value <= 1:
        raise SettingInvalid(name="the tolerance", value=value, wanted="a number above 0 and up to 1")
