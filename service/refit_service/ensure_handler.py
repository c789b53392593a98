"""``POST /v1/engines:ensure``: a hit is one JSON document, anything else a stream of progress with one end."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from refit_agent.errors import RefitAgentError, ServiceBusy
from refit_service.bodies import json_response, read_json
from refit_service.jobs import Job, Waiter
from refit_service.lookup import Hit, Missing, Wish, look_up, made_result
from refit_service.problems import problem_of
from refit_service.protocol import STREAM_TYPE, EnsureRequest, ErrorEvent, ResultEvent
from refit_service.state import SERVICE, Service, note_error

_HEARTBEAT_S = 2.0
#: Between two lines: more than ten a second help nobody.
_LEAST_PAUSE_S = 0.1
#: A reader that does not take the last line for this long is not there any more.
_LAST_LINE_S = 60.0
#: What a job may take beyond its deadline to say how it ended.
_GRACE_S = 5.0


async def ensure(request: web.Request) -> web.StreamResponse:
    """The engine that the body asks for."""
    service = request.app[SERVICE]
    wanted = await read_json(request, EnsureRequest)
    wish = Wish(
        service.registry.folder(wanted.bundle),
        wanted.model,
        wanted.profile,
        wanted.target,
        wanted.weights,
        wanted.deadline_s,
        wanted.retry_failed,
        wanted.background,
    )
    if wish.weights is not None:
        service.registry.folder(wish.weights)  # absolute, or refused
    found = _look_up(service, wish)
    process = None if wanted.pid is None else service.leases.process(wanted.pid)
    if isinstance(found, Hit):
        service.tally.hits += 1
        return json_response(found.result(service.leases.grant(found.entry.key, found.lease, wanted.ttl_s, process)))
    service.tally.misses += 1
    waiter = Waiter(wanted.ttl_s, process, background=wanted.background)
    try:
        job = service.jobs.join(wish, found, waiter, request["id"])
        return await _stream(request, service, job, waiter, wanted.deadline_s)
    finally:
        service.leases.forget(process)


def _look_up(service: Service, wish: Wish) -> Hit | Missing:
    try:
        return look_up(wish)
    except RefitAgentError as error:
        note_error(service.tally, error)
        raise


async def _stream(
    request: web.Request, service: Service, job: Job, waiter: Waiter, deadline_s: float
) -> web.StreamResponse:
    told = False
    try:
        response = web.StreamResponse(headers={"Content-Type": STREAM_TYPE, "Cache-Control": "no-store"})
        await response.prepare(request)
        await _write_progress(response, job, deadline_s)
        # Unless its reader comes back: it must not hold the connection for ever.
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_LAST_LINE_S, _abort, request.transport)
        try:
            await response.write(_last_line(job, waiter, deadline_s, request["id"]))
            await response.write_eof()
            told = True
        finally:
            timer.cancel()
        return response
    finally:
        service.jobs.leave(job, waiter)
        if not told and waiter.lease is not None:
            service.leases.release_if_there(waiter.lease.id)


async def _write_progress(response: web.StreamResponse, job: Job, deadline_s: float) -> None:
    """Write what is new until the job is done, or has taken longer than this client wants to wait."""
    loop = asyncio.get_running_loop()
    joined, turn = loop.time(), None if job.begun is None else loop.time()
    while not job.done:
        seen = job.version
        await response.write(msgspec.json.encode(job.event()) + b"\n")
        paused = loop.time() + _LEAST_PAUSE_S
        await job.wait_change(seen, _HEARTBEAT_S)
        while not job.done and loop.time() < paused:
            await job.wait_change(job.version, paused - loop.time())
        if turn is None and job.begun is not None:
            turn = loop.time()
        limit = joined + deadline_s if turn is None else turn + deadline_s + _GRACE_S
        if loop.time() >= limit:
            return


def _last_line(job: Job, waiter: Waiter, deadline_s: float, number: str) -> bytes:
    if job.engine is not None and waiter.lease is not None:
        result = made_result(job.engine, waiter.lease)
        return msgspec.json.encode(ResultEvent(**msgspec.structs.asdict(result))) + b"\n"
    error = job.error
    if error is None:
        error = ServiceBusy(seconds=round(deadline_s, 3), detail=f"it was at: {job.progress.text}")
    return msgspec.json.encode(ErrorEvent(**msgspec.structs.asdict(problem_of(error, number)))) + b"\n"


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
