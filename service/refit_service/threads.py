"""Blocking work beside the event loop, in a thread that ends with it: a service at rest keeps none."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def in_thread(work: Callable[[], Value], name: str) -> asyncio.Future[Value]:
    """Do ``work`` in a thread of its own; the future gets what it gives or raises, in this event loop.

    A cancelled future does not stop the thread, which ends with its work, or with the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()
    context = contextvars.copy_context()  # log lines of the thread carry the request's id

    def settle(value: Value | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(work)
        except BaseException as caught:  # noqa: BLE001 - it is the waiter's, whatever it is
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
