"""One connection to the service: a request goes out, an answer comes in, all within limits."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

from refit_agent.client.http import UNIX, Answer, Head, Malformed, Replaced, Whom, request_bytes
from refit_agent.client.trust import check_path, check_peer, require_place
from refit_agent.errors import Cancelled, ServiceUnreachable
from refit_agent.service_socket import is_loopback

CONNECT_S = 0.2
#: A request begins to be answered within this time, however busy the service is.
ANSWER_S = 10.0
#: The service sends something at least every two seconds while it works.
SILENCE_S = 10.0
#: How often a caller is asked whether it still wants the answer.
_POLL_S = 0.1
_RECEIVE_BYTES = 64 << 10
#: No stream of progress is this long.
MOST_BODY_BYTES = 64 << 20


class Unanswered(Exception):  # noqa: N818 - the name says the situation
    """A kept connection was closed before the request: asking again on a new one does no harm."""


def never() -> bool:
    """The ``cancelled`` of a caller who waits."""
    return False


class Connection:
    """A connected socket. For one request at a time; close it after any error."""

    __slots__ = ("_path", "_socket", "_used", "_whom")

    def __init__(self, path: str) -> None:
        """Connect, and make sure that it is our own service; at a port of loopback the first answer shows that.

        Raises:
            ServiceUnreachable: there is none.
        """
        require_place(path)
        self._path = path
        self._used = False
        self._whom: Whom
        if is_loopback(path):
            from refit_agent.client.loopback import connect  # on a Unix socket nobody pays for it

            self._whom, self._socket = connect(path, CONNECT_S)
            return
        self._whom, self._socket = UNIX, _connect(path)
        try:
            check_peer(path, self._socket)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up: the service stops what nobody else waits for."""
        self._socket.close()

    def exchange(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        until: float,
        silence_s: float = SILENCE_S,
        answer_s: float = ANSWER_S,
        cancelled: Callable[[], bool] = never,
    ) -> Iterator[tuple[Head, bytes, bool]]:
        """Send one request and yield, as it arrives: the head, some of the body, whether the connection can be kept.

        The last piece of the body, which may be empty, comes when the answer is complete.

        Raises:
            Unanswered: a connection that was used before has been closed by the service.
            Replaced: on loopback, another service of ours has taken its place and did not do what was asked.
            ServiceUnreachable: no answer, or none that makes sense, in time (``until`` is of time.monotonic).
            Cancelled: ``cancelled`` said so.
        """
        started, answer, total = time.monotonic(), Answer(), 0
        reused, self._used = self._used, True
        limit = min(until, started + answer_s)
        try:
            try:
                self._send(request_bytes(method, target, body, self._whom), limit)
                while not answer.done:
                    data = self._receive(limit, cancelled)
                    if reused and not data and answer.head is None:
                        raise Unanswered
                    headless = answer.head is None
                    answer.feed(data)
                    if answer.head is None:
                        continue
                    if headless:
                        self._whom.check(answer.head)
                    piece = answer.take()
                    total += len(piece)
                    if total > MOST_BODY_BYTES:
                        raise Malformed(f"its answer is longer than {MOST_BODY_BYTES} bytes")
                    yield answer.head, piece, answer.reusable
                    limit = min(until, time.monotonic() + silence_s)
            except (BrokenPipeError, ConnectionResetError):
                if reused and answer.head is None:
                    raise Unanswered from None
                raise
        except Replaced:
            raise
        except Malformed as fault:
            raise ServiceUnreachable(path=self._path, detail=str(fault)) from fault
        except OSError as error:
            raise ServiceUnreachable(path=self._path, detail=error.strerror or str(error)) from error

    def _send(self, data: bytes, limit: float) -> None:
        self._socket.settimeout(max(0.001, limit - time.monotonic()))
        self._socket.sendall(data)

    def _receive(self, limit: float, cancelled: Callable[[], bool]) -> bytes:
        # Polled: a signal handler that only takes a note does not end a wait for the service.
        while True:
            if cancelled():
                raise Cancelled()
            left = limit - time.monotonic()
            if left <= 0:
                raise Malformed("it did not answer in time")
            self._socket.settimeout(min(left, _POLL_S))
            with contextlib.suppress(TimeoutError):
                return self._socket.recv(_RECEIVE_BYTES)


def _connect(path: str) -> socket.socket:
    check_path(path)
    ends = time.monotonic() + CONNECT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(path)
        except BlockingIOError as error:
            # The queue of connections is full: Linux says so at once instead of waiting.
            connection.close()
            if time.monotonic() >= ends:
                raise ServiceUnreachable(path=path, detail="it takes no connections") from error
            time.sleep(0.005)
            continue
        except OSError as error:
            connection.close()
            raise ServiceUnreachable(path=path, detail=error.strerror or str(error)) from error
        except BaseException:
            connection.close()
            raise
        return connection
