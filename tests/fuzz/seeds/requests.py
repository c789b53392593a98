"""What goes over the service's socket, in both directions."""

from __future__ import annotations

import json
from collections.abc import Mapping

from bundles import MODEL

from ..harness.http_requests import BUNDLE, request


def requests() -> Mapping[str, bytes]:
    """Every address of the API as it is meant, and HTTP as it is not."""
    ensure = {"bundle": BUNDLE, "model": MODEL}
    lease, key = "0123456789abcdef", "0" * 64
    return {
        "health": request("GET", "/v1/health"),
        "status": request("GET", "/v1/status"),
        "gpus": request("GET", "/v1/gpus"),
        "bundles": request("GET", "/v1/bundles"),
        "register": request("POST", "/v1/bundles", {"path": BUNDLE}),
        "register-keys": request("POST", "/v1/bundles", {"path": BUNDLE, "public_keys": ["ed25519:AAAA"]}),
        "register-nothing": request("POST", "/v1/bundles", {"path": "/proc/self/cwd"}),
        "unregister": request("DELETE", f"/v1/bundles/{lease}"),
        "ensure": request("POST", "/v1/engines:ensure", ensure),
        "ensure-all": request("POST", "/v1/engines:ensure", {**ensure, "profile": None, "target": "cpu", "deadline_s": 5, "retry_failed": True, "background": False, "ttl_s": 3, "pid": 1, "public_keys": None}),
        "ensure-model": request("POST", "/v1/engines:ensure", {**ensure, "model": "other"}),
        "ensure-target": request("POST", "/v1/engines:ensure", {**ensure, "target": "cuda:0"}),
        "ensure-id": request("POST", "/v1/engines:ensure", {**ensure, "bundle": lease}),
        "ensure-weights": request("POST", "/v1/engines:ensure", {**ensure, "weights": f"{BUNDLE}/models/mlp.onnx", "deadline_s": 1}),
        "renew": request("POST", f"/v1/leases/{lease}:renew", {"ttl_s": 9}),
        "renew-empty": request("POST", f"/v1/leases/{lease}:renew"),
        "release": request("DELETE", f"/v1/leases/{lease}"),
        "explain": request("GET", f"/v1/explain?bundle={BUNDLE}&model={MODEL}&target=cpu"),
        "cache": request("GET", "/v1/cache"),
        "verify": request("POST", "/v1/cache:verify", {"keys": [key]}),
        "verify-all": request("POST", "/v1/cache:verify"),
        "prune": request("POST", "/v1/cache:prune", {"max_bytes": 1 << 40}),
        "openapi": request("GET", "/v1/openapi.json"),
        "metrics": request("GET", "/metrics"),
        "nowhere": request("GET", "/"),
        "star": request("OPTIONS", "*"),
        "wrong-method": request("PUT", "/v1/status"),
        "head": request("HEAD", "/v1/status"),
        "expect": request("POST", "/v1/cache:prune", {}, Expect="100-continue"),
        "expect-other": request("GET", "/v1/health", Expect="the unexpected"),
        "two-at-once": request("GET", "/v1/health") + request("GET", "/v1/status", X_Request_Id="second"),
        "id-for-a-log": request("GET", "/v1/health", X_Request_Id="a\x1b[31m"),
        "upgrade": request("GET", "/v1/status", Connection="Upgrade", Upgrade="websocket"),
        "escapes": request("GET", "/v1/explain?bundle=%2f%00%ff&model=%2e%2e"),
        "query-twice": request("GET", f"/v1/explain?bundle={BUNDLE}&bundle=/"),
        "http-1.0": b"GET /v1/health HTTP/1.0\r\n\r\n",
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "http-0.9": b"GET /v1/health\r\n",
        "tls": bytes.fromhex("16030100a5010000a10303") + bytes(40),
        "chunked": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "chunk-lies": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
        "two-lengths": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{}",
        "negative-length": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "huge-length": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        "body-missing": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{}",
        "no-json": request("POST", "/v1/cache:prune", "text"),
        "deep-json": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"[" * 2000,
        "gzip": b"POST /v1/cache:prune HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        "long-header": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n",
        "many-headers": b"GET /v1/health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"A%d: b\r\n" % i for i in range(200)) + b"\r\n",
        "folded": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        "nothing": b"",
        "line-ends": b"\r\n\r\n\r\n",
        "half": b"GET /v1/hea",
    }  # fmt: skip


def answers() -> Mapping[str, bytes]:
    """Good answers to an engine and to other calls, problems, streams, and HTTP that is not quite it."""
    engine = {
        "path": "/c/engine.plan", "key": "0" * 64, "runtime": "tensorrt", "runtime_version": "10.16.1.11", "target": "cuda:0",
        "hit": True, "explanation": {"engine": "a.plan", "tier": "this-gpu", "chosen": "c", "attempts": [], "refusals": [{"number": 1}]},
        "lease": {"id": "l", "ttl_s": 60.0, "expires": 1.0}, "profile": None,
    }  # fmt: skip
    step = {"event": "progress", "phase": "refit", "text": "t", "fraction": 0.5, "done": 1, "total": 2, "eta_s": 1.5}
    problem = {"type": "about:blank", "title": "t", "status": 422, "detail": "d", "code": "unknown-model", "hint": "h", "facts": {"bundle": "b", "model": "m", "known": "k"}, "request_id": "r"}  # fmt: skip
    lease = {"id": "l", "ttl_s": 60.0}
    status = {"version": "1", "protocol": 1, "pid": 2, "jobs": [{"key": "k"}], "errors": [{"code": "c"}]}
    stream = "application/x-ndjson"
    # What is asked: an odd number for an engine; the others by eights, as the harness counts them.
    return {
        "engine": _answer(1, engine),
        "engine-in-pieces": _answer(9, engine),
        "stream": _answer(9, step, step, {"event": "result", **engine}, kind=stream),
        "stream-failed": _answer(1, step, {"event": "error", **problem}, kind=stream),
        "stream-unfinished": _answer(1, step, kind=stream),
        "stream-goes-on": _answer(1, {"event": "result", **engine}, step, kind=stream),
        "chunked": b"\x09" + _HEAD + b"Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunks(step, {"event": "result", **engine}),
        "problem": _answer(1, problem, status=422),
        "problem-unknown": _answer(0, {**problem, "code": "from-the-future"}, status=503),
        "problem-facts": _answer(0, {**problem, "facts": {"hint": [1], "self": {}, "detail": None}}, status=400),
        "problem-empty": _answer(0, {}, status=500),
        "lease": _answer(0, lease),
        "no-content": b"\x02" + _HEAD.replace(b"200", b"204") + b"\r\n",
        "status": _answer(4, status),
        "bundles": _answer(6, {"bundles": [{"id": "i", "path": "/p"}]}),
        "gpus": _answer(10, {"machine": {"os": "linux", "arch": "x86_64", "gpus": [], "driver": "", "runtimes": []}}),
        "page": _answer(12, {"url": "http://127.0.0.1:1/", "ttl_s": 60}),
        "cache": _answer(14, {"entries": []}),
        "other-protocol": b"\x00" + _HEAD.replace(b"Protocol: 1", b"Protocol: 2") + b"Content-Length: 2\r\n\r\n{}",
        "too-long": _answer(0, lease) + b"x",
        "no-length": b"\x00" + _HEAD + b"\r\n{}",
        "two-lengths": b"\x00" + _HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "not-http": b"\x00SSH-2.0-x\r\n",
        "continue": b"\x00HTTP/1.1 100 Continue\r\n\r\n",
    }  # fmt: skip


_HEAD = b"HTTP/1.1 200 OK\r\nRefit-Agent-Protocol: 1\r\n"


def _answer(how: int, *documents: object, status: int = 200, kind: str = "application/json") -> bytes:
    body = "\n".join(json.dumps(document) for document in documents).encode()
    if kind != "application/json":
        body += b"\n"
    head = (
        _HEAD.replace(b"200", b"%d" % status) + f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    return bytes([how]) + head + body


def _chunks(*documents: object) -> bytes:
    lines = [json.dumps(document).encode() + b"\n" for document in documents]
    return b"".join(b"%x\r\n%s\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"
