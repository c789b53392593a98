"""`Feed`: keeps the parts of the page up to date for as long as anybody looks, and wakes those who wait for news."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Iterator

import msgspec

from refit_service.jobs import Job
from refit_service.page.content import Parts, quick_parts, survey
from refit_service.page.one_at_a_time import OneAtATime
from refit_service.state import Service

#: Between two looks at the quick parts: at least this while a job moves, at most that while nothing does.
_LEAST_PAUSE_S = 0.2
_LOOK_S = 1.0
#: The survey is made anew after everything that may have changed it, and now and then for what nobody tells us of.
_SURVEY_S = 10.0


class Feed:
    """The parts of the page as lines of JSON. Does nothing while nobody looks. For the event loop's thread alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lines: dict[str, tuple[int, bytes]] = {}
        self._version = 0
        self._readers = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._sleepers: set[asyncio.Future[None]] = set()
        self._stale = asyncio.Event()
        #: A page that is loaded again and again begins no second survey while one is under way.
        self._surveys: OneAtATime[Parts] = OneAtATime("page")
        self.ended = False

    @property
    def readers(self) -> int:
        """How many look."""
        return self._readers

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the parts up to date within the block."""
        self._readers += 1
        if self._readers == 1:
            self._stale.set()
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(work()) for work in (self._look, self._survey)]
        try:
            yield
        finally:
            self._readers -= 1
            if self._readers == 0:
                for task in self._tasks:
                    task.cancel()
                self._lines.clear()  # who comes next must not be shown what was so hours ago

    def news(self, seen: int) -> tuple[int, bytes]:
        """The version, and the lines of all parts that have changed since version ``seen``, each once and as it is
        now: a slow reader gets fewer lines, not older ones."""
        return self._version, b"".join(line for version, line in self._lines.values() if version > seen)

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Return when there is something newer than version ``seen``, when `wake` was called, or after the time."""
        if self._version > seen or self.ended:
            return
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await asyncio.wait((sleeper,), timeout=timeout_s)
        finally:
            self._sleepers.discard(sleeper)

    def wake(self) -> None:
        """Let all who wait look round."""
        sleepers, self._sleepers = self._sleepers, set()
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    def end(self) -> None:
        """The service ends."""
        self.ended = True
        self.wake()

    # ------------------------------------------------------------ how

    def _publish(self, parts: Parts) -> None:
        changed = False
        for name, content in parts.items():
            text = line(name, content)
            if self._lines.get(name, (0, b""))[1] != text:
                self._version += 1
                self._lines[name] = self._version, text
                changed = True
        if changed:
            self.wake()

    async def _look(self) -> None:
        before: object = None
        while True:
            service = self._service
            with self._reported():
                self._publish(quick_parts(service))
            # What decides on the bundles and the cache: which job is worked on, who is registered, what failed.
            running = service.jobs.running
            now = (running, service.registry.records(), service.warmer.record())
            if now != before:
                before = now
                self._stale.set()
            await _pause(running)

    async def _survey(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stale.wait(), _SURVEY_S)
            self._stale.clear()
            look = functools.partial(survey, self._service, self._service.registry.records())
            with self._reported():
                self._publish(await self._surveys.do(look))

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """An error that nobody foresaw costs one look, not the page."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - see above
            self._service.report(error, "page")


def line(part: str, content: object) -> bytes:
    """One line of the stream. A path may hold what is no text, which only escapes can carry."""
    return json.dumps({"part": part, "data": msgspec.to_builtins(content)}).encode() + b"\n"


async def _pause(running: Job | None) -> None:
    if running is None:
        await asyncio.sleep(_LOOK_S)
        return
    loop = asyncio.get_running_loop()
    ends = loop.time() + _LEAST_PAUSE_S
    await running.wait_change(running.version, _LOOK_S)
    await asyncio.sleep(max(0.0, ends - loop.time()))
