"""What goes over the wire, as the client sees it. Fields that this version does not know are ignored.

A field that a client does not need has a default, so that a service of the same protocol may leave it out.
"""

from __future__ import annotations

from typing import Any, Union

import msgspec

from refit_agent.engine import Attempt
from refit_agent.errors import RefitAgentError, ServiceRefused, error_classes, from_wire
from refit_agent.progress import Progress

#: The version of the protocol; a service that speaks another one is not asked.
PROTOCOL = 1


class EnsureRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One engine that is wanted. ``bundle`` is a folder or a registered bundle's id; ``pid`` names a process
    with whose end the lease ends too."""

    bundle: str
    model: str
    profile: str | None = None
    target: str | None = None
    weights: str | None = None
    deadline_s: float = 900.0
    retry_failed: bool = False
    background: bool = False
    ttl_s: float = 60.0
    pid: int | None = None
    public_keys: tuple[str, ...] | None = None


class ServiceLease(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that the service holds until ``ttl_s`` seconds after the last renewal. ``expires`` is for people."""

    id: str
    ttl_s: float
    expires: float | str | None = None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """As `refit_agent.Explanation`, with the refusals as plain documents."""

    engine: str
    tier: str
    chosen: str
    attempts: tuple[Attempt, ...] = ()
    refusals: tuple[dict[str, Any], ...] = ()


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """A ready engine, leased by the service until the lease is released or runs out."""

    path: str
    key: str
    runtime: str
    runtime_version: str
    target: str
    hit: bool
    explanation: Why
    lease: ServiceLease
    profile: str | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as RFC 9457 has it, with our code, hint and facts. ``request_id`` finds it in the service's log."""

    code: str = ""
    title: str = ""
    status: int = 0
    detail: str = ""
    hint: str = ""
    facts: dict[str, Any] = {}
    request_id: str = ""

    def error(self) -> RefitAgentError:
        """The library's own error where the code is one of its codes, else `ServiceRefused`."""
        if self.code in error_classes():
            error = from_wire(self.code, self.facts)
            error.hint = self.hint or error.hint
            return error
        return ServiceRefused(
            problem=self.code or str(self.status),
            detail=self.detail or self.title or "it gave no reason",
            request_id=self.request_id,
            hint=self.hint,
        )


class Step(Progress, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """`Progress` as the service tells it; ``eta_s`` is its guess of the seconds left, or None."""

    eta_s: float | None = None


class Finished(EngineResult, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """The last event of a stream that went well."""


class Failed(Problem, frozen=True, kw_only=True, tag_field="event", tag="error"):
    """The last event of a stream that did not."""


Event = Union[Step, Finished, Failed]  # noqa: UP007 - msgspec needs it at run time, on Python 3.10 too
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
result_decoder = msgspec.json.Decoder(EngineResult)


class BundleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered bundle: the service keeps the engines of its models ready."""

    id: str
    path: str
    app: str = ""
    name: str = ""
    version: str = ""
    models: tuple[str, ...] = ()
    registered: float | str | None = None
    public_keys: tuple[str, ...] | None = None


class BundleRecords(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    bundles: tuple[BundleRecord, ...] = ()


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that is being made, or waits for its turn."""

    key: str = ""
    model: str = ""
    engine: str = ""
    target: str = ""
    phase: str = ""
    fraction: float = 0.0
    done: int = 0
    total: int = 0
    waiters: int = 0
    background: bool = False
    since: float | str | None = None


class WarmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the warming of registered bundles is doing: "idle", "working" or "paused", and why."""

    state: str = "idle"
    reason: str = ""
    failures: tuple[Any, ...] = ()


class CacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How full the cache is, in bytes."""

    bytes: int = 0
    entries: int = 0
    quota: int = 0


class ErrorNote(msgspec.Struct, frozen=True, kw_only=True):
    """An error that some caller got."""

    when: float | str | None = None
    code: str = ""
    message: str = ""


class PageLink(msgspec.Struct, frozen=True, kw_only=True):
    """An address that opens the service's status page in a browser, once and within ``ttl_s`` seconds."""

    url: str
    ttl_s: float = 60.0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What the service is and does."""

    version: str
    protocol: int
    pid: int
    started: float | str | None = None
    uptime_s: float = 0.0
    idle: bool = True
    bundles: int = 0
    jobs: tuple[JobStatus, ...] = ()
    warm: WarmStatus = WarmStatus()
    cache: CacheStatus = CacheStatus()
    errors: tuple[ErrorNote, ...] = ()
