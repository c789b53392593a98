"""A model that lies in a bundle, read as its files are now: what is made from it must belong to these very files."""

from __future__ import annotations

from collections.abc import Callable

from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.manifest import FileRef, Model
from refit_agent.weights import OnnxWeights

_FLOATS = {"float64", "float32", "float16", "bfloat16"}


def model_files(model: Model) -> tuple[FileRef, ...]:
    """The model's ONNX file and its external data. Raises NotAnOnnxModel."""
    return (model.require_onnx(), *model.external)


def require_sound_model(bundle: Bundle, model: Model, on_bytes: Callable[[int], None] | None = None) -> str:
    """The path of the model's ONNX file, after it and its external data were compared with the manifest.

    Raises:
        NotAnOnnxModel, BundleFileMissing, BundleFileMismatch, UnsafePath
    """
    for ref in model_files(model):
        verify_file(bundle.locate(ref), ref, on_bytes)
    return bundle.locate(model.require_onnx())


def float_bytes(onnx: str) -> dict[str, int]:
    """Bytes of the model's weights by element type; only types of floating point. Raises OnnxError."""
    found: dict[str, int] = {}
    with OnnxWeights(onnx) as weights:
        for ref in weights.values():
            if ref.dtype in _FLOATS:
                found[ref.dtype] = found.get(ref.dtype, 0) + ref.nbytes
    return found


def model_precision(onnx: str) -> str:
    """The precision in which most of the model's weights are: "fp32", "fp16" or "bf16". Raises OnnxError."""
    found = float_bytes(onnx)
    largest = max(found, key=lambda dtype: found[dtype], default="float32")
    return {"float16": "fp16", "bfloat16": "bf16"}.get(largest, "fp32")
