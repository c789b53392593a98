"""Plans in the form in which they are shipped, proved by unpacking them as a user's machine will.

zstd's level 19 with its window of 8 MB. A higher level or a larger window gains less than 1 % on the sample plans,
and a window that no longer fits the processor's cache makes unpacking several times slower
(`tests/bench/bench_bundle.py --settings` measures both).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Literal, NamedTuple

import zstandard

from refit_agent.authoring.errors import EngineRefused
from refit_agent.authoring.sources import OnBytes, copy_hashed, read_chunks, source_size
from refit_agent.digest import hash_file
from refit_agent.errors import PlanInvalid, RefitError
from refit_agent.manifest import Engine
from refit_agent.refit.unpack import unpack

#: What a new file can be; the manifest also knows "xz", which unpacks more slowly.
ShippedAs = Literal["zstd", "none"]
ENDINGS: dict[ShippedAs, str] = {"zstd": ".zst", "none": ""}
_LEVEL, _WINDOW_LOG = 19, 23
_QUICK_LEVEL = 3
_SHARE_OF_WEIGHTS = 0.5


class Shipped(NamedTuple):
    """A shipped file, size and SHA-256 (hex), and the same of the plan in it."""

    size: int
    sha256: str
    plan_size: int
    plan_sha256: str


def compress_plan(plan: str, target: str, how: ShippedAs, on_bytes: OnBytes | None = None) -> Shipped:
    """Write the plan at ``plan`` to the new file ``target`` as it is to be shipped, and prove it by unpacking.

    ``on_bytes`` counts bytes of the plan, first of reading it and then of hashing what came out again.

    Raises:
        SourceUnreadable, EngineRefused: the plan cannot be read, or changes meanwhile.
        OSError: ``target`` cannot be written.
    """
    if how == "none":
        digest, size = copy_hashed(plan, target, on_bytes)
        return Shipped(size, digest, size, digest)
    plan_sha256, plan_size = _compress(plan, target, on_bytes)
    digest, size = hash_file(target)
    shipped = Shipped(size, digest, plan_size, plan_sha256)
    _prove(target, shipped, how, on_bytes)
    return shipped


def _compress(plan: str, target: str, on_bytes: OnBytes | None) -> tuple[str, int]:
    expected = source_size(plan)
    # With the size in its head a frame tells how much memory it needs, and that it is whole.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=_WINDOW_LOG, source_size=expected, write_content_size=True
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=expected)
    digest, size = hashlib.sha256(), 0
    with open(target, "xb") as out:
        for chunk in read_chunks(plan, on_bytes):
            digest.update(chunk)
            size += len(chunk)
            if size > expected:
                break
            out.write(packer.compress(chunk))
        if size != expected:
            raise EngineRefused(plan=plan, detail="it changed while it was read")
        out.write(packer.flush())
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest(), size


def _prove(target: str, shipped: Shipped, how: ShippedAs, on_bytes: OnBytes | None) -> None:
    engine = Engine(
        path="plan",
        size=shipped.size,
        sha256=shipped.sha256,
        runtime="tensorrt",
        built_with="0.0",
        plan_size=shipped.plan_size,
        compression=how,
    )
    try:
        with contextlib.closing(unpack(target, engine)) as image:
            digest = hashlib.sha256()
            with image.view as view:
                for start in range(0, len(view), 1 << 20):
                    digest.update(view[start : start + (1 << 20)])
                    if on_bytes is not None:
                        on_bytes(min(1 << 20, len(view) - start))
    except (PlanInvalid, RefitError) as error:
        raise EngineRefused(plan=target, detail=f"what was compressed cannot be unpacked: {error}") from error
    if digest.hexdigest() != shipped.plan_sha256:
        raise EngineRefused(plan=target, detail="what was compressed unpacks to something else")


def share_kept(plan: str, on_bytes: OnBytes | None = None) -> float:
    """How much of a plan a quick compression leaves, 0 to 1: weights hardly shrink, code and zeros do.

    Measured: weights 0.92, the sample plans without weights 0.002 to 0.38. Raises SourceUnreadable.
    """
    packer = zstandard.ZstdCompressor(level=_QUICK_LEVEL).compressobj()
    size = kept = 0
    for chunk in read_chunks(plan, on_bytes):
        size += len(chunk)
        kept += len(packer.compress(chunk))
    return (kept + len(packer.flush())) / size if size else 0.0


def seems_to_hold_weights(share: float) -> bool:
    """Whether a plan of which `share_kept` leaves so much was probably never stripped."""
    return share > _SHARE_OF_WEIGHTS
