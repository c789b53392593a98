"""What parent and worker say to each other: one JSON document a line, the job first, then events.

    parent ── Job ──────────────────────────► worker (standard input; its end means: stop)
    parent ◄── Phase | Done | Failed ──────── worker (standard output)

Both sides are the same version of the same package, so there is no version number in it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from refit_agent.manifest import Engine, FileRef

_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's file: where it is, and what it must be."""

    path: str
    ref: FileRef


class GoldenJob(msgspec.Struct, frozen=True, kw_only=True):
    """Golden inputs and outputs by tensor name, and the relative L2 error allowed."""

    inputs: dict[str, Located]
    outputs: dict[str, Located]
    tolerance: float


class Job(msgspec.Struct, frozen=True, kw_only=True, tag="refit"):
    """One refit, complete: the worker asks nobody anything. All paths are absolute.

    ``module``, ``module_folder`` and ``module_version`` say which runtime to import from where, and what it
    must turn out to be; ``gpu`` is the GPU's UUID, "" on the CPU, as is its ``compute_capability``. ``weights`` is
    the ONNX file in use; without one it is None, and the weights are in ``safetensors``. ``ranks`` are the paths of
    ``engine.ranks``, and ``config`` the file of ``engine.config``. ``load`` asks that the finished
    engine be loaded as a host app does, beside every other check; ``smoke_run`` for a run even without golden data,
    with ``smoke_inputs`` if there are any. ``base`` is the bundle's own model with its external files, where ``weights`` is the caller's: the two must be one graph. ``host_code_allowed`` lets the
    bundle bring code of its own (a lean runtime, a plan with host code).
    """

    staging: str
    plan: str
    engine: Engine
    weights: Located | None
    external: tuple[Located, ...]
    runtime: str
    module: str
    module_folder: str
    module_version: str
    gpu: str
    compute_capability: str = ""
    golden: tuple[GoldenJob, ...] = ()
    load: bool = False
    smoke_run: bool = False
    smoke_inputs: tuple[dict[str, Located], ...] = ()
    base: tuple[Located, ...] = ()
    safetensors: tuple[Located, ...] = ()
    ranks: tuple[str, ...] = ()
    config: Located | None = None
    lean_runtime: str = ""
    host_code_allowed: bool = False
    background: bool = False


class FetchJob(msgspec.Struct, frozen=True, kw_only=True, tag="fetch"):
    """One file to fetch: from ``url`` into ``target``, which may hold the beginning of it already.

    ``staging`` is the folder that is written to.
    """

    staging: str
    target: str
    url: str
    size: int
    sha256: str
    background: bool = False
    gpu: str = ""


class Phase(msgspec.Struct, frozen=True, kw_only=True, tag="phase"):
    """The worker is in ``phase`` and has done ``done`` of ``total`` bytes (or weights); 0 if unknown.

    Of an engine of ``parts`` plans it is at number ``part``, from 0 on.
    """

    phase: str
    done: _Count = 0
    total: _Count = 0
    part: _Count = 0
    parts: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 1

    def __post_init__(self) -> None:
        # The progress of the whole, which never goes back, is reckoned from it.
        if self.part >= self.parts:
            raise ValueError(f"part {self.part} of {self.parts}")


class FileResult(msgspec.Struct, frozen=True, kw_only=True):
    """One written file."""

    name: str
    size: int
    sha256: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The engine lies in the staging folder, checked and on the disk. ``seconds`` by phase."""

    files: tuple[FileResult, ...]
    runtime_version: str
    check: str
    golden_error: float | None
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """An error of ours, by code and facts."""

    code: str
    facts: dict[str, Any]


Event = Phase | Done | Failed

job_decoder: msgspec.json.Decoder[Job | FetchJob] = msgspec.json.Decoder(Job | FetchJob)
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
encoder = msgspec.json.Encoder()
