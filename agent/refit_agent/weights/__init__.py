"""The weights of an ONNX file, read without the onnx package, or of safetensors files; start at OnnxWeights."""

from __future__ import annotations

from refit_agent.weights.batch_norms import node_graphs
from refit_agent.weights.index import OnnxWeights
from refit_agent.weights.records import (
    Attribute,
    BatchNorm,
    Function,
    Graph,
    Node,
    OnnxModel,
    WeightRef,
)

__all__ = [
    "Attribute",
    "BatchNorm",
    "Function",
    "Graph",
    "Node",
    "OnnxModel",
    "OnnxWeights",
    "WeightRef",
    "node_graphs",
]
