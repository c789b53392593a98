"""`ServiceClient`: every call of the service, for threads."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

from refit_agent.client import calls, messages
from refit_agent.client.answers import EnsureAnswer, decoded, ensure_patience_s, within_limits
from refit_agent.client.http import Head, Malformed, Replaced
from refit_agent.client.wire import ANSWER_S, SILENCE_S, Connection, Unanswered, never
from refit_agent.errors import ServiceUnreachable
from refit_agent.machine import Machine
from refit_agent.progress import ProgressCallback
from refit_agent.service_socket import socket_path

T = TypeVar("T")
#: Connections that are kept for the next call.
_KEPT = 4


class ServiceClient:
    """Calls to the service of this user. Safe to share between threads; keeps a few connections open.

    Every method raises ServiceUnreachable if there is no service that can be talked to, and else the
    error that the service reports, as the library itself would raise it.
    """

    def __init__(self, path: str | None = None, *, answer_s: float = ANSWER_S, silence_s: float = SILENCE_S) -> None:
        """``path`` is the service's place, None for the usual one. No answer to ``ensure`` begins later than after
        ``answer_s`` seconds, and none pauses for ``silence_s``."""
        self._idle: list[Connection] = []
        self.path = socket_path() if path is None else path
        self._answer_s = answer_s
        self._silence_s = silence_s
        self._pid = os.getpid()

    def close(self) -> None:
        """Hang up every connection that is not in use."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # ------------------------------------------------------------ engines and leases

    def ensure(
        self,
        request: messages.EnsureRequest,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> messages.EngineResult:
        """A ready engine with a lease of ``request.ttl_s`` seconds; at once on a hit, else when it has been made.

        ``progress`` is called from this thread, with a `messages.Step`. Whatever ends the call early (an
        exception of ``progress``, KeyboardInterrupt) hangs up, and the service stops what nobody waits for.

        Raises:
            Cancelled: ``cancelled``, which is asked several times a second, said so.
        """
        request = within_limits(request)
        answer = EnsureAnswer()
        pieces = self._exchange(
            "POST",
            "/v1/engines:ensure",
            msgspec.json.encode(request),
            until=time.monotonic() + ensure_patience_s(request),
            answer_s=self._answer_s,
            silence_s=self._silence_s,
            cancelled=cancelled,
        )
        # Closed here and now: the traceback of an error would keep the connection open, and the worker at work.
        with self._understood(), contextlib.closing(pieces):
            for head, piece in pieces:
                for step in answer.feed(head, piece):
                    if progress is not None:
                        progress(step)
            return answer.result()

    def renew(self, lease: str, ttl_s: float = 60.0) -> messages.ServiceLease:
        """Let the lease last ``ttl_s`` seconds from now on."""
        return self._call(calls.renew(lease, ttl_s))

    def release(self, lease: str) -> None:
        """End the lease. Waits a second at most: one that is not released lapses by itself."""
        self._call(calls.release(lease))

    # ------------------------------------------------------------ what there is

    def status(self) -> messages.Status:
        """What the service is and does."""
        return self._call(calls.status())

    def bundles(self) -> tuple[messages.BundleRecord, ...]:
        """The registered bundles."""
        return self._call(calls.bundles()).bundles

    def add_bundle(
        self, path: str | os.PathLike[str], public_keys: Sequence[str] | None = None
    ) -> messages.BundleRecord:
        """Register the bundle at ``path``: its engines are made in the background, now and after a new driver
        or GPU. A bundle that was replaced is to be registered again. With ``public_keys`` one of them must have
        signed it, now and whenever the service uses it."""
        return self._call(calls.add_bundle(path, public_keys))

    def remove_bundle(self, bundle: str) -> None:
        """Forget the bundle with this id; engines in the cache stay until they age out."""
        self._call(calls.remove_bundle(bundle))

    def gpus(self) -> Machine:
        """The machine as the service sees it, whose environment may differ from ours."""
        return self._call(calls.gpus())["machine"]

    def explain(
        self, bundle: str, model: str | None = None, profile: str | None = None, target: str | None = None
    ) -> dict[str, Any]:
        """The document of ``refit-agent explain --json``."""
        return self._call(calls.explain(bundle, model, profile, target))

    def cache(self) -> dict[str, Any]:
        """The document of ``refit-agent cache list --json``."""
        return self._call(calls.cache())

    def verify_cache(self, keys: list[str] | None = None) -> dict[str, Any]:
        """Compare cached engines with their hashes, all without ``keys``; takes as long as reading them does."""
        return self._call(calls.verify_cache(keys))

    def prune_cache(self, max_bytes: int | None = None) -> dict[str, Any]:
        """Evict engines, least recently used first, until the cache is not larger than that (None: its quota)."""
        return self._call(calls.prune_cache(max_bytes))

    def page(self) -> messages.PageLink:
        """An address that opens the status page in a browser of this user on this machine, once and soon."""
        return self._call(calls.page())

    # ------------------------------------------------------------ how

    def _call(self, call: calls.Call[T]) -> T:
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
        with self._understood(), contextlib.closing(pieces):
            for last, piece in pieces:  # noqa: B007 - the last head is the only one
                whole += piece
            assert last is not None
            return decoded(last, bytes(whole), call.kind)

    @contextlib.contextmanager
    def _understood(self) -> Generator[None, None, None]:
        try:
            yield
        except Malformed as fault:
            raise ServiceUnreachable(path=self.path, detail=str(fault)) from fault

    def _exchange(
        self,
        method: str,
        target: str,
        body: bytes | None,
        *,
        until: float,
        answer_s: float,
        silence_s: float,
        cancelled: Callable[[], bool] = never,
    ) -> Generator[tuple[Head, bytes], None, None]:
        """The pieces of an answer, from a kept connection if there is a good one."""
        replaced = False
        while True:
            connection, keep = self._connection(), False
            try:
                for head, piece, reusable in connection.exchange(
                    method, target, body, until=until, silence_s=silence_s, answer_s=answer_s, cancelled=cancelled
                ):
                    keep = reusable
                    yield head, piece
                return
            except Unanswered:
                continue
            except Replaced:
                if replaced:
                    raise
                replaced = True
            finally:
                # Not kept after an error: what would come next on it is the rest of this answer.
                if keep and len(self._idle) < _KEPT:
                    self._idle.append(connection)
                else:
                    connection.close()

    def _connection(self) -> Connection:
        if self._pid != os.getpid():
            # After a fork the parent has the same connections: two processes would read one another's answers.
            self.close()
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return Connection(self.path)
