"""Refit Agent: weight-stripped engines in, ready engines out, on the user's machine.

    from refit_agent import ensure_engine

    with ensure_engine("/opt/app/bundle", "denoiser") as engine:
        session = load(engine.path)

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refit_agent.client.aio import AsyncClient as AsyncClient
    from refit_agent.client.sync import ServiceClient as ServiceClient
    from refit_agent.engine import Engine as Engine
    from refit_agent.engine import Explanation as Explanation
    from refit_agent.ensure_async import ensure_engine_async as ensure_engine_async
    from refit_agent.errors import RefitAgentError as RefitAgentError
    from refit_agent.plan_header import PlanHeader as PlanHeader
    from refit_agent.plan_header import read_plan_header as read_plan_header
    from refit_agent.progress import Progress as Progress
    from refit_agent.provision import ensure_engine as ensure_engine
    from refit_agent.provision import explain as explain
    from refit_agent.weights import OnnxWeights as OnnxWeights
    from refit_agent.weights import WeightRef as WeightRef

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "refit_agent.client.aio",
    "Engine": "refit_agent.engine",
    "Explanation": "refit_agent.engine",
    "OnnxWeights": "refit_agent.weights",
    "PlanHeader": "refit_agent.plan_header",
    "Progress": "refit_agent.progress",
    "RefitAgentError": "refit_agent.errors",
    "WeightRef": "refit_agent.weights",
    "ServiceClient": "refit_agent.client.sync",
    "ensure_engine": "refit_agent.provision",
    "ensure_engine_async": "refit_agent.ensure_async",
    "explain": "refit_agent.provision",
    "read_plan_header": "refit_agent.plan_header",
}

__all__ = ["AsyncClient", "Engine", "Explanation", "OnnxWeights", "PlanHeader", "Progress", "RefitAgentError", "ServiceClient", "WeightRef", "ensure_engine", "ensure_engine_async", "explain", "read_plan_header"]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
