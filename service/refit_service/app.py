"""The application: which address leads to which handler, and what holds for all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from refit_agent.errors import RefitAgentError
from refit_service import handlers
from refit_service.bodies import MOST_BYTES
from refit_service.ensure_handler import ensure
from refit_service.problems import Refusal, problem_of, problem_response
from refit_service.protocol import PROTOCOL
from refit_service.routes import Handler, add_routes, go_on
from refit_service.state import SERVICE, Service
from refit_service.transport import SERVER_NAME

if TYPE_CHECKING:
    from refit_service.gate import Gate

_LONGEST_ID = 64


def make_app(
    service: Service, heard: Callable[[web.RequestHandler], None], gate: Gate | None = None
) -> web.Application:
    """The application over ``service``; ``heard`` is told of every connection that made a request. With a ``gate``
    every request must pass it, whatever it asks for."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        number = request["id"] = _request_id(request)
        if gate is not None:
            if not gate.passes(request):
                return gate.refusal(number)
            request["passed"] = True
        heard(request.protocol)
        try:
            await go_on(request)
            return await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            raise  # the client went away
        except Exception as error:
            # One request failed; the service stays up.
            if not isinstance(error, (RefitAgentError, Refusal, web.HTTPException)):
                service.report(error, number)
            if "begun" in request:
                # A second head would be read as more of the first one's body.
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionAbortedError("an answer has begun already") from error
            response = problem_response(problem_of(error, number))
            if isinstance(error, web.HTTPException) and hdrs.ALLOW in error.headers:
                response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
            return response

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        request["begun"] = True
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.headers["X-Request-Id"] = request.get("id", "")
        response.headers["Refit-Agent-Protocol"] = str(PROTOCOL)
        if gate is not None and "passed" in request:
            gate.sign(response)

    app = web.Application(middlewares=[answer], client_max_size=MOST_BYTES)
    app[SERVICE] = service
    app.on_response_prepare.append(sign)
    add_routes(
        app,
        ("POST", "/v1/engines:ensure", ensure),
        ("GET", "/v1/health", handlers.health),
        ("GET", "/v1/status", handlers.status),
        ("GET", "/v1/gpus", handlers.gpus),
        ("GET", "/v1/bundles", handlers.list_bundles),
        ("POST", "/v1/bundles", handlers.register),
        ("DELETE", "/v1/bundles/{id}", handlers.unregister),
        ("POST", "/v1/leases/{id}:renew", handlers.renew),
        ("DELETE", "/v1/leases/{id:[^:]+}", handlers.release),
        ("GET", "/v1/explain", handlers.explain),
        ("GET", "/v1/cache", handlers.cache),
        ("POST", "/v1/cache:verify", handlers.verify_cache),
        ("POST", "/v1/cache:prune", handlers.prune_cache),
        ("POST", "/v1/page", handlers.page),
        ("GET", "/v1/openapi.json", handlers.openapi),
        ("GET", "/metrics", handlers.metrics),
    )
    return app


def _request_id(request: web.Request) -> str:
    """The client's own, if it is fit to be written to a log, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.replace("-", "").isalnum():
        return given
    return os.urandom(8).hex()
