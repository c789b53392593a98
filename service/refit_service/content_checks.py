"""Reads every cached engine whole once in a while, and compares it with what was published.

A hit compares sizes and times only. A disk that loses a bit keeps both: without this nobody would notice before an app
computes with it. Slowly, giving way to engines in the making, and at the times at which background work may begin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
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
#: Each engine that often, counted from when it was published: its maker has compared it.
_EVERY_S = 7 * 86400.0
#: The first look comes when a session's start is over.
_FIRST_LOOK_S, _LOOK_S = 600.0, 3600.0
#: A twentieth of a core and of a slow SSD. An engine of a gigabyte takes 20 seconds.
_BYTES_PER_S = 50e6
#: After each engine: thousands of small ones must not keep a core either.
_PAUSE_S = 0.05
_BUSY_PAUSE_S = 15.0
_SAVE_S = 60.0
#: What else lies there, a file manager's notes for example, is nobody's engine.
_KEY = re.compile(r"[0-9a-f]{64}")
_decoder = msgspec.json.Decoder(dict[str, float])


class ContentChecks:
    """The checks of one service, in a thread that lives for one round of them.

    ``on_damage`` is told of each engine that was found damaged, ``report`` of whatever kept one from being read, both by
    the event loop's thread, which alone calls the methods.
    """

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
        self._saved = dict(self._checked)
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; an engine that is being read is read again at the next start."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        await asyncio.sleep(_FIRST_LOOK_S)
        loop = asyncio.get_running_loop()
        while True:
            try:
                await in_thread(lambda: self._round(loop), "check")
            except Exception as error:  # noqa: BLE001 - a fault here must not end all checks unnoticed
                self._report(error, "check")
            await asyncio.sleep(_LOOK_S)

    # ------------------------------------------------------------ in the thread

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        """Every engine that is due, one after the other."""
        saved = time.monotonic()
        for key in self._due():
            while self._jobs.running is not None and not self._stopping.is_set():
                self._stopping.wait(_BUSY_PAUSE_S)
            if self._stopping.is_set() or _reason_to_wait():
                break
            # One that makes way comes again in the next round: read anew at once it could keep the others from being
            # read for ever, where engines are often made.
            with contextlib.suppress(Cancelled):
                done = self._check(key, loop)
                # One that could not be read is no sound one, nor one that is damaged and still where look-ups find it.
                self._checked[key] = time.time() if done else time.time() - _EVERY_S + _LOOK_S
            if time.monotonic() - saved >= _SAVE_S:
                self._save()
                saved = time.monotonic()
            self._stopping.wait(_PAUSE_S)
        self._save()

    def _check(self, key: str, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether there is nothing more to do about this engine: it is sound, gone, or set aside."""
        try:
            verdicts = verify(self._store, [key], self._slowly)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one engine has must not keep the others from being read
            loop.call_soon_threadsafe(self._report, error, "check")
            return False
        for verdict in verdicts:
            if verdict.error is not None:
                loop.call_soon_threadsafe(self._report, verdict.error, "check")
            if verdict.fault:
                loop.call_soon_threadsafe(self._on_damage, verdict)
        return all(v.error is None and (not v.fault or v.set_aside) for v in verdicts)

    def _due(self) -> list[str]:
        """The engines that were not compared for so long, that which was not for longest first."""
        now = time.time()
        # A clock that was set back must not put a check off for years.
        self._checked = {
            key: min(self._checked[key] if key in self._checked else self._published(key), now)
            for key in self._store.list_keys()
            if _KEY.fullmatch(key)
        }
        due = [key for key, when in self._checked.items() if when <= now - _EVERY_S]
        return sorted(due, key=lambda key: (self._checked[key], key))

    def _published(self, key: str) -> float:
        """When its files were put into its folder. Not when it was first seen: where nothing can be noted, every start
        of the service would put its check off."""
        try:
            return os.stat(self._store.folder(key)).st_mtime
        except OSError:
            return time.time()  # it has just gone

    def _slowly(self, count: int) -> None:
        """Called after each piece that was read."""
        if self._jobs.running is not None or self._stopping.wait(count / _BYTES_PER_S):
            raise Cancelled()

    def _save(self) -> None:
        if self._checked == self._saved:
            return  # a machine at rest has nothing to write
        with contextlib.suppress(OSError):  # then they are compared again after the next start
            replace_file(self._path, msgspec.json.encode(self._checked))
            self._saved = dict(self._checked)


def _reason_to_wait() -> str:
    try:
        return off_reason() or hours_reason() or power_reason()
    except SettingInvalid as error:
        return str(error)
