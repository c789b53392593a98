"""Run the source and its canonical form with ONNX Runtime on the CPU, and compare what they compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refit_agent.authoring.canonical.inputs import contradiction, guesses, unfit
from refit_agent.authoring.canonical.report import Check
from refit_agent.authoring.canonical.scopes import all_nodes, is_standard
from refit_agent.authoring.canonical.values import Array
from refit_agent.authoring.errors import CanonicalDiffers, ModelUnsupported
from refit_agent.runtimes.importing import import_onnxruntime

if TYPE_CHECKING:
    from onnx import ModelProto

#: Largest relative L2 error of an output by the coarsest type in the model. The fold of a BatchNormalization
#: rounds weights anew, to that type; errors of a wrong weight are far larger.
_TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
#: Where activations are rounded to 8 bit, one last bit of float32 can move a number by a whole step.
_QUANTIZED = 2e-2
#: Largest share of elements that may differ in outputs of integers, such as the index of a maximum.
_FLIPPED = 1e-2
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


def tolerance(model: ModelProto, dtypes: Iterable[str]) -> float:
    """The error that an output may have, relative L2: 1e-4 for float32, 1e-2 for float16, 5e-2 for bfloat16, and
    at least 2e-2 where activations are quantized.

    ``dtypes`` are the types of the model's weights; casts and declared types count too.
    """
    found = set(dtypes)
    codes = {1: "float32", 10: "float16", 16: "bfloat16"}
    for node in all_nodes(model.graph):
        found.update(codes.get(a.i, "") for a in node.attribute if a.name == "to")
    for entry in [*model.graph.input, *model.graph.output]:
        found.add(codes.get(entry.type.tensor_type.elem_type, ""))
    largest = max((_TOLERANCES[name] for name in found if name in _TOLERANCES), default=_TOLERANCES["float32"])
    if any(node.op_type in _QUANTIZERS for node in all_nodes(model.graph)):
        largest = max(largest, _QUANTIZED)
    return largest


def draws_random_numbers(model: ModelProto) -> bool:
    """Whether two runs of the model give different results: ONNX Runtime seeds a node by its place in the graph."""
    return any(
        is_standard(node, *_RANDOM) and not any(a.name == "seed" for a in node.attribute)
        for node in all_nodes(model.graph)
    )


def compare(
    model: str, canonical: str, shapes: Mapping[str, Sequence[int]], seed: int, allowed: float, *, exact: bool
) -> Check:
    """Run both files on the same random inputs.

    Args:
        model, canonical: the two files.
        shapes: shapes of inputs that the caller knows.
        seed: of the random inputs.
        allowed: see ``tolerance``.
        exact: whether no arithmetic was changed, so that integers must be equal.

    Raises:
        CanonicalDiffers: an output differs by more, or the canonical form does not run.
        ModelUnsupported: a shape is given that the model cannot have.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        return Check(False, "ONNX Runtime is not installed")
    try:
        session = _session(onnxruntime, model)
    except Exception as error:  # noqa: BLE001 - the runtime's errors have no family
        return Check(False, f"ONNX Runtime does not load the source: {_words(error)}")
    wrong = contradiction(session.get_inputs(), shapes)
    if wrong:
        raise ModelUnsupported(path=model, detail=wrong)
    reason = unfit(session.get_inputs())
    if reason:
        return Check(False, reason)
    names = [output.name for output in session.get_outputs()]
    failure = "no input was tried"
    for feeds in guesses(session.get_inputs(), shapes, seed):
        try:
            expected = session.run(names, feeds)
        except Exception as error:  # noqa: BLE001 - wrong guesses end in any error
            failure = _words(error)
            continue
        del session  # two large models need not be in the memory at once
        errors = _errors(onnxruntime, model, canonical, names, feeds, expected, allowed, exact)
        return Check(True, "", allowed, errors, {name: array.shape for name, array in feeds.items()})
    return Check(False, f"the source runs with none of the random inputs that were tried (--input-shape): {failure}")


def _errors(
    onnxruntime: Any,
    model: str,
    canonical: str,
    names: list[str],
    feeds: dict[str, Array],
    expected: list[Any],
    allowed: float,
    exact: bool,
) -> dict[str, float]:
    try:
        found = _session(onnxruntime, canonical).run(names, feeds)
    except Exception as error:
        raise CanonicalDiffers(path=model, output=", ".join(names), detail=f"is not made: {_words(error)}") from error
    errors: dict[str, float] = {}
    for name, one, other in zip(names, expected, found, strict=True):
        errors[name], limit = _difference(one, other, allowed, exact)
        if not errors[name] <= limit:
            detail = f"has the error {errors[name]:.3g}, above {limit:.3g}"
            raise CanonicalDiffers(path=model, output=name, detail=detail)
    return errors


def _session(onnxruntime: Any, path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As the graph stands: it is what is compared, and optimising would hold every weight several times.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _difference(one: Any, other: Any, allowed: float, exact: bool) -> tuple[float, float]:
    """The error of an output, and how large it may be."""
    if isinstance(one, (list, dict)):
        entries = list(one) if isinstance(one, list) else [one[key] for key in sorted(one)]
        others = list(other) if isinstance(other, list) else [other[key] for key in sorted(other)]
        if len(entries) != len(others):
            return float("inf"), 0.0
        pairs = [_difference(a, b, allowed, exact) for a, b in zip(entries, others, strict=True)]
        return max(pairs, key=lambda pair: pair[0] - pair[1], default=(0.0, 0.0))
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf"), 0.0
    if one.dtype.kind != "f":
        share = float(np.mean(one != other)) if one.size else 0.0
        return share, 0.0 if exact else _FLIPPED
    return relative_error(one, other), allowed


def relative_error(expected: Array, found: Array) -> float:
    """Relative L2 error; infinities and NaNs must be at the same places, or it is infinite."""
    one, other = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return float("inf")
    distance = float(np.linalg.norm(other[finite] - one[finite]))
    size = float(np.linalg.norm(one[finite]))
    return distance / size if size else distance


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
