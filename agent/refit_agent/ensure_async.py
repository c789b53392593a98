"""`ensure_engine_async`: `ensure_engine` for asyncio apps, in a thread of its own, stopped when it is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from refit_agent.engine import Engine
from refit_agent.progress import Progress
from refit_agent.provision import ensure_engine


async def ensure_engine_async(
    bundle: str | os.PathLike[str],
    model: str,
    profile: str | None = None,
    target: str | None = None,
    progress: Callable[[Progress], object] | None = None,
    **options: Any,
) -> Engine:
    """What `ensure_engine` gives, with the same options and errors; the event loop goes on meanwhile.

    ``progress`` is called in the event loop. Cancelling stops the work unless somebody else waits for it.
    """
    loop = asyncio.get_running_loop()
    unwanted = threading.Event()
    given: Callable[[], bool] = options.pop("cancelled", lambda: False)

    def report(step: Progress) -> None:
        if progress is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
                loop.call_soon_threadsafe(progress, step)

    work = functools.partial(
        ensure_engine,
        bundle,
        model,
        profile,
        target,
        None if progress is None else report,
        cancelled=lambda: unwanted.is_set() or given(),
        **options,
    )
    # One thread for each call: in the loop's own pool a few slow ones would keep hits waiting.
    pool = ThreadPoolExecutor(1, "refit-agent")
    try:
        future = pool.submit(work)
    finally:
        pool.shutdown(wait=False)
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        unwanted.set()
        future.add_done_callback(_let_go)
        raise


def _let_go(future: Future[Engine]) -> None:
    """End the lease on an engine that was ready just when nobody wanted it any more."""
    if not future.cancelled() and future.exception() is None:
        future.result().close()
