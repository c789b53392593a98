"""Reads every cached engine whole once in a while, and compares it with what was published.

A hit compares sizes and times only. A disk that loses a bit keeps both: without this nobody would notice before an app
computes with it. Slowly, giving way to engines in the making, and at the times at which background work may begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable

import msgspec

from refit_agent.cache.store import Store
from refit_agent.cache.verify import Verdict, verify
from refit_agent.errors import Cancelled, SettingInvalid
from refit_agent.state_file import replace_file
from refit_service.idle import hours_reason, off_reason, power_reason
from refit_service.jobs import Jobs
from refit_service.threads import in_thread

_FILE = "checked.json"
#: Each engine that often, counted from when it was first seen: its maker has compared it.
_EVERY_S = 7 * 86400.0
#: The first look comes when a session's start is over.
_FIRST_LOOK_S, _LOOK_S = 600.0, 3600.0
#: A twentieth of a core and of a slow SSD. An engine of a gigabyte takes 20 seconds.
_BYTES_PER_S = 50e6
_BUSY_PAUSE_S = 15.0
#: What else lies there, a file manager's notes for example, is nobody's engine.
_KEY = re.compile(r"[0-9a-f]{64}")
_decoder = msgspec.json.Decoder(dict[str, float])


class ContentChecks:
    """The checks of one service. ``on_damage`` is told of each engine that was found damaged, ``report`` of whatever kept
    one from being read. Used by the event loop's thread alone."""

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        state: str,
        on_damage: Callable[[Verdict], None],
        report: Callable[[BaseException, str], None],
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._path = os.path.join(state, _FILE)
        self._on_damage = on_damage
        self._report = report
        #: When each was last compared, in Unix time.
        self._checked: dict[str, float] = {}
        damaged = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
        with contextlib.suppress(OSError, *damaged), open(self._path, "rb") as file:
            self._checked = _decoder.decode(file.read())
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; an engine that is being read is read again at the next start."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        await asyncio.sleep(_FIRST_LOOK_S)
        while True:
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - a fault here must not end all checks unnoticed
                self._report(error, "check")
            await asyncio.sleep(_LOOK_S)

    async def _round(self) -> None:
        """Every engine that is due, one after the other."""
        while (key := self._due()) and not _reason_to_wait():
            if self._jobs.running is not None:
                await asyncio.sleep(_BUSY_PAUSE_S)
                continue
            try:
                done = await self._check(key)
            except Cancelled:  # it made way, and comes again
                continue
            except Exception as error:  # noqa: BLE001 - whatever one engine has must not keep the others from being read
                self._report(error, "check")
                done = False
            # One that could not be read is no sound one, nor one that is damaged and still where look-ups find it.
            self._checked[key] = time.time() if done else time.time() - _EVERY_S + _LOOK_S
            self._save()

    async def _check(self, key: str) -> bool:
        """Whether there is nothing more to do about this engine: it is sound, gone, or set aside."""
        done = True
        for verdict in await in_thread(lambda: verify(self._store, [key], self._slowly), "check"):
            if verdict.fault:
                self._on_damage(verdict)
                done = done and verdict.set_aside != ""
        return done

    def _due(self) -> str:
        """The engine that was not compared for longest, if that is long enough; "" otherwise."""
        now = time.time()
        keys = set(filter(_KEY.fullmatch, self._store.list_keys()))
        # A clock that was set back must not put a check off for years.
        known = {key: min(when, now) for key, when in self._checked.items() if key in keys}
        present = dict.fromkeys(keys, now) | known
        if present != self._checked:
            self._checked = present
            self._save()
        key = min(self._checked, key=lambda k: (self._checked[k], k), default="")
        return key if key and self._checked[key] <= now - _EVERY_S else ""

    def _slowly(self, count: int) -> None:
        """Called in the thread that reads, after each piece."""
        if self._stopping or self._jobs.running is not None:
            raise Cancelled()
        time.sleep(count / _BYTES_PER_S)

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # then they are compared again after the next start
            replace_file(self._path, msgspec.json.encode(self._checked))


def _reason_to_wait() -> str:
    try:
        return off_reason() or hours_reason() or power_reason()
    except SettingInvalid as error:
        return str(error)
