"""The lines of `refit-agent provision --progress=json`: their types, how they are written, and a JSON Schema of them.

`packaging/installer/README.md` says what each field means, and what stays as it is. Nested objects stand last, and
there is no space between the tokens: a shell finds the first `"percent":` with its own means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Union

import msgspec
from msgspec import UNSET, UnsetType

PROTOCOL = 1

Fact = Union[str, int, float, bool, None]  # noqa: UP007 - msgspec needs it at run time, on Python 3.10 too


class ErrorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An error: a stable ``code``, a sentence, what the reader can do, and what the sentence was built from."""

    code: str
    message: str
    hint: str = ""
    facts: dict[str, Fact] = {}


class AttemptFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A better engine that could not be made."""

    engine: str
    target: str
    code: str
    message: str


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as in the document of ``provision --json``: what it is, or the ``error`` that kept it from being."""

    model: str
    profile: str | None
    target: str | None
    hit: bool | UnsetType = UNSET
    check: str | UnsetType = UNSET
    path: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    runtime: str | UnsetType = UNSET
    runtime_version: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET
    tier: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    attempts: list[AttemptFacts] | UnsetType = UNSET
    seconds: float | UnsetType = UNSET
    error: ErrorFacts | UnsetType = UNSET


class Start(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="start"):
    """The first line."""

    protocol: int
    agent: str
    bundle: str | None
    app: str | None = None
    app_version: str | None = None
    engines: int | None = None
    deadline_s: float | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """How far it all is; also a sign of life."""

    percent: float
    eta_s: float | None
    elapsed_s: float
    phase: str
    text: str
    number: int | None = None
    engines: int | None = None
    model: str | None = None
    profile: str | None = None
    target: str | None = None
    done: int = 0
    total: int = 0
    unit: str = "bytes"


class EngineOver(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="engine"):
    """An engine is ready, or has failed."""

    number: int
    engines: int
    percent: float
    elapsed_s: float
    ok: bool
    engine: EngineFacts


class Result(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="result"):
    """The last line."""

    ok: bool
    exit_code: int
    percent: float
    elapsed_s: float
    deadline_passed: bool
    error: ErrorFacts | None
    engines: list[EngineFacts]


Event = Union[Start, Step, EngineOver, Result]  # noqa: UP007 - as above


def line(event: Event) -> bytes:
    """The event as it is written, with its line feed. ASCII: file names that are no text do not stop it."""
    return json.dumps(msgspec.to_builtins(event), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def engine_facts(document: Mapping[str, object]) -> EngineFacts:
    """From one engine of the document of ``--json``."""
    plain = dict(document)
    if "error" in plain:
        plain["error"] = error_facts(plain["error"])
    return msgspec.convert(plain, EngineFacts)


def error_facts(description: Any) -> ErrorFacts:
    """From what `output.describe` gives; numbers that JSON has no form for become text."""
    facts = {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in description["facts"].items()
    }
    return msgspec.convert({**description, "facts": facts}, ErrorFacts)


def schema() -> dict[str, Any]:
    """A JSON Schema of one line."""
    return msgspec.json.schema(Event)


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
