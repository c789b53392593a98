"""What a job's own thread does: one call of `ensure_engine`, for the bundle as the request found it."""

from __future__ import annotations

import os
from collections.abc import Callable

from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.engine import Engine
from refit_agent.errors import BundleFileMismatch
from refit_agent.progress import ProgressCallback
from refit_agent.provision import ensure_engine
from refit_service.lookup import Missing, Wish


def make(
    wish: Wish,
    missing: Missing,
    deadline_s: float,
    request_id: str,
    progress: ProgressCallback,
    cancelled: Callable[[], bool],
) -> Engine:
    """The engine that ``wish`` asks for; ``request_id`` goes into the log lines of this thread. Blocks.

    Raises:
        BundleFileMismatch: there is another bundle by now than the one in which the engine was missing.
        RefitAgentError: as `ensure_engine`.
    """
    import structlog  # the first job has it imported in any case

    structlog.contextvars.bind_contextvars(request=request_id)
    # A job may have waited for minutes. An app that asked before its update must not get the new one's engine,
    # which may take other inputs.
    if Bundle.open(wish.bundle, wish.public_keys).manifest != missing.manifest:
        raise BundleFileMismatch(
            path=os.path.join(wish.bundle, MANIFEST_NAME),
            detail="it was replaced after the engine was asked for",
            hint="Ask again for the engine of the bundle that is there now.",
        )
    return ensure_engine(
        wish.bundle,
        wish.model,
        wish.profile,
        wish.target,
        progress,
        weights=wish.weights,
        deadline_s=deadline_s,
        retry_failed=wish.retry_failed,
        background=wish.background,
        cancelled=cancelled,
        service=False,
        public_keys=wish.public_keys,
    )
