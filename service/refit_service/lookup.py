"""The half of `ensure_engine` that makes nothing: is the engine there, and if not, what would be made?

Runs in the event loop, since a hit takes a tenth of a millisecond.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import NamedTuple

import msgspec

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.entry import Entry
from refit_agent.cache.store import Lease, Store
from refit_agent.engine import Attempt, Engine
from refit_agent.errors import RefitAgentError
from refit_agent.failures import Failures
from refit_agent.gpu.detect import detect
from refit_agent.gpu.fingerprint import fingerprint
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.machine import Machine
from refit_agent.manifest import Manifest
from refit_agent.provision import ensure_engine, foreign_code
from refit_agent.selection import Candidate, Selection, select
from refit_service.protocol import EngineResult, LeaseRecord, Refused, Why

_RECENT_S = 10.0


class Wish(NamedTuple):
    """What `ensure_engine` is to be asked for; ``bundle`` and ``weights`` are absolute paths."""

    bundle: str
    model: str
    profile: str | None = None
    target: str | None = None
    weights: str | None = None
    deadline_s: float = 900.0
    retry_failed: bool = False
    background: bool = False
    public_keys: tuple[str, ...] | None = None


class Choice(NamedTuple):
    """What was chosen for one wish, and why."""

    candidate: Candidate
    selection: Selection
    attempts: tuple[Attempt, ...]

    def result(self, path: str, made: Entry | Engine, lease: LeaseRecord, *, hit: bool) -> EngineResult:
        """What the client gets; ``made`` is what the candidate became."""
        candidate = self.candidate
        return EngineResult(
            path=path,
            key=made.key,
            runtime=made.runtime,
            runtime_version=made.runtime_version,
            target=candidate.target,
            profile=self.selection.profile,
            hit=hit,
            explanation=Why(
                engine=candidate.engine.path,
                tier=candidate.tier,
                chosen=candidate.reason,
                attempts=self.attempts,
                refusals=msgspec.convert(self.selection.refusals, tuple[Refused, ...], from_attributes=True),
            ),
            lease=lease,
        )


class Hit(NamedTuple):
    """A ready engine with the cache's lease on it."""

    entry: Entry
    folder: str
    lease: Lease
    choice: Choice

    def result(self, lease: LeaseRecord) -> EngineResult:
        """What the client gets."""
        return self.choice.result(f"{self.folder}/{self.entry.plan}", self.entry, lease, hit=True)


class Missing(NamedTuple):
    """An engine to make: the one called ``key``, if its first candidate can be made. Wishes with the same
    ``flight`` want the same one. ``manifest`` is the bundle's at that moment. ``damage`` says what is wrong with
    the engine that is in the cache, "" where there is none."""

    flight: str
    key: str
    engine: str
    target: str
    manifest: Manifest
    choice: Choice | None = None
    damage: str = ""

    def result(self, engine: Engine, lease: LeaseRecord) -> EngineResult:
        """What the client gets once there is ``engine``, which another wish than this one's may have had made."""
        if self.choice is not None and engine.key == self.key:
            return self.choice.result(os.fspath(engine), engine, lease, hit=engine.hit)
        return _made_result(engine, lease)


def look_up(wish: Wish) -> Hit | Missing:
    """The engine if it is in the cache, else what would be made first.

    Raises:
        RefitAgentError: as `ensure_engine` does without making anything; also what all candidates failed with before.
    """
    opened = Bundle.open(wish.bundle, wish.public_keys)
    wanted = opened.model(wish.model)
    home = paths.home()
    machine = machine_now(home)
    selection = select(opened.manifest, wanted, wish.profile, machine, wish.target)
    if not selection.candidates:
        return _refused(wish, opened.manifest)
    if wish.weights is not None:
        # Their content decides on the key, and reading them takes too long for the event loop.
        first = selection.candidates[0]
        return Missing(_weights_flight(wish), "", first.engine.path, first.target, opened.manifest)
    store, failures = Store(home.cache), Failures(home.state)
    attempts: list[Attempt] = []
    worst: RefitAgentError | None = None
    for candidate in selection.candidates:
        key = engine_key(engine_facts(candidate, wanted, selection.profile, machine))
        failed: RefitAgentError | None = foreign_code(candidate, opened)
        found = store.lookup(key) if failed is None else None
        choice = Choice(candidate, selection, tuple(attempts))
        if isinstance(found, tuple):
            return Hit(*found, choice)
        if failed is None and not wish.retry_failed:
            failed = failures.recall(key, attempt_context(candidate, wanted, selection.profile), wish.deadline_s)
        if failed is None:
            return Missing(key, key, candidate.engine.path, candidate.target, opened.manifest, choice, found or "")
        engine = candidate.engine.path
        attempts.append(Attempt(engine=engine, target=candidate.target, code=failed.code, message=str(failed)))
        worst = worst or failed
    assert worst is not None
    raise worst


_recent: tuple[str, float, Machine] | None = None


def machine_now(home: paths.Home) -> Machine:
    """This machine; asked anew when driver, runtimes or environment changed.

    Some answers are not remembered by `detect`, since they may be others in a minute. Here they are for a
    few seconds: the event loop cannot wait for the driver at every request.
    """
    global _recent
    state, now = fingerprint(), time.monotonic()
    if _recent is not None and _recent[0] == state and now - _recent[1] < _RECENT_S:
        return _recent[2]
    machine = detect(home=home)
    _recent = state, now, machine
    return machine


def _made_result(engine: Engine, lease: LeaseRecord) -> EngineResult:
    return EngineResult(
        path=os.fspath(engine),
        key=engine.key,
        runtime=engine.runtime,
        runtime_version=engine.runtime_version,
        target=engine.target,
        profile=engine.profile,
        hit=engine.hit,
        explanation=msgspec.convert(engine.explanation, Why, from_attributes=True),
        lease=lease,
    )


def _refused(wish: Wish, manifest: Manifest) -> Missing:
    """Let the library say why nothing fits; it makes nothing then."""
    ensure_engine(
        wish.bundle,
        wish.model,
        wish.profile,
        wish.target,
        cancelled=lambda: True,
        service=False,
        public_keys=wish.public_keys,
    ).close()
    # Only if a runtime was installed this very moment.
    return Missing(_weights_flight(wish), "", "", "", manifest)


def _weights_flight(wish: Wish) -> str:
    stamp = ""
    if wish.weights is not None:
        try:
            status = os.stat(wish.weights)
            stamp = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        except OSError:
            stamp = "missing"  # the job says so
    text = "\0".join([wish.bundle, wish.model, wish.profile or "", wish.target or "", wish.weights or "", stamp])
    return "weights " + hashlib.sha256(os.fsencode(text)).hexdigest()
