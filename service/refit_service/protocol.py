"""What goes over the wire, version 1: one record for each body, shared by the server and whoever speaks to it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import msgspec

from refit_agent.engine import Attempt
from refit_agent.errors import RefitAgentError

PROTOCOL = 1
PROBLEM_TYPE = "application/problem+json"
STREAM_TYPE = "application/x-ndjson"

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
ProcessId = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
#: A drive's root or two of either slash, on Windows.
_ROOT = r"([A-Za-z]:[\\/]|[\\/]{2})" if sys.platform == "win32" else "/"
AbsolutePath = Annotated[str, msgspec.Meta(pattern=rf"^{_ROOT}[^\x00]*$", max_length=4096)]
PathOrId = Annotated[str, msgspec.Meta(pattern=rf"^({_ROOT}[^\x00]*|[0-9a-f]{{16}})$", max_length=4096)]


PublicKeys = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=200)], ...], msgspec.Meta(max_length=32)]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457, with our stable ``code``, what to do (``hint``), and the facts of the sentence."""

    title: str
    status: int
    detail: str
    code: str
    request_id: str
    type: str = "about:blank"
    hint: str = ""
    facts: dict[str, Any] = {}


def problem(error: RefitAgentError, status: int, request_id: str) -> Problem:
    """The document that describes ``error``."""
    return Problem(
        title=error.code.replace("-", " "),
        status=status,
        detail=str(error),
        code=error.code,
        hint=error.hint,
        facts=plain(error.facts),
        request_id=request_id,
    )


def plain(facts: dict[str, object]) -> dict[str, object]:
    """The facts as JSON can hold them."""
    return {k: v if isinstance(v, (str, int, float, bool, type(None))) else str(v) for k, v in facts.items()}


# ---------------------------------------------------------------- engines


class EnsureRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine is wanted. ``bundle`` is an absolute path or a registered id; with ``pid`` the lease ends
    with that process, and after ``ttl_s`` seconds unless it is renewed in any case. One of the ``public_keys``
    must have signed the bundle; without any, those count that it was registered with."""

    bundle: PathOrId
    model: Text
    profile: str | None = None
    target: str | None = None
    weights: AbsolutePath | None = None
    deadline_s: Seconds = 900.0
    retry_failed: bool = False
    background: bool = False
    ttl_s: Seconds = 60.0
    pid: ProcessId | None = None
    public_keys: PublicKeys | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why one engine of the bundle was not taken."""

    number: int
    engine_path: str
    target: str
    code: str
    reason: str
    need: str


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why this engine: see `refit_agent.Explanation`."""

    engine: str
    tier: str
    chosen: str
    attempts: tuple[Attempt, ...] = ()
    refusals: tuple[Refused, ...] = ()


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A lease; ``expires`` in Unix time."""

    id: str
    ttl_s: float
    expires: float


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """A ready engine and the lease that keeps it from eviction."""

    path: str
    key: str
    runtime: str
    runtime_version: str
    target: str
    profile: str | None
    hit: bool
    explanation: Why
    lease: LeaseRecord


class ProgressEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """One step; ``eta_s`` is an estimate of the seconds left, None while there is nothing to estimate from."""

    phase: str
    text: str
    fraction: float
    done: int = 0
    total: int = 0
    eta_s: float | None = None


class ResultEvent(EngineResult, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """The last line of a stream that went well."""


class ErrorEvent(Problem, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """The last line of a stream that did not."""


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """For how many seconds from now the lease is to hold."""

    ttl_s: Seconds = 60.0


# ---------------------------------------------------------------- bundles, cache, state


class RegisterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The absolute path of a bundle's folder, and the keys of which one must have signed it, now and at every
    later use; None where it need not be signed."""

    path: AbsolutePath
    public_keys: PublicKeys | None = None


class BundleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered bundle; ``registered`` in Unix time."""

    id: str
    path: str
    app: str
    name: str
    version: str
    models: tuple[str, ...]
    registered: float
    public_keys: tuple[str, ...] | None = None


class BundleList(msgspec.Struct, frozen=True, kw_only=True):
    """All registered bundles, oldest first."""

    bundles: tuple[BundleRecord, ...]


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The engines to read whole; None for all."""

    keys: tuple[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)], ...] | None = None


class PruneRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that may stay; None for the limit that always holds."""

    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An engine in the making, or waiting for its turn (phase "queue"); ``since`` in Unix time."""

    key: str
    model: str
    engine: str
    target: str
    phase: str
    fraction: float
    done: int
    total: int
    waiters: int
    background: bool
    since: float


class WarmFailure(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that could not be made in the background, and when it is tried again (Unix time)."""

    bundle: str
    model: str
    target: str | None
    code: str
    message: str
    tries: int
    not_before: float


class WarmRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the background work does: "idle", "working", or "paused" for ``reason``."""

    state: str
    reason: str
    failures: tuple[WarmFailure, ...]


class CacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """How full the cache is, in bytes."""

    bytes: int
    entries: int
    quota: int


class SeenError(msgspec.Struct, frozen=True, kw_only=True):
    """An error of late; ``when`` in Unix time."""

    when: float
    code: str
    message: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The service as a whole; ``started`` in Unix time."""

    version: str
    protocol: int
    pid: int
    started: float
    uptime_s: float
    idle: bool
    bundles: int
    jobs: tuple[JobRecord, ...]
    warm: WarmRecord
    cache: CacheUse
    errors: tuple[SeenError, ...]


class PageLink(msgspec.Struct, frozen=True, kw_only=True):
    """An address that opens the status page in a browser of this machine, once and within ``ttl_s`` seconds."""

    url: str
    ttl_s: float


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The service answers."""

    ok: bool = True
