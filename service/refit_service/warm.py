"""Makes in the background what registered bundles will need: at start-up, after a registration, never twice.

Compares bundles by models by kinds of GPU with the cache, then makes what is missing, one engine at a time and
after everything that an app waits for. Sleeps for good when nothing is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator

from refit_agent import paths
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.errors import RefitAgentError, SettingInvalid
from refit_agent.selection import select
from refit_agent.settings import warm_busy_percent
from refit_service.apart import gpu_load
from refit_service.attempts import Attempts, Target
from refit_service.idle import hours_reason, off_reason, power_reason
from refit_service.jobs import Job, Jobs, Waiter
from refit_service.lookup import Hit, Missing, Wish, look_up, machine_now
from refit_service.protocol import BundleRecord, WarmRecord
from refit_service.registry import Registry, require_registrable
from refit_service.threads import in_thread

#: How long to wait before asking again whether the machine has time, and how often while work is done.
_PAUSE_S = 60.0
_WATCH_S = 15.0
#: Before the next look when the world has changed meanwhile.
_SOON_S = 1.0


class Warmer:
    """The background work of one service."""

    def __init__(
        self, registry: Registry, jobs: Jobs, state: str, report: Callable[[BaseException, str], None]
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._attempts = Attempts(state)
        #: The manifest of each bundle when it was last looked at; () for none that could be read.
        self._manifests: dict[str, tuple[int, ...]] = {}
        self._report = report
        self._news = asyncio.Event()
        self._state = "idle"
        self._reason = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Where the setting ``warm`` says no, it is asked again whenever there is news, and once in a while."""
        self._news.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def look_again(self) -> None:
        """A bundle was registered or removed, or an error was mended."""
        self._news.set()

    async def stop(self) -> None:
        """End; a job that it waits for loses this waiter."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def record(self) -> WarmRecord:
        """What it does now."""
        return WarmRecord(state=self._state, reason=self._reason, failures=self._attempts.failures())

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                again_s = await self._round()
            except Exception as error:  # noqa: BLE001 - a fault here must not end all background work unnoticed
                self._report(error, "warm")
                again_s = _PAUSE_S
            try:
                await asyncio.wait_for(self._news.wait(), again_s)
            except asyncio.TimeoutError:
                continue

    async def _round(self) -> float | None:
        """Make what is missing; gives the seconds after which to look again, None for not before there is news."""
        waits: list[float] = []
        try:
            reason = off_reason()
        except SettingInvalid as error:
            self._state, self._reason = "paused", str(error)
            return _PAUSE_S
        if reason:
            self._state, self._reason = "paused", reason
            # A file that says something else by then is no news.
            return _PAUSE_S if len(self._registry) else None
        self._state, self._reason = "idle", ""
        wanted: set[Target] = set()
        for record in self._registry.records():
            for what in self._targets(record):
                wanted.add(what)
                wait_s = self._attempts.wait_s(what)
                # A reason to wait holds for all of them, and to ask for it starts a process.
                if wait_s == 0 and self._state != "paused":
                    wait_s = await self._provide(what)
                if wait_s > 0:
                    waits.append(wait_s)
        self._attempts.keep_only(wanted)
        registered = {record.path for record in self._registry.records()}
        self._manifests = {path: seen for path, seen in self._manifests.items() if path in registered}
        return min(waits, default=None)

    def _targets(self, record: BundleRecord) -> Iterator[Target]:
        try:
            # The machine's policy may be younger than the registration.
            require_registrable(record.path)
            bundle = Bundle.open(record.path, record.public_keys)
            self._note_manifest(record.path, _identity(record.path))
            machine = machine_now(paths.home())
            for model in bundle.manifest.models:
                kinds: dict[tuple[str, str], str] = {}
                for gpu in machine.gpus:
                    kinds.setdefault((gpu.name, gpu.compute_capability), f"cuda:{gpu.index}")
                fit = [t for t in kinds.values() if select(bundle.manifest, model, None, machine, t).candidates]
                yield from ((record.path, model.name, target) for target in fit)
                if not fit:
                    yield record.path, model.name, None
        except RefitAgentError as error:
            self._note_manifest(record.path, ())
            what = (record.path, "", None)
            if self._attempts.wait_s(what) == 0:
                self._attempts.begin(what)
                self._attempts.failed(what, error)
                self._report(error, record.id)
            yield what

    def _note_manifest(self, path: str, identity: tuple[int, ...]) -> None:
        """Try again what failed in a bundle that was replaced or came back since it was last looked at."""
        if self._manifests.get(path, identity) != identity:
            self._attempts.forget_bundle(path)
        self._manifests[path] = identity

    async def _provide(self, what: Target) -> float:
        """Make one engine if it is missing; gives the seconds to wait before it is tried again, 0 when it is there."""
        keys = self._registry.pinned(what[0])
        wish = Wish(what[0], what[1], target=what[2], background=True, public_keys=keys)
        try:
            found = look_up(wish)
        except RefitAgentError as error:
            self._attempts.begin(what)
            self._attempts.failed(what, error)
            return self._attempts.wait_s(what)
        if isinstance(found, Hit):
            found.lease.close()
            self._attempts.forget(what)
            return 0.0
        reason = await self._reason_to_wait()
        if reason:
            self._state, self._reason = "paused", reason
            return _PAUSE_S
        self._state, self._reason = "working", ""
        return await self._make(what, wish, found)

    async def _make(self, what: Target, wish: Wish, missing: Missing) -> float:
        waiter = Waiter(wish, missing, 0)
        job = self._jobs.join(waiter, "warm")
        try:
            reason = await self._watch(job, what)
        finally:
            self._jobs.leave(waiter)
            if not job.done:
                self._attempts.withdraw(what)
        if reason:
            self._state, self._reason = "paused", reason
            return _PAUSE_S
        self._state = "idle"
        if waiter.error is not None:
            self._attempts.failed(what, waiter.error)
            return self._attempts.wait_s(what)
        if waiter.engine is None:  # an app's wish was worked on, and something else came of it
            self._attempts.withdraw(what)
            return _SOON_S
        self._attempts.forget(what)
        return 0.0

    async def _watch(self, job: Job, what: Target) -> str:
        """Wait for the job; gives why it is to be given up, "" when it is done."""
        asked = asyncio.get_running_loop().time()
        begun = False
        while True:
            if begun != (job.begun is not None):
                # Not while it waits for its turn: a service that is killed then was not killed by it.
                begun = not begun
                (self._attempts.begin if begun else self._attempts.withdraw)(what)
            if job.done:
                if not begun:  # no thread could be had for it
                    self._attempts.begin(what)
                return ""
            await job.wait_change(job.version, _WATCH_S)
            now = asyncio.get_running_loop().time()
            if job.background and not job.done and now - asked >= _WATCH_S:
                asked = now
                # Not the GPU's load, which is our own worker's, nor the hour: what was begun in time is finished.
                with contextlib.suppress(SettingInvalid):  # nothing new is begun until it is mended
                    reason = power_reason()
                    if reason:
                        return reason

    async def _reason_to_wait(self) -> str:
        try:
            reason = hours_reason() or power_reason()
            # The process that asks for the GPU's load could not say that this one is wrong.
            never_too_busy = warm_busy_percent() > 100
        except SettingInvalid as error:
            return str(error)
        if reason or never_too_busy or not machine_now(paths.home()).gpus:
            return reason
        return await in_thread(gpu_load, "warm-ask")


def _identity(bundle: str) -> tuple[int, ...]:
    """What tells one manifest in this place from another, without reading it."""
    try:
        status = os.stat(os.path.join(bundle, MANIFEST_NAME))
    except OSError:  # gone since it was read
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
