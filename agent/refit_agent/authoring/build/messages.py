"""What a build's parent and its worker say to each other: one JSON document a line, the job first, then events.

    parent --- BuildJob -------------------> worker (standard input; its end means: stop)
    parent <-- Step | Built | Failed ------- worker (standard output)

Both sides are the same version of the same package, so there is no version number in it.
"""

from __future__ import annotations

import msgspec

from refit_agent.authoring.build.options import BuilderKind, BuildOptions
from refit_agent.authoring.build.shapes import Profile
from refit_agent.refit.messages import Failed


class RefittableNames(msgspec.Struct, frozen=True, kw_only=True):
    """One name or pattern of ``--refittable``, and the model's weights that it means."""

    pattern: str
    names: tuple[str, ...]


class BuildJob(msgspec.Struct, frozen=True, kw_only=True):
    """One plan to build, complete: the worker asks nobody anything. All paths are absolute.

    ``module``, ``module_folder`` and ``module_version`` say which TensorRT to import from where, and what it
    must turn out to be; ``gpu`` is the GPU's UUID. ``onnx`` is what the parser reads, ``model`` the file that it
    was made from, for messages, and ``plan`` the new file to write. ``options`` are settled; of their profiles
    only ``profile`` counts.
    """

    kind: BuilderKind
    module: str
    module_folder: str
    module_version: str
    gpu: str
    onnx: str
    model: str
    plan: str
    options: BuildOptions
    profile: Profile
    refittable: tuple[RefittableNames, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """The worker begins with ``phase``: "start", "parse", "build", "write" or "list"."""

    phase: str


class EngineWeight(msgspec.Struct, frozen=True, kw_only=True):
    """A weight that the finished plan asks for; type and count are None before TensorRT 10, which does not tell."""

    name: str
    dtype: str | None
    count: int | None


class Built(msgspec.Struct, frozen=True, kw_only=True, tag="built"):
    """The plan lies where the job wanted it, on the disk for good.

    ``version`` is the builder's, from the plan's header. ``weights`` stand in the order in which the engine
    lists them; None for a plan that cannot be refitted. ``notes`` are TensorRT's warnings, ``seconds`` by phase.
    """

    size: int
    sha256: str
    version: tuple[int, int, int, int]
    weights: tuple[EngineWeight, ...] | None
    notes: tuple[str, ...]
    seconds: dict[str, float]


Event = Step | Built | Failed

job_decoder = msgspec.json.Decoder(BuildJob)
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
encoder = msgspec.json.Encoder()
