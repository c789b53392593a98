"""`Door`: the listener on loopback that the page comes from, from the first ticket to ten minutes after the last look.

Nothing tells a TCP connection's user apart as the Unix socket does, so the token is what lets in. On Linux the
kernel's table of sockets is asked as well, about those alone who show a good link or the cookie of a session: another
user's connection ends without an answer then. The table is long and may be made longer by anybody, so it is read in
a thread, one at a time; all other strangers get the same few words, and only so many of them a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import sys
from collections.abc import Callable

from aiohttp import web

from refit_agent.client.loopback import HOST
from refit_agent.errors import SocketUnusable
from refit_service.now_and_then import NowAndThen
from refit_service.page import guard
from refit_service.page.feed import Feed
from refit_service.page.keys import Tickets
from refit_service.page.one_at_a_time import OneAtATime
from refit_service.page.site import Site
from refit_service.peers import tcp_peer_uid
from refit_service.protocol import PageLink
from refit_service.state import Service
from refit_service.transport import Connection, Doorkeeper

if sys.platform == "win32":
    from refit_service import _windows as _platform
else:
    from refit_service import _posix as _platform

_TICKET_S = 60.0
_IDLE_S = 600.0
_BACKLOG = 32
#: Connections in a second of which it is not known that they are this user's; a browser makes six.
_MOST_UNKNOWN = 100
_WINDOW_S = 1.0
#: For the pages to take the word that the service ends.
_GOODBYE_S = 1.0


class Door:
    """An open listener; `open` makes one, `closed` says that it is none any more. For the event loop's thread."""

    def __init__(self, service: Service, sock: socket.socket, ticket_s: float, idle_s: float) -> None:
        host = f"{HOST}:{sock.getsockname()[1]}"
        self.address = f"http://{host}"
        self.closed = False
        self._sock = sock
        self._tickets = Tickets(ticket_s)
        self._feed = Feed(service)
        self._idle_s = max(idle_s, ticket_s)
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._keeper: _PageKeeper
        site = Site(host, self._tickets, self._feed, self._used, lambda r: self._keeper.knows(r), service.report)
        self._runner = web.AppRunner(
            site.app(), handler_cancellation=True, access_log=None, shutdown_timeout=_GOODBYE_S
        )

    @classmethod
    async def open(cls, service: Service, *, ticket_s: float = _TICKET_S, idle_s: float = _IDLE_S) -> Door:
        """Listen on a port of the system's choice. A ticket is good for ``ticket_s`` seconds; the door closes when
        nobody has used it for ``idle_s`` and no page is open.

        Raises:
            SocketUnusable: there is no loopback interface, or no descriptor left.
        """
        try:
            sock = _bound()
        except OSError as error:
            raise SocketUnusable(
                path=HOST,
                detail=error.strerror or str(error),
                hint="The page needs the loopback interface. 'refit-agent status' says the same in words.",
            ) from error
        door = cls(service, sock, ticket_s, idle_s)
        await door._begin()
        return door

    def link(self) -> PageLink:
        """An address that opens the page once."""
        self._used()
        return PageLink(url=f"{self.address}/open?token={self._tickets.issue()}", ttl_s=self._tickets.ttl_s)

    async def close(self) -> None:
        """Listen no longer, and say so to the pages that are open."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    # ------------------------------------------------------------ how

    async def _begin(self) -> None:
        await self._runner.setup()
        assert self._runner.server is not None
        strangers = NowAndThen("another user asked for the page")
        self._keeper = _PageKeeper(self._runner.server, _our_uid(), lambda uid: strangers.warn(uid=uid))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._keeper, sock=self._sock, backlog=_BACKLOG)
        self._used()

    def _used(self) -> None:
        """Somebody uses the page: count the time until the door closes from now on."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.closed:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._on_idle)

    def _on_idle(self) -> None:
        # The end of its stream is the next use.
        if not self._feed.readers and self._closing is None:
            self.closed = True
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        assert self._server is not None
        self._server.close()
        self._feed.end()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._runner.cleanup(), 2 * _GOODBYE_S)


class _PageConnection(Connection):
    """One browser's connection.

    Attributes:
        known: whether it is this user's, as far as the system tells; set when it is.
    """

    __slots__ = ("known",)
    known: bool

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """As for every connection, with what every answer here says to the browser."""
        response = super().handle_error(request, status, exc, message)
        response.headers.update(guard.HEADERS)
        return response


class _PageKeeper(Doorkeeper):
    """Lets in whoever comes, up to a number, and finds out whose a connection is when it shows what opens the page."""

    most = 32
    connection = _PageConnection

    def __init__(self, server: web.Server, uid: int | None, on_stranger: Callable[[int | None], None]) -> None:
        super().__init__(server, uid, on_stranger)
        self._looks: OneAtATime[int | None] = OneAtATime("page-peer")
        self._unknown = 0
        self._window_ends = 0.0

    def welcome(self, transport: asyncio.Transport) -> bool:
        """Whether it is not one of too many: each costs a little, and a loop that connects would cost all of it."""
        del transport
        now = self._loop.time()
        if now >= self._window_ends:
            self._unknown, self._window_ends = 0, now + _WINDOW_S
        self._unknown += 1
        return self._unknown <= _MOST_UNKNOWN

    async def knows(self, request: web.Request) -> bool:
        """Whether the connection of a request that has shown what opens the page is this user's, as far as the system
        tells whose one is. Another's is ended."""
        handler = request.protocol
        assert isinstance(handler, _PageConnection)
        if not getattr(handler, "known", False):
            if not await self._is_this_users(request.transport):
                if request.transport is not None:
                    request.transport.abort()
                return False
            handler.known = True
            self._unknown = max(0, self._unknown - 1)
        self.heard(handler)
        return True

    async def _is_this_users(self, transport: asyncio.Transport | None) -> bool:
        ours = theirs = None
        if transport is not None:
            ours, theirs = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        if ours is None or theirs is None:
            return False  # gone already
        try:
            uid = await self._looks.do(functools.partial(tcp_peer_uid, ours, theirs))
        except OSError:
            return False
        # The page only shows, and root sees it all anyway. Besides, it is root in whose name a browser comes from
        # outside a virtual machine such as WSL's.
        return uid in (None, 0) or self.is_ours(uid)

    @property
    def full(self) -> bytes:
        head = "".join(f"{name}: {text}\r\n" for name, text in guard.HEADERS.items())
        return f"HTTP/1.1 503 Service Unavailable\r\n{head}Connection: close\r\nContent-Length: 0\r\n\r\n".encode()


def _our_uid() -> int | None:
    if sys.platform == "win32":
        return None
    return os.geteuid()


def _bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        _platform.keep_port(sock)
        sock.bind((HOST, 0))
    except OSError:
        sock.close()
        raise
    return sock
