"""A model on its way to the canonical form: what every step reads and changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto

from refit_agent.authoring.canonical.naming import Names
from refit_agent.authoring.canonical.source import Source
from refit_agent.authoring.canonical.values import Value


@dataclass
class Draft:
    """The graph and its weights, apart from one another.

    Attributes:
        source: the file that is rewritten; open as long as the draft is in use.
        weights: the weights by their final names, all of the main graph; the graph itself has no dense
            initializers while it is worked on, but strings.
        names: gives out names.
        notes: what the author has to know, in sentences.
        counts: how often each step did something, for the report.
        renamed: final name -> the name that the weight had in the source, where they differ.
        dropped: names of weights that nothing reads.
        removed_inputs: names of inputs that were initializers as well.
    """

    source: Source
    weights: dict[str, Value] = field(default_factory=dict)
    names: Names = field(default_factory=lambda: Names(()))
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    removed_inputs: list[str] = field(default_factory=list)

    @property
    def model(self) -> ModelProto:
        return self.source.model

    @property
    def graph(self) -> GraphProto:
        return self.source.model.graph

    @property
    def path(self) -> str:
        return self.source.path

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def add_weight(self, name: str, value: Value) -> str:
        """Add a weight under ``name`` or a new name like it; gives the name."""
        final = self.names.keep_or_fresh(name)
        self.weights[final] = value
        return final

    def opset(self) -> int:
        """The version of ONNX's own operators that the model uses; 1 where it does not say."""
        return max((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), default=1)
