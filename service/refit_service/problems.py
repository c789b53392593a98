"""Errors as HTTP answers: which status, and a problem document for each."""

from __future__ import annotations

import msgspec
from aiohttp import web

from refit_agent.errors import (
    BundleError,
    BundleFileUnreadable,
    CacheError,
    DeviceError,
    FetchError,
    NoSuchBundle,
    NoSuchLease,
    RefitAgentError,
    RefitError,
    SelectionError,
    ServiceError,
    SettingInvalid,
)
from refit_service.protocol import PROBLEM_TYPE, Problem, problem

#: The first that fits, so the special ones stand above their family.
_STATUS: tuple[tuple[type[RefitAgentError], int], ...] = (
    (NoSuchLease, 404),
    (NoSuchBundle, 404),
    (BundleFileUnreadable, 503),  # of this machine, and perhaps of this moment
    (BundleError, 422),
    (SelectionError, 422),
    (SettingInvalid, 400),
    (DeviceError, 503),
    (RefitError, 502),
    (FetchError, 502),
    (CacheError, 507),
    (ServiceError, 503),
)
_HINTS = {404: "GET /v1/openapi.json lists what there is.", 413: "No request of this service needs a body of 1 MB."}


class Refusal(Exception):  # noqa: N818 - a request is refused; nothing here is broken
    """A request that is wrong as HTTP or JSON; the middleware answers with its problem document."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


def problem_of(error: BaseException, request_id: str) -> Problem:
    """The document for any error. One that nobody foresaw gives its request's id and no text: a message may
    hold what the reader of a log may see and a client may not."""
    if isinstance(error, RefitAgentError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        return problem(error, status, request_id)
    if isinstance(error, Refusal):
        return _plain_problem(error.status, error.code, error.detail, request_id)
    if isinstance(error, web.HTTPException):
        return _http_problem(error, request_id)
    detail = f"The service failed at this request; its log holds the reason under {request_id}."
    return _plain_problem(500, "internal", detail, request_id)


def _http_problem(error: web.HTTPException, request_id: str) -> Problem:
    code, detail = {
        404: ("not-found", "There is nothing at this address."),
        405: ("method-not-allowed", "This address does not take this method."),
        413: ("too-large", "The body of the request is larger than 1 MB."),
    }.get(error.status, ("bad-request", f"The request was refused: {error.reason}."))
    return _plain_problem(error.status, code, detail, request_id)


def _plain_problem(status: int, code: str, detail: str, request_id: str) -> Problem:
    return Problem(
        title=code.replace("-", " "),
        status=status,
        detail=detail,
        code=code,
        hint=_HINTS.get(status, ""),
        request_id=request_id,
    )


def problem_response(document: Problem) -> web.Response:
    """The answer that carries the document."""
    return web.Response(body=msgspec.json.encode(document), status=document.status, content_type=PROBLEM_TYPE)
