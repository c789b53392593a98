"""The OpenAPI 3.1 document, made from the records that the server itself decodes and encodes."""

from __future__ import annotations

import functools

import msgspec

from refit_agent import __version__
from refit_agent.machine import Machine
from refit_service import protocol
from refit_service.protocol import PROBLEM_TYPE, STREAM_TYPE

_REF = "#/components/schemas/{name}"
_RECORDS = (
    protocol.Problem,
    protocol.Health,
    protocol.Status,
    protocol.EnsureRequest,
    protocol.EngineResult,
    protocol.ProgressEvent,
    protocol.ResultEvent,
    protocol.ErrorEvent,
    protocol.LeaseRecord,
    protocol.RenewRequest,
    protocol.RegisterRequest,
    protocol.BundleRecord,
    protocol.BundleList,
    protocol.VerifyRequest,
    protocol.PruneRequest,
    protocol.PageLink,
    Machine,
)
Document = dict[str, object]


@functools.cache
def document() -> Document:
    """The whole document."""
    _, schemas = msgspec.json.schema_components(_RECORDS, ref_template=_REF)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Refit Agent",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Ready engines for this user's apps, over a Unix socket; or at a port of 127.0.0.1, as on "
            "Windows, where a request without the bearer token of the service's file gets 403 (forbidden). Every "
            "answer carries X-Request-Id and Refit-Agent-Protocol; every error is a problem document (RFC 9457) with a stable code.",
        },
        "servers": [{"url": "http://localhost", "description": "by way of the Unix socket"}],
        "paths": _paths(),
        "components": {"schemas": schemas},
    }
    # As JSON has it: defaults that are tuples here are arrays there.
    plain: Document = msgspec.json.decode(msgspec.json.encode(made))
    return plain


def _paths() -> Document:
    bundle_id, lease_id = _path_parameter("The id of a bundle."), _path_parameter("The id of a lease.")
    return {
        "/v1/health": {"get": _operation("health", "Whether the service answers.", {200: _json("Health")}, [])},
        "/v1/status": {"get": _operation("status", "What the service does.", {200: _json("Status")}, [507])},
        "/v1/gpus": {
            "get": _operation("gpus", "This machine as selection sees it.", {200: _wrapped("machine", "Machine")}, [])
        },
        "/v1/bundles": {
            "get": _operation("listBundles", "All registered bundles.", {200: _json("BundleList")}, []),
            "post": _operation(
                "registerBundle",
                "Register a bundle; its engines are made in the background. Lasts until it is removed.",
                {201: _json("BundleRecord"), 200: _json("BundleRecord", "It was registered already.")},
                [400, 413, 422, 503, 507],
                body="RegisterRequest",
            ),
        },
        "/v1/bundles/{id}": {
            "parameters": [bundle_id],
            "delete": _operation("removeBundle", "Forget a bundle.", {204: _empty()}, [404, 507]),
        },
        "/v1/engines:ensure": {
            "post": _operation(
                "ensureEngine",
                "The best engine of a model for this machine, with a lease. One JSON document if it is in the cache; "
                "otherwise lines of progress, and at last one result or one error.",
                {200: _engine()},
                [400, 404, 413, 422, 502, 503, 507],
                body="EnsureRequest",
            )
        },
        "/v1/leases/{id}:renew": {
            "parameters": [lease_id],
            "post": _operation(
                "renewLease",
                "Let a lease hold for longer.",
                {200: _json("LeaseRecord")},
                [400, 404, 413],
                body="RenewRequest",
                body_required=False,
            ),
        },
        "/v1/leases/{id}": {
            "parameters": [lease_id],
            "delete": _operation("releaseLease", "End a lease.", {204: _empty()}, [404]),
        },
        "/v1/explain": {
            "get": _operation(
                "explain",
                "What would be chosen, and why not the rest: as `refit-agent explain --json`.",
                {200: _object()},
                [400, 404, 422, 503, 507],
                query=("bundle", "model", "profile", "target"),
            )
        },
        "/v1/cache": {"get": _operation("listCache", "The engines in the cache.", {200: _object()}, [400, 507])},
        "/v1/cache:verify": {
            "post": _operation(
                "verifyCache",
                "Read engines whole; damaged ones are set aside.",
                {200: _object()},
                [400, 413, 507],
                body="VerifyRequest",
                body_required=False,
            )
        },
        "/v1/cache:prune": {
            "post": _operation(
                "pruneCache",
                "Delete leftovers, and the least recently used engines until the cache fits.",
                {200: _object()},
                [400, 413, 507],
                body="PruneRequest",
                body_required=False,
            )
        },
        "/v1/page": {
            "post": _operation(
                "openPage",
                "An address on loopback that opens the status page, once and soon. The page is for a browser; what "
                "it fetches is no part of this API.",
                {201: _json("PageLink")},
                [503],
            )
        },
        "/v1/openapi.json": {"get": _operation("openapi", "This document.", {200: _object()}, [])},
        "/metrics": {
            "get": _operation(
                "metrics",
                "Prometheus text.",
                {200: {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
                [507],
            )
        },
    }


def _operation(
    name: str,
    words: str,
    good: dict[int, Document],
    problems: list[int],
    *,
    body: str = "",
    body_required: bool = True,
    query: tuple[str, ...] = (),
) -> Document:
    made: Document = {
        "operationId": name,
        "summary": words,
        "responses": {
            **{str(status): answer for status, answer in good.items()},
            **{str(status): _problem() for status in problems},
        },
    }
    if body:
        made["requestBody"] = {
            "required": body_required,
            "content": {"application/json": {"schema": {"$ref": _REF.format(name=body)}}},
        }
    if query:
        text = {"type": "string", "minLength": 1, "pattern": "^[^\\u0000]+$"}
        # The first is what it is about; the rest narrow it down.
        made["parameters"] = [
            {"name": part, "in": "query", "required": part == query[0], "schema": text} for part in query
        ]
    return made


def _path_parameter(words: str) -> Document:
    schema = {"type": "string", "pattern": "^[0-9a-f]{1,64}$"}
    return {"name": "id", "in": "path", "required": True, "description": words, "schema": schema}


def _json(name: str, words: str = "Done.") -> Document:
    return {"description": words, "content": {"application/json": {"schema": {"$ref": _REF.format(name=name)}}}}


def _wrapped(field: str, name: str) -> Document:
    schema = {"type": "object", "required": [field], "properties": {field: {"$ref": _REF.format(name=name)}}}
    return {"description": "Done.", "content": {"application/json": {"schema": schema}}}


def _object() -> Document:
    return {"description": "Done.", "content": {"application/json": {"schema": {"type": "object"}}}}


def _empty() -> Document:
    return {"description": "Done."}


def _engine() -> Document:
    lines = [{"$ref": _REF.format(name=name)} for name in ("ProgressEvent", "ResultEvent", "ErrorEvent")]
    stream = {"type": "string", "description": "One JSON document for each line.", "x-lines": {"oneOf": lines}}
    return {
        "description": "The engine, or the way to it.",
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(name="EngineResult")}},
            STREAM_TYPE: {"schema": stream},
        },
    }


def _problem() -> Document:
    schema = {"$ref": _REF.format(name="Problem")}
    return {"description": "What is wrong, and what to do.", "content": {PROBLEM_TYPE: {"schema": schema}}}
