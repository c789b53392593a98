"""`AsyncClient`: the service for asyncio apps, without a thread that waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from refit_agent.client import calls, messages
from refit_agent.client.answers import EnsureAnswer, decoded, ensure_patience_s, within_limits
from refit_agent.client.http import UNIX, Answer, Head, Malformed, Replaced, Whom, request_bytes
from refit_agent.client.trust import check_path, check_peer, require_place
from refit_agent.client.wire import ANSWER_S, CONNECT_S, MOST_BODY_BYTES, SILENCE_S
from refit_agent.errors import ServiceUnreachable
from refit_agent.machine import Machine
from refit_agent.progress import Progress
from refit_agent.service_socket import is_loopback, socket_path

T = TypeVar("T")
_RECEIVE_BYTES = 64 << 10


class AsyncClient:
    """As `sync.ServiceClient`, for one event loop; each call has a connection of its own.

    Cancelling a call hangs up at once, and the service stops what nobody else waits for. For an engine with
    a lease of this process, and with or without a service, see `ensure_engine_async`.
    """

    def __init__(self, path: str | None = None, *, answer_s: float = ANSWER_S, silence_s: float = SILENCE_S) -> None:
        """As for `sync.ServiceClient`."""
        self.path = socket_path() if path is None else path
        self._answer_s = answer_s
        self._silence_s = silence_s

    async def ensure(
        self, request: messages.EnsureRequest, progress: Callable[[Progress], object] | None = None
    ) -> messages.EngineResult:
        """A ready engine with a lease of ``request.ttl_s`` seconds, which is the caller's to renew and release."""
        request = within_limits(request)
        answer = EnsureAnswer()
        pieces = self._exchange(
            "POST",
            "/v1/engines:ensure",
            msgspec.json.encode(request),
            until=time.monotonic() + ensure_patience_s(request),
            answer_s=self._answer_s,
            silence_s=self._silence_s,
        )
        with self._understood():
            async with contextlib.aclosing(pieces):
                async for head, piece in pieces:
                    for step in answer.feed(head, piece):
                        if progress is not None:
                            progress(step)
                return answer.result()

    async def renew(self, lease: str, ttl_s: float = 60.0) -> messages.ServiceLease:
        """Let the lease last ``ttl_s`` seconds from now on."""
        return await self._call(calls.renew(lease, ttl_s))

    async def release(self, lease: str) -> None:
        """End the lease."""
        await self._call(calls.release(lease))

    async def status(self) -> messages.Status:
        """What the service is and does."""
        return await self._call(calls.status())

    async def bundles(self) -> tuple[messages.BundleRecord, ...]:
        """The registered bundles."""
        return (await self._call(calls.bundles())).bundles

    async def add_bundle(
        self, path: str | os.PathLike[str], public_keys: Sequence[str] | None = None
    ) -> messages.BundleRecord:
        """Register the bundle at ``path``; with ``public_keys`` one of them must have signed it."""
        return await self._call(calls.add_bundle(path, public_keys))

    async def remove_bundle(self, bundle: str) -> None:
        """Forget the bundle with this id."""
        await self._call(calls.remove_bundle(bundle))

    async def gpus(self) -> Machine:
        """The machine as the service sees it."""
        return (await self._call(calls.gpus()))["machine"]

    async def explain(
        self, bundle: str, model: str | None = None, profile: str | None = None, target: str | None = None
    ) -> dict[str, Any]:
        """The document of ``refit-agent explain --json``."""
        return await self._call(calls.explain(bundle, model, profile, target))

    async def cache(self) -> dict[str, Any]:
        """The document of ``refit-agent cache list --json``."""
        return await self._call(calls.cache())

    async def verify_cache(self, keys: list[str] | None = None) -> dict[str, Any]:
        """Compare cached engines with their hashes."""
        return await self._call(calls.verify_cache(keys))

    async def prune_cache(self, max_bytes: int | None = None) -> dict[str, Any]:
        """Evict engines until the cache is not larger than that (None: its quota)."""
        return await self._call(calls.prune_cache(max_bytes))

    async def page(self) -> messages.PageLink:
        """An address that opens the status page, once and soon."""
        return await self._call(calls.page())

    # ------------------------------------------------------------ how

    async def _call(self, call: calls.Call[T]) -> T:
        whole, last = bytearray(), None
        patience_s = call.patience_s
        pieces = self._exchange(
            call.method,
            call.target,
            call.body,
            until=time.monotonic() + patience_s,
            answer_s=patience_s,
            silence_s=patience_s,
        )
        with self._understood():
            async with contextlib.aclosing(pieces):
                async for last, piece in pieces:  # noqa: B007 - the last head is the only one
                    whole += piece
            assert last is not None
            return decoded(last, bytes(whole), call.kind)

    @contextlib.contextmanager
    def _understood(self) -> Any:
        try:
            yield
        except Malformed as fault:
            raise ServiceUnreachable(path=self.path, detail=str(fault)) from fault
        except (TimeoutError, asyncio.TimeoutError) as fault:
            raise ServiceUnreachable(path=self.path, detail="it did not answer in time") from fault

    async def _exchange(
        self, method: str, target: str, body: bytes | None, *, until: float, answer_s: float, silence_s: float
    ) -> AsyncGenerator[tuple[Head, bytes], None]:
        replaced = False
        while True:
            pieces = self._attempt(method, target, body, until=until, answer_s=answer_s, silence_s=silence_s)
            try:
                async with contextlib.aclosing(pieces):
                    async for head, piece in pieces:
                        yield head, piece
                return
            except Replaced:
                if replaced:
                    raise
                replaced = True

    async def _attempt(
        self, method: str, target: str, body: bytes | None, *, until: float, answer_s: float, silence_s: float
    ) -> AsyncGenerator[tuple[Head, bytes], None]:
        reader, writer, whom = await self._connect()
        try:
            answer, total = Answer(), 0
            limit = min(until, time.monotonic() + answer_s)
            writer.write(request_bytes(method, target, body, whom))
            while not answer.done:
                try:
                    data = await asyncio.wait_for(reader.read(_RECEIVE_BYTES), max(0.0, limit - time.monotonic()))
                except OSError as error:
                    if isinstance(error, TimeoutError):
                        raise
                    raise Malformed(error.strerror or str(error)) from error
                headless = answer.head is None
                answer.feed(data)
                if answer.head is None:
                    continue
                if headless:
                    whom.check(answer.head)
                piece = answer.take()
                total += len(piece)
                if total > MOST_BODY_BYTES:
                    raise Malformed(f"its answer is longer than {MOST_BODY_BYTES} bytes")
                yield answer.head, piece
                limit = min(until, time.monotonic() + silence_s)
        finally:
            # Not awaited: nothing is left to send, and a cancelled call must not wait here.
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Whom]:
        require_place(self.path)
        if is_loopback(self.path):
            return await self._connect_to_port()
        check_path(self.path)
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(self.path), CONNECT_S)
        except (OSError, asyncio.TimeoutError, ValueError) as error:
            detail = getattr(error, "strerror", None) or str(error) or "it takes no connections"
            raise ServiceUnreachable(path=self.path, detail=detail) from error
        try:
            check_peer(self.path, writer.get_extra_info("socket"))
        except BaseException:
            writer.transport.abort()
            raise
        return reader, writer, UNIX

    async def _connect_to_port(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Whom]:
        from refit_agent.client.loopback import HOST, AtPort, places, refused

        fault: BaseException | None = None
        for place in places(self.path):
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(HOST, place.port), CONNECT_S)
            except (OSError, asyncio.TimeoutError) as error:
                fault = error
            else:
                return reader, writer, AtPort(self.path, place)
        raise refused(self.path, fault)
