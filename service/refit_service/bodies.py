"""Bodies of requests and answers."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import web

from refit_service.problems import Refusal

MOST_BYTES = 1 << 20
#: From the head of a request to the end of its body.
_BODY_S = 10.0

Body = TypeVar("Body")


async def read_json(request: web.Request, kind: type[Body], *, optional: bool = False) -> Body:
    """The request's body as a ``kind``; with ``optional`` an empty one counts as {}.

    Raises:
        Refusal: too large, not JSON, or not what it should be.
    """
    if request.content_length is not None and request.content_length > MOST_BYTES:
        raise Refusal(413, "too-large", f"The body has {request.content_length} bytes; at most {MOST_BYTES} are taken.")
    transport = request.transport
    # One that announces a body and sends none is cut off; asyncio's own timeouts cost more than a hit.
    timer = asyncio.get_running_loop().call_later(_BODY_S, transport.abort) if transport is not None else None
    try:
        data = await request.read()
    finally:
        if timer is not None:
            timer.cancel()
    if not data and optional:
        data = b"{}"
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "bad-request", f"The body is not what this address takes: {error}.") from error


def json_response(document: object, status: int = 200) -> web.Response:
    """The answer that carries a document."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")


def one_of(request: web.Request, name: str, *, required: bool = False) -> str | None:
    """A parameter of the query; raises Refusal if it is missing and ``required``, or there twice."""
    values = request.query.getall(name, [])
    if len(values) > 1 or (required and not values) or any("\0" in v for v in values):
        raise Refusal(400, "bad-request", f"The query must give {name!r} once.")
    return values[0] if values else None
