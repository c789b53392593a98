"""Starts the service in this process. Light: the service keeps in memory whatever is imported on the way."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from refit_agent.errors import ServiceMissing


def start_service() -> int:
    """Serve until a signal ends it; gives the exit code.

    Raises:
        ServiceMissing: the extra "service" is not installed.
        ServiceError: it cannot listen, for instance because another one does.
    """
    try:
        # By name: the library must work, and be checked, without the service.
        serve: Callable[[], int] = importlib.import_module("refit_service.entry").load()
    except ImportError as error:
        raise ServiceMissing(detail=f"{error.name} cannot be imported") from error
    return serve()
