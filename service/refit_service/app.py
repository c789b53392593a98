"""The application: which address leads to which handler, and what holds for all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

from refit_agent.errors import RefitAgentError
from refit_service import handlers
from refit_service.bodies import MOST_BYTES
from refit_service.ensure_handler import ensure
from refit_service.problems import Refusal, problem_of, problem_response
from refit_service.protocol import PROTOCOL
from refit_service.state import SERVICE, Service

if TYPE_CHECKING:
    from refit_service.gate import Gate

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
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
            return await handler(request)
        except (RefitAgentError, Refusal) as error:
            return problem_response(problem_of(error, number))
        except web.HTTPException as error:
            response = problem_response(problem_of(error, number))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return response
        except (asyncio.CancelledError, ConnectionError):
            raise  # the client went away
        except Exception as error:  # noqa: BLE001 - one request failed; the service stays up
            service.report(error, number)
            return problem_response(problem_of(error, number))

    async def sign(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = request.get("id", "")
        response.headers["Refit-Agent-Protocol"] = str(PROTOCOL)
        if gate is not None and "passed" in request:
            gate.sign(response)

    app = web.Application(middlewares=[answer], client_max_size=MOST_BYTES)
    app[SERVICE] = service
    app.on_response_prepare.append(sign)
    routes = app.router
    routes.add_post("/v1/engines:ensure", ensure)
    routes.add_get("/v1/health", handlers.health, allow_head=False)
    routes.add_get("/v1/status", handlers.status, allow_head=False)
    routes.add_get("/v1/gpus", handlers.gpus, allow_head=False)
    routes.add_get("/v1/bundles", handlers.list_bundles, allow_head=False)
    routes.add_post("/v1/bundles", handlers.register)
    routes.add_delete("/v1/bundles/{id}", handlers.unregister)
    routes.add_post("/v1/leases/{id}:renew", handlers.renew)
    routes.add_delete("/v1/leases/{id:[^:]+}", handlers.release)
    routes.add_get("/v1/explain", handlers.explain, allow_head=False)
    routes.add_get("/v1/cache", handlers.cache, allow_head=False)
    routes.add_post("/v1/cache:verify", handlers.verify_cache)
    routes.add_post("/v1/cache:prune", handlers.prune_cache)
    routes.add_post("/v1/page", handlers.page)
    routes.add_get("/v1/openapi.json", handlers.openapi, allow_head=False)
    routes.add_get("/metrics", handlers.metrics, allow_head=False)
    return app


def _request_id(request: web.Request) -> str:
    """The client's own, if it is fit to be written to a log, else a new one."""
    given = request.headers.get("X-Request-Id", "")
    if given and len(given) <= _LONGEST_ID and given.isascii() and given.replace("-", "").isalnum():
        return given
    return os.urandom(8).hex()
