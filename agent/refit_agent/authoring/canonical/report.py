"""What was done to a model, for its author."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Check:
    """How the outputs of both models were compared.

    Attributes:
        done: whether both were run.
        reason: why not, or "".
        tolerance: the largest error allowed; see ``check.tolerance``.
        errors: output -> relative L2 error of floating-point numbers, or share of other elements that differ.
        inputs: input -> shape that was used.
    """

    done: bool
    reason: str = ""
    tolerance: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Float64:
    """What rounding float64 weights to float32 did.

    Attributes:
        weights: how many there were.
        largest_relative_error: over all numbers in float32's normal range, in weight ``of``.
        underflows: numbers other than 0 that are too small for that range.
    """

    weights: int
    largest_relative_error: float
    of: str
    underflows: int


@dataclass(frozen=True, slots=True)
class CanonicalReport:
    """What ``canonicalize`` made.

    Attributes:
        model, onnx, data: paths of the source, the new graph and its data file ("" if it has none).
        onnx_bytes, data_bytes: their sizes.
        weights, external: initializers of the new graph, and how many of them lie in the data file.
        hoisted: weights that were in nodes or nested graphs.
        filled: of these, results of ConstantOfShape nodes.
        inlined_calls: calls of local functions that were replaced by the function's body.
        folded: BatchNormalizations that went into a Conv or ConvTranspose.
        scaled: those that became a Mul and an Add.
        batch_norms_left: those that stay; the notes give the reasons.
        identities_removed: Identity nodes that only renamed a weight.
        renamed: new name -> old name of weights that could not keep theirs.
        dropped: weights that nothing reads.
        removed_inputs: initializers that were inputs as well, and are only initializers now.
        unknown_order: names of the wanted order that are no weights in the data file.
        float64: None if the model had no such weights.
        notes: what else the author should know, in sentences.
        check: the comparison with the source.
    """

    model: str
    onnx: str
    data: str
    onnx_bytes: int
    data_bytes: int
    weights: int
    external: int
    hoisted: int
    filled: int
    inlined_calls: int
    folded: int
    scaled: int
    batch_norms_left: int
    identities_removed: int
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    removed_inputs: tuple[str, ...]
    unknown_order: tuple[str, ...]
    float64: Float64 | None
    notes: tuple[str, ...]
    check: Check

    def document(self) -> dict[str, object]:
        """The report as JSON-compatible values."""
        return asdict(self)
