"""``POST /v1/engines:ensure``: a hit is one JSON document, anything else a stream of progress with one end."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from refit_agent.errors import RefitAgentError, ServiceBusy
from refit_service.bodies import json_response, read_json
from refit_service.jobs import Job, Waiter
from refit_service.lookup import Hit, Missing, Wish, look_up
from refit_service.problems import problem_of
from refit_service.protocol import STREAM_TYPE, EngineResult, EnsureRequest, ErrorEvent, ResultEvent
from refit_service.state import SERVICE, Service, note_error

_HEARTBEAT_S = 2.0
#: Between two lines: more than ten a second help nobody.
_LEAST_PAUSE_S = 0.1
#: A reader that does not take the last line for this long is not there any more.
_LAST_LINE_S = 60.0
#: More than any line has.
_MOST_LINE_BYTES = 16 << 20
#: What a job may take beyond its deadline to say how it ended.
_GRACE_S = 5.0


async def ensure(request: web.Request) -> web.StreamResponse:
    """The engine that the body asks for."""
    service = request.app[SERVICE]
    wanted = await read_json(request, EnsureRequest)
    folder = service.registry.folder(wanted.bundle)
    wish = Wish(
        folder,
        wanted.model,
        wanted.profile,
        wanted.target,
        wanted.weights,
        wanted.deadline_s,
        wanted.retry_failed,
        wanted.background,
        _trusted(service.registry.pinned(folder), wanted.public_keys),
    )
    if wish.weights is not None:
        service.registry.folder(wish.weights)  # absolute, or refused
    process = None if wanted.pid is None else service.leases.process(wanted.pid)
    try:
        found = _look_up(service, wish)
        if isinstance(found, Hit):
            service.tally.hits += 1
            lease = service.leases.grant(found.entry.key, found.lease, wanted.ttl_s, process)
            return json_response(found.result(lease))
        service.tally.misses += 1
        waiter = Waiter(wish, found, wanted.ttl_s, process)
        job = service.jobs.join(waiter, request["id"])
        return await _stream(request, service, job, waiter)
    finally:
        service.leases.forget(process)


def _trusted(pinned: tuple[str, ...] | None, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The keys of which one must have signed: where the bundle was registered with some, the request can only
    narrow them down."""
    if pinned is None or given is None:
        return given if pinned is None else pinned
    return tuple(key for key in given if key in pinned)


def _look_up(service: Service, wish: Wish) -> Hit | Missing:
    try:
        return look_up(wish)
    except RefitAgentError as error:
        note_error(service.tally, error)
        raise


async def _stream(request: web.Request, service: Service, job: Job, waiter: Waiter) -> web.StreamResponse:
    told = False
    try:
        response = web.StreamResponse(headers={"Content-Type": STREAM_TYPE, "Cache-Control": "no-store"})
        await response.prepare(request)
        lines = _Lines(response, request)
        try:
            outcome = await _outcome(service, lines, job, waiter, request["id"])
            last = _last_line(outcome, request["id"])
        except ConnectionError:
            raise  # the client went away
        except Exception as error:  # noqa: BLE001 - the client must be told all the same, and in this stream
            service.report(error, request["id"])
            await lines.write_last(_last_line(error, request["id"]))
            return response
        await lines.write_last(last)
        told = True
        return response
    finally:
        service.jobs.leave(waiter)
        if not told and waiter.lease is not None:
            service.leases.release_if_there(waiter.lease.id)


async def _outcome(
    service: Service, lines: _Lines, job: Job, waiter: Waiter, number: str
) -> EngineResult | BaseException:
    """Write progress until it is known what the client gets."""
    while True:
        await lines.write_progress(job, waiter.wish.deadline_s)
        service.jobs.leave(waiter)
        if waiter.engine is not None and waiter.lease is not None:
            return waiter.missing.result(waiter.engine, waiter.lease)
        if waiter.error is not None:
            return waiter.error
        if not job.done:
            seconds = round(waiter.wish.deadline_s, 3)
            return ServiceBusy(seconds=seconds, detail=f"it was at: {job.progress.text}")
        # What the job came to is no answer to this client's question, but the cache may know more than before.
        try:
            found = _look_up(service, waiter.wish)
            if isinstance(found, Hit):
                waiter.lease = service.leases.grant(found.entry.key, found.lease, waiter.ttl_s, waiter.process)
                return found.result(waiter.lease)
            waiter.missing = found
            job = service.jobs.join(waiter, number)
        except RefitAgentError as error:
            return error


class _Lines:
    """The lines of one stream. Progress is written only to a reader that has taken what was written before."""

    def __init__(self, response: web.StreamResponse, request: web.Request) -> None:
        self._response = response
        self._transport = request.transport
        self._fraction = 0.0
        if self._transport is not None:
            # So no line of progress is waited for, and a reader that sleeps cannot hold up its own end.
            self._transport.set_write_buffer_limits(high=_MOST_LINE_BYTES)

    async def write_progress(self, job: Job, deadline_s: float) -> None:
        """Write what is new until the job is done, or this client wants to wait no longer: ``deadline_s`` seconds for
        its turn, and as many from then on, however often it makes way and is begun anew."""
        loop = asyncio.get_running_loop()
        begun, since = job.begun is not None, loop.time()
        while not job.done:
            seen = job.version
            await self._write_step(job)
            paused = loop.time() + _LEAST_PAUSE_S
            await job.wait_change(seen, _HEARTBEAT_S)
            while not job.done and loop.time() < paused:
                await job.wait_change(job.version, paused - loop.time())
            if not begun and job.begun is not None:  # its turn has come
                begun, since = True, loop.time()
            limit = since + deadline_s + (_GRACE_S if begun else 0.0)
            if loop.time() >= limit:
                return

    async def _write_step(self, job: Job) -> None:
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            return  # it does not read: it gets fewer lines, and costs no more memory than for one
        step = job.event()
        # A job that is begun anew is not further than it was.
        self._fraction = max(self._fraction, step.fraction)
        step = msgspec.structs.replace(step, fraction=self._fraction)
        await self._response.write(msgspec.json.encode(step) + b"\n")

    async def write_last(self, line: bytes) -> None:
        """Write how it ended, and return when the system has taken all of it for the client."""
        loop = asyncio.get_running_loop()
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high=0)
        # Unless its reader comes back: it must not hold the connection for ever.
        timer = loop.call_later(_LAST_LINE_S, _abort, self._transport)
        try:
            await self._response.write(line)
            await self._response.write_eof()
        finally:
            timer.cancel()


def _last_line(outcome: EngineResult | BaseException, number: str) -> bytes:
    if isinstance(outcome, EngineResult):
        return msgspec.json.encode(ResultEvent(**msgspec.structs.asdict(outcome))) + b"\n"
    return msgspec.json.encode(ErrorEvent(**msgspec.structs.asdict(problem_of(outcome, number)))) + b"\n"


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
