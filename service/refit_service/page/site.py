"""The few addresses of the page: `/open`, and below a session's place the files and the stream of what there is."""

from __future__ import annotations

import asyncio
import html
import os
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from refit_service.page import guard
from refit_service.page.feed import Feed, line
from refit_service.page.keys import ENDED, Session, Sessions, Tickets
from refit_service.protocol import STREAM_TYPE
from refit_service.routes import Handler, add_routes

_FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    **{name: (name, "text/javascript") for name in ("page.js", "view.js", "bundles.js", "elements.js", "words.js")},
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
#: More than five events a second help nobody; a page that hears nothing for several heartbeats says so.
_LEAST_PAUSE_S = 0.2
_HEARTBEAT_S = 5.0
#: A reader that does not take what is written for this long is not there any more.
_STUCK_S = 60.0


class Site:
    """What the page's addresses answer. For the event loop's thread alone.

    ``host`` is our own address with the port, ``used`` is told of every sound request and of the end of every
    stream, and ``knows`` says of one with a good ticket or cookie whether its connection is this user's. It has ended
    those that are not.
    """

    def __init__(
        self,
        host: str,
        tickets: Tickets,
        feed: Feed,
        used: Callable[[], None],
        knows: Callable[[web.Request], Awaitable[bool]],
        report: Callable[[BaseException, str], None],
    ) -> None:
        self._host = host
        self._tickets = tickets
        self._sessions = Sessions()
        self._feed = feed
        self._used = used
        self._knows = knows
        self._report = report

    def app(self) -> web.Application:
        """The application with these addresses."""
        app = web.Application(middlewares=[self._guarded], client_max_size=1)
        app.on_response_prepare.append(_sign)
        add_routes(
            app,
            ("GET", "/open", self._open),
            ("GET", "/{place}/events", self._events),
            ("GET", "/{place}/{name:[a-z.]*}", self._file),
        )
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not guard.is_sound(request.headers, self._host, opens=request.path == "/open"):
            return _refusal(403, "Not from here", "This address answers only to its own page.")
        try:
            return await handler(request)
        except web.HTTPMethodNotAllowed:
            return _refusal(405, "Only to be read", "This page is only to be read.")
        except web.HTTPException:
            return _no_session()
        except (asyncio.CancelledError, ConnectionError):
            raise  # the browser went away
        except Exception as error:  # noqa: BLE001 - one request failed; the page stays
            self._report(error, "page")
            return _refusal(500, "A fault", "The service failed at this request; its log says why.")

    async def _open(self, request: web.Request) -> web.Response:
        """A good ticket becomes a session. Not by a redirect: after a link in a file or a chat the browser would
        follow it as that other site's request, without the cookie. What our own page leads to is ours."""
        token = request.query.get("token", "")
        # Used up only by this user, who may not be the first to read it in the list of processes.
        if self._tickets.knows(token):
            await self._check_user(request)
        if not self._tickets.redeem(token):
            return _refusal(
                403,
                "This link has been used or has run out",
                "Each link opens the page once, within a minute. Run refit-agent ui again for a new one.",
            )
        self._used()
        session = self._sessions.begin()
        place = f"/{session.place}/"
        # With the icon, which the browser would ask for elsewhere, where there is none.
        head = f'<meta http-equiv="refresh" content="0;url={place}"><link rel="icon" href="{place}icon.svg">'
        response = _plain(200, "Refit Agent", "One moment.", head)
        response.set_cookie(_cookie(session.place), session.secret, path=place, httponly=True, samesite="Strict")
        return response

    async def _session(self, request: web.Request) -> Session | None:
        place = request.match_info["place"]
        session = self._sessions.find(place, request.cookies.get(_cookie(place), ""))
        if session is not None:
            await self._check_user(request)
            self._used()
        return session

    async def _check_user(self, request: web.Request) -> None:
        if not await self._knows(request):
            raise ConnectionAbortedError("it is another user's")

    async def _file(self, request: web.Request) -> web.Response:
        if await self._session(request) is None or request.match_info["name"] not in _FILES:
            return _no_session()
        name, kind = _FILES[request.match_info["name"]]
        with open(os.path.join(os.path.dirname(__file__), name), "rb") as file:
            return web.Response(body=file.read(), content_type=kind, charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """What there is and what changes, one JSON document a line, until the page or the service goes."""
        session = await self._session(request)
        if session is None:
            return _no_session()
        session.turn += 1
        self._feed.wake()
        response = web.StreamResponse(headers={"Content-Type": STREAM_TYPE})
        try:
            with self._feed.watched():
                await response.prepare(request)
                await self._stream(request, response, session, session.turn)
        finally:
            self._used()
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, session: Session, turn: int) -> None:
        loop = asyncio.get_running_loop()
        seen, beat = 0, 0.0
        while session.turn == turn and not self._feed.ended:
            seen, lines = self._feed.news(seen)
            if loop.time() >= beat:
                lines += line("now", time.time())
                beat = loop.time() + _HEARTBEAT_S
            paused = loop.time() + _LEAST_PAUSE_S
            await _write(request, response, lines)
            await self._feed.wait(seen, beat - loop.time())
            await asyncio.sleep(max(0.0, paused - loop.time()))
        why = "stopped" if self._feed.ended else "closed" if session.turn == ENDED else "elsewhere"
        await _write(request, response, line("end", why))


def _cookie(place: str) -> str:
    """The name of the cookie for that place alone; read by no script; sent with no request that another site caused.

    A server at another port of this machine may set cookies that come with our requests too. It cannot set one of
    this name, which it would have to guess.
    """
    return f"refit-agent-{place}"


async def _write(request: web.Request, response: web.StreamResponse, lines: bytes) -> None:
    """Write, and wait until the reader has taken most of it."""
    if not lines:
        return
    timer = asyncio.get_running_loop().call_later(_STUCK_S, _abort, request.transport)
    try:
        await response.write(lines)
    finally:
        timer.cancel()


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


async def _sign(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers.update(guard.HEADERS)


# ---------------------------------------------------------------- pages without a session


def _no_session() -> web.Response:
    return _refusal(403, "This page is closed", "Run refit-agent ui to open it again.")


def _refusal(status: int, title: str, words: str) -> web.Response:
    response = _plain(status, title, words)
    response.force_close()
    return response


def _plain(status: int, title: str, words: str, head: str = "") -> web.Response:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width">{head}<style>{guard.PLAIN_STYLE}</style></head>'
        f"<body><main><h1>{html.escape(title)}</h1><p>{html.escape(words)}</p></main></body></html>"
    )
    return web.Response(text=text, status=status, content_type="text/html")
