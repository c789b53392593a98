"""From the weight names a plan asks for to the content of an ONNX model: ``resolve`` is the way in."""

from refit_agent.weight_map.resolve import resolve
from refit_agent.weight_map.sources import Prototype, WeightSource

__all__ = ["Prototype", "WeightSource", "resolve"]
