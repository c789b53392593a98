"""`OneAtATime`: work for threads that must not pile up, however often it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from refit_service.threads import in_thread

Value = TypeVar("Value")


class OneAtATime(Generic[Value]):
    """Runs one piece of work at a time, each in a thread. For the event loop's thread alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._under_way: asyncio.Future[Value] | None = None

    async def do(self, work: Callable[[], Value]) -> Value:
        """What ``work`` gives, or raises, once its turn has come.

        Whoever is cancelled stops waiting, but not the thread: the next one waits until that has ended.
        """
        while self._under_way is not None and not self._under_way.done():
            await asyncio.wait((self._under_way,))
        self._under_way = in_thread(work, self._name)
        return await asyncio.shield(self._under_way)
