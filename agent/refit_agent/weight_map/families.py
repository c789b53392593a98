"""Which generation of the ONNX parser built an engine, and what that generation does.

Source: weight_naming section 0 (names), section 2 (BatchNormalization), section 5 (types). Parser
releases whose source was read: 8.6, 9.0, 9.3, 10.0-EA, 10.0-GA, 10.1, 10.6, 10.9, 10.14, 10.15 and
11.0. Everything between two of them is inferred from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

# Names of folded BatchNormalization weights, by generation.
SHARED = "tmp_weight"  # 8.4 to 9.3: drawn from one counter with everything else
NODE_INDEX = "node_trt_batch_norm"  # 10.0 early access
BATCH_NORM = "tmp_batch_norm_weight"  # 10.0 to 10.13
REFITTABLE = "tmp_refittable_weight"  # 10.14 and later, TensorRT-RTX; ConstantOfShape takes names too

FAMILIES = (BATCH_NORM, REFITTABLE)

_AS_IS = frozenset({"float32", "float16", "int8", "bool", "int32"})

# First version that takes the type as it is.
_NATIVE_SINCE = {
    "int64": (9, 0),
    "bfloat16": (9, 0),
    "float8e4m3fn": (9, 0),
    "int4": (10, 0),
    "float4e2m1": (10, 8),
    "uint8": (10, 14),
}


@dataclass(frozen=True)
class Generation:
    """What one generation of the parser does; compare with None for a version nobody has read.

    Attributes:
        label: the builder in words, for messages.
        version: first two numbers of the builder's version; (10, 14) or later for TensorRT-RTX.
        folds: families of BatchNormalization names that this builder may use. Two of them where the
            boundary is inferred: the names themselves then say which; empty for an unknown builder.
        scoped_suffixes: whether a weight in a subgraph or function whose name is taken becomes
            ``name_N`` (section 4; read from 8.6 on, earlier parsers repeat the bare name). False also for an
            unknown builder, so that weights of one name must hold equal bytes.
    """

    label: str
    version: tuple[int, int]
    folds: tuple[str, ...]
    scoped_suffixes: bool

    @property
    def known(self) -> bool:
        return bool(self.folds)

    def import_types(self, dtype: str) -> tuple[str, ...]:
        """Types that the parser may turn an ONNX tensor of ``dtype`` into; () if it rejects such a tensor.

        Section 5. More than one only where releases between two read ones may differ; then the
        prototype decides. For an unknown builder: the type itself, never a conversion.
        """
        if dtype in _AS_IS:
            return (dtype,)
        if not self.known:
            return (dtype,) if dtype in _NATIVE_SINCE else ()
        if self.version >= _NATIVE_SINCE.get(dtype, (99, 0)):
            return (dtype,)
        if dtype == "uint8" and self.version >= (10, 10):
            return ("uint8", "int32")
        return {"int64": ("int32",), "uint8": ("int32",), "float64": ("float32",)}.get(dtype, ())

    def fold_type(self, param_types: tuple[str, ...]) -> str | None:
        """Type of a folded BatchNormalization weight where no prototype says it; None if it depends on more.

        Args:
            param_types: import types of scale, bias, mean and variance.

        Section 2, Precision. 8.5 to 9.1 always fold to float32. In 8.4 the result has the type of
        the scale, and from 9.2 on the common type of the parameters *and of the data input*, which
        the parameters alone do not tell unless they force float32.
        """
        if (8, 5) <= self.version < (9, 2):
            return "float32"
        if all(t == "float32" for t in param_types):
            return "float32"
        if self.version >= (9, 2) and len(set(param_types)) > 1:
            return "float32"
        return None

    def widens_bfloat16(self) -> bool:
        """Whether a float32 fold reads bfloat16 parameters right (section 2: read from 10.9 on)."""
        return self.version >= (10, 9)


def generation_of(builder: tuple[int, ...], rtx: bool = False) -> Generation:
    """The generation of the parser that came with ``builder``.

    Args:
        builder: version from the plan's header, e.g. (8, 6, 0, 12). 10.0.0 is the early-access
            release of 10.0 and 10.0.1 the general one.
        rtx: whether it is TensorRT-RTX's version; only RTX 1.7.1 was read, all of 1.x is taken to
            be like TensorRT 10.14 or 10.13, whichever the names show.

    Raises:
        ValueError: fewer than two numbers.
    """
    if len(builder) < 2:
        raise ValueError(f"a builder version needs at least two numbers: {builder!r}")
    label = ("TensorRT-RTX " if rtx else "TensorRT ") + ".".join(str(n) for n in builder)
    version = (builder[0], builder[1])
    if rtx:
        known = builder[0] == 1
        return Generation(label, (10, 14), (REFITTABLE, BATCH_NORM) if known else (), known)
    if version < (8, 4) or version >= (12, 0):
        return Generation(label, version, (), False)
    if version < (10, 0):
        return Generation(label, version, (SHARED,), version >= (8, 6))
    if version == (10, 0) and len(builder) > 2 and builder[2] == 0:
        return Generation(label, version, (NODE_INDEX,), True)
    if version < (10, 10):
        return Generation(label, version, (BATCH_NORM,), True)
    if version < (10, 14):
        return Generation(label, version, (BATCH_NORM, REFITTABLE), True)
    return Generation(label, version, (REFITTABLE,), True)
