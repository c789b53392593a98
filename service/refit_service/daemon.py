"""`main`: the service from its first line to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time

from aiohttp import web

from refit_agent import paths
from refit_agent.cache.store import Store
from refit_agent.cache.verify import Verdict
from refit_agent.errors import RefitAgentError
from refit_agent.service_socket import IN_SERVICE_VARIABLE, VARIABLE, socket_path
from refit_service import logbook, systemd
from refit_service.apart import learn_machine
from refit_service.app import make_app
from refit_service.content_checks import ContentChecks
from refit_service.jobs import Job, Jobs
from refit_service.leases import LeaseBook
from refit_service.listening import BACKLOG, Listening, listen
from refit_service.metrics import Tally
from refit_service.now_and_then import NowAndThen
from refit_service.page.on_demand import PageOnDemand
from refit_service.registry import Registry
from refit_service.state import Service, note_damage, note_error, note_job
from refit_service.threads import in_thread
from refit_service.transport import Doorkeeper
from refit_service.warm import Warmer

if sys.platform == "win32":
    from refit_service import _windows as _platform
else:
    from refit_service import _posix as _platform

#: A refit that is nearly done is let finish; then its worker is stopped, and has this long to be gone.
_PATIENCE_S = 3.0
_DEADLINE_S = 5.0


def main() -> int:
    """Serve until SIGTERM or SIGINT; gives the exit code, which is 0.

    Raises:
        ServiceRunning, SocketUnusable, StateInsecure: before anything was begun.
    """
    os.umask(0o077)
    _platform.require_own_state(paths.home().state)
    listening = listen(socket_path())
    try:
        # Below, whatever asks for an engine has to make it: the service must not ask itself.
        os.environ[VARIABLE] = ""
        os.environ[IN_SERVICE_VARIABLE] = "1"
        logbook.set_up(paths.home().state)
        asyncio.run(_serve(listening))
    finally:
        listening.close()
    return 0


async def _serve(listening: Listening) -> None:
    from refit_agent.logs import get_logger

    log = get_logger("refit_service")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    _platform.stop_on_signals(loop, stop)
    tally = Tally()

    def report(error: BaseException, request_id: str) -> None:
        note_error(tally, error)
        log.error("a fault", request=request_id, exc_info=error)

    home = paths.home()
    store, registry, leases = Store(home.cache), Registry(home.state), LeaseBook(loop)
    damage = registry.load()
    if damage:
        log.error(damage)

    def on_end(job: Job) -> None:
        note_job(tally, store, job)
        error = job.error
        if isinstance(error, RefitAgentError):
            log.warning("no engine", request=job.request_id, model=job.wish.model, code=error.code, error=str(error))
        elif error is not None:
            report(error, job.request_id)

    jobs = Jobs(leases, on_end)
    warmer = Warmer(registry, jobs, home.state, report)

    def on_damage(verdict: Verdict) -> None:
        log.warning("cached engine is damaged", key=verdict.key, detail=verdict.fault, moved_to=verdict.set_aside)
        note_damage(tally, warmer, verdict)

    checks = ContentChecks(store, jobs, home.state, on_damage, report)
    service = Service(
        home,
        store,
        registry,
        leases,
        jobs,
        warmer,
        tally,
        time.time(),
        time.monotonic(),
        lambda: len(runner.server.connections) if runner.server is not None else 0,
        report,
        PageOnDemand(),
    )
    # Its handlers are cancelled when their client goes away: that is how a job loses its last waiter.
    runner = web.AppRunner(
        make_app(service, lambda h: door.heard(h), listening.gate),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=2.0,
    )
    await runner.setup()
    assert runner.server is not None
    strangers = NowAndThen("connection of another user")
    door = Doorkeeper(runner.server, listening.uid, lambda uid: strangers.warn(uid=uid))
    # Now, so that the first request does not wait for the driver.
    await in_thread(lambda: learn_machine(home), "detect")
    server = await loop.create_server(door, sock=listening.sock.dup(), backlog=BACKLOG)
    warmer.start()
    checks.start()
    watchdog = asyncio.create_task(_feed_watchdog())
    systemd.notify("READY=1")
    log.info("the service listens", path=listening.path, pid=os.getpid())
    try:
        await stop.wait()
    finally:
        systemd.notify("STOPPING=1")
        server.close()
        watchdog.cancel()
        jobs.stopping = True
        await service.page.close()
        await warmer.stop()
        await checks.stop()
        gone = await jobs.stop(_PATIENCE_S, _DEADLINE_S)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(runner.cleanup(), _DEADLINE_S)
        leases.close()
        log.info("the service ends", worker_gone=gone)


async def _feed_watchdog() -> None:
    period_s = systemd.watchdog_period_s()
    while period_s is not None:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(period_s)
