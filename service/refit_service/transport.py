"""Connections: who may connect, how many, and for how long they may say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import msgspec
from aiohttp import web

from refit_service.peers import peer_uid
from refit_service.problems import Refusal, problem_of
from refit_service.protocol import PROBLEM_TYPE, PROTOCOL

MOST_CONNECTIONS = 256
#: And not which Python and aiohttp this is, which is what aiohttp would tell strangers too.
SERVER_NAME = "refit-agent"
#: A client is on this machine and has its request ready when it connects.
HEAD_S = 10.0
_KEEPALIVE_S = 75.0
#: For a client whose socket is full to read some of it.
UNREAD_S = 60.0
#: For the answer to arrive at one who still sends what was refused.
_LINGER_S = 1.0


class Connection(web.RequestHandler):
    """One client's connection; malformed HTTP is answered like every other mistake."""

    __slots__ = ("_unread",)

    def pause_writing(self) -> None:
        """The client does not take what it asked for: not for ever."""
        super().pause_writing()
        transport = self.transport
        if transport is not None:
            self._unread = asyncio.get_running_loop().call_later(UNREAD_S, transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is over."""
        self._forget_unread()
        super().connection_lost(exc)

    def _forget_unread(self) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, "_unread", None)
        if timer is not None:
            timer.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no request that can be understood."""
        del exc, message
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        number = "malformed"
        document = problem_of(Refusal(status, "bad-request", "This is not HTTP/1.1 as it should be."), number)
        response = web.Response(
            status=status,
            body=msgspec.json.encode(document),
            content_type=PROBLEM_TYPE,
            headers={"Server": SERVER_NAME, "X-Request-Id": number, "Refit-Agent-Protocol": str(PROTOCOL)},
        )
        response.force_close()
        return response


class Doorkeeper:
    """Makes a connection's protocol, or turns it away. Call it as asyncio's protocol factory.

    Attributes:
        most: how many connections there may be.
        connection: the kind of handler for each of them.
        full: the whole answer to one too many.
    """

    most: ClassVar[int] = MOST_CONNECTIONS
    connection: ClassVar[type[Connection]] = Connection

    def __init__(self, server: web.Server, uid: int | None, on_stranger: Callable[[int | None], None]) -> None:
        self._server = server
        self._uid = uid
        self._on_stranger = on_stranger
        self._loop = asyncio.get_running_loop()
        #: Connections that have made no request yet, with the timer that ends them.
        self._silent: dict[web.RequestHandler, asyncio.TimerHandle] = {}

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Gate(self)

    def heard(self, handler: web.RequestHandler) -> None:
        """A whole request has come over this connection."""
        timer = self._silent.pop(handler, None)
        if timer is not None:
            timer.cancel()

    def admit(self, transport: asyncio.Transport) -> web.RequestHandler | None:
        """The handler for a connection, None for one that is not let in."""
        if not self.welcome(transport):
            transport.abort()
            return None
        if len(self._server.connections) >= self.most and not self._make_place():
            transport.write(self.full)
            transport.close()
            return None
        handler = self.connection(
            self._server,
            loop=self._loop,
            keepalive_timeout=_KEEPALIVE_S,
            tcp_keepalive=False,
            lingering_time=_LINGER_S,
        )
        self._silent[handler] = self._loop.call_later(HEAD_S, self._end_silent, handler, transport)
        return handler

    def welcome(self, transport: asyncio.Transport) -> bool:
        """Whether the one who connected may come in. Where nobody says who that is, everybody may: then every
        request has to show that it may be made."""
        if self._uid is None:
            return True
        sock = transport.get_extra_info("socket")
        return self.is_ours(None if sock is None else peer_uid(sock))

    def is_ours(self, uid: int | None) -> bool:
        """Whether it is this user; everybody else, who is reported, has a service of their own. Root too: what it
        asks for would be done in this user's name, with paths that only root can judge. It can become the user."""
        if uid is not None and uid == self._uid:
            return True
        self._on_stranger(uid)
        return False

    @property
    def full(self) -> bytes:
        return _FULL

    def _make_place(self) -> bool:
        """End the connection that has said nothing for longest: those who connect and say nothing must not
        keep out those who ask."""
        while self._silent:
            handler = next(iter(self._silent))
            self._silent.pop(handler).cancel()
            if handler.transport is not None:
                handler.transport.abort()
                return True
        return False

    def _end_silent(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._silent.pop(handler, None)
        transport.abort()


class _Gate(asyncio.Protocol):
    """Stands in for a connection's protocol until it is known who is there; costs nothing afterwards."""

    def __init__(self, keeper: Doorkeeper) -> None:
        self._keeper = keeper

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        handler = self._keeper.admit(transport)
        if handler is not None:
            transport.set_protocol(handler)
            handler.connection_made(transport)


_FULL_BODY = msgspec.json.encode(
    problem_of(Refusal(503, "too-many-connections", "The service has as many connections as it takes."), "full")
)
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"X-Request-Id: full\r\nRefit-Agent-Protocol: 1\r\nContent-Length: %d\r\n\r\n" % len(_FULL_BODY)
) + _FULL_BODY
