"""From the weight names a plan asks for to their content: ``resolve`` finds it in an ONNX model,
``resolve_by_name`` in a checkpoint of safetensors files."""

from refit_agent.weight_map.by_name import resolve_by_name
from refit_agent.weight_map.resolve import resolve
from refit_agent.weight_map.sources import Prototype, WeightSource

__all__ = ["Prototype", "WeightSource", "resolve", "resolve_by_name"]
