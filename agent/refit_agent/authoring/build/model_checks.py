"""What the model itself says about a build, asked before the hours that a build may take."""

from __future__ import annotations

from fnmatch import fnmatchcase

from refit_agent.authoring.build.messages import RefittableNames
from refit_agent.authoring.build.options import BuilderVersion, BuildOptions
from refit_agent.authoring.errors import BuildOptionsInvalid, ModelUnsupported
from refit_agent.weights import Node, OnnxWeights, node_graphs

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")
_PRECISIONS = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float8e4m3fn": "fp8",
    "int8": "int8",
    "int4": "int4",
    "float4e2m1": "fp4",
}
_SHOWN = 5


def require_buildable(weights: OnnxWeights, options: BuildOptions) -> None:
    """Raise ModelUnsupported for options that need something the model does not have."""
    if options.int8 and not any(_is_quantized(node) for node in weights.model.graph.nodes):
        detail = (
            "it has no QuantizeLinear node, and without one --int8 would need calibration, which is not done here: "
            "quantize the ONNX file first"
        )
        raise ModelUnsupported(path=str(weights.path), detail=detail)


def _is_quantized(node: Node) -> bool:
    if node.op_type in _QUANTIZED:
        return True
    return any(_is_quantized(inner) for graph in node_graphs(node) for inner in graph.nodes)


def refittable_names(weights: OnnxWeights, patterns: tuple[str, ...]) -> tuple[RefittableNames, ...]:
    """The model's weights that each of ``patterns`` means; a name stands for itself, whatever characters it has.

    Raises:
        BuildOptionsInvalid: one that means none.
    """
    names = list(dict.fromkeys(weights[key].name for key in weights))
    wishes = []
    for pattern in patterns:
        found = (pattern,) if pattern in names else tuple(name for name in names if fnmatchcase(name, pattern))
        if not found:
            some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise BuildOptionsInvalid(
                detail=f"--refittable {pattern!r} means no weight of {weights.path}; it has: {some}"
            )
        wishes.append(RefittableNames(pattern=pattern, names=found))
    return tuple(wishes)


def precision_name(options: BuildOptions, builder: BuilderVersion, weights: OnnxWeights) -> str:
    """What people call the plan's precision: the types allowed, as "fp16+int8"; where the model decides, its weights' main one."""
    if not (options.strongly_typed or builder.always_typed):
        return "+".join(options.precisions) or "fp32"
    sizes: dict[str, int] = {}
    for key in weights:
        ref = weights[key]
        if ref.dtype in _PRECISIONS:
            sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.nbytes
    return _PRECISIONS[max(sizes, key=lambda dtype: sizes[dtype])] if sizes else "fp32"
