"""What a caller of `ensure_engine` gets: a ready engine, and the reasons."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from refit_agent.cache.store import Lease
    from refit_agent.selection import Refusal


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that ranked higher and could not be used: which, and the error's code and words."""

    engine: str
    target: str
    code: str
    message: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why this engine: ``chosen`` for it, ``attempts`` that failed before, ``refusals`` of all others."""

    engine: str
    tier: str
    chosen: str
    attempts: tuple[Attempt, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.engine}: {self.chosen}"]
        lines += [f"{a.engine} on {a.target} failed: {a.message}" for a in self.attempts]
        lines += [f"{r.engine_path} not on {r.target or 'this machine'}: {r.reason}" for r in self.refusals]
        return "\n".join(lines)


class Engine:
    """A ready engine and a lease on it: it cannot be evicted until `close`, until nothing refers to this
    object any more, or until the process ends. So keep it, not only its path.

    Use it as a context manager. Leaving the block ends the lease and nothing else: an engine that is
    loaded already goes on working. Safe to close from any thread.

    Attributes:
        path: the file to load, absolute. Of an engine of TensorRT-LLM it is ``rank0.engine``, and its folder,
            with ``config.json`` and every other rank's plan, is what TensorRT-LLM calls the engine directory.
        key: the engine's name in the cache.
        runtime: what loads it: "tensorrt", "tensorrt-rtx" or "onnxruntime".
        runtime_version: version of the runtime that made it, and that must load it.
        target: "cpu" or "cuda:N".
        profile: the profile that was chosen, or None.
        hit: whether it was in the cache already.
        check: how it was checked before it was published: "golden" (the bundle's golden data), "smoke" (it
            ran, and gave finite numbers), "loaded" (TensorRT-LLM, whose plans cannot be run by themselves, and a CPU
            engine from a newer ONNX Runtime than is here) or "none" (the bundle has no golden data for it).
        explanation: why this engine and none of the others.
    """

    __slots__ = (
        "_folder",
        "_lease",
        "_name",
        "check",
        "explanation",
        "hit",
        "key",
        "profile",
        "runtime",
        "runtime_version",
        "target",
    )

    def __init__(
        self,
        *,
        folder: str,
        name: str,
        key: str,
        runtime: str,
        runtime_version: str,
        target: str,
        profile: str | None,
        hit: bool,
        check: str,
        explanation: Explanation,
        lease: Lease,
    ) -> None:
        self._folder = folder
        self._name = name
        self._lease = lease
        self.key = key
        self.runtime = runtime
        self.runtime_version = runtime_version
        self.target = target
        self.profile = profile
        self.hit = hit
        self.check = check
        self.explanation = explanation

    @property
    def path(self) -> Path:
        """The file to load, absolute."""
        from pathlib import Path

        return Path(self._folder, self._name)

    def close(self) -> None:
        """End the lease; more than once does no harm."""
        self._lease.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __fspath__(self) -> str:
        return f"{self._folder}/{self._name}"

    def __repr__(self) -> str:
        return f"<Engine {self.__fspath__()!r} {self.runtime} on {self.target}, {'hit' if self.hit else 'made'}>"
