"""Routes that let every request come to the middleware, whatever it expects and wherever it leads.

aiohttp answers a request with an Expect header before any middleware is asked, and not as this service answers:
with what Python it runs on, and to strangers too. So every route has its own answer to the header, which is none, and
what leads nowhere has a route as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import HttpVersion11, hdrs, web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes(app: web.Application, *routes: tuple[str, str, Handler]) -> None:
    """Let each method and path lead to its handler, and everything else to 404, or 405 where another method leads
    somewhere. For once, since nothing added later would be found."""
    for method, path, handler in routes:
        app.router.add_route(method, path, handler, expect_handler=_leave)
    app.router.register_resource(_Everywhere())


async def go_on(request: web.Request) -> None:
    """Tell a client to send the body, if it waits for that word; for a request that may be answered."""
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


class _Everywhere(web.PlainResource):
    """Any path, and also what is none, as in OPTIONS *."""

    def __init__(self) -> None:
        super().__init__("/")
        self._only = self.add_route("*", _nowhere, expect_handler=_leave)

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo, set[str]]:
        """Its only route, always."""
        del request
        return web.UrlMappingMatchInfo({}, self._only), set()


async def _leave(request: web.Request) -> None:
    """What a request expects is for the middleware to judge."""
    del request


async def _nowhere(request: web.Request) -> web.StreamResponse:
    allowed: set[str] = set()
    *others, _ = request.app.router.resources()
    for resource in others:
        allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound()
