"""The first 28 bytes of a plan: whose it is, what built it, how long it is. Needs no GPU.

    0..3    magic: ``ftrt`` (TensorRT) or ``vtrt`` (TensorRT-RTX)
    16..23  size of the whole plan in bytes, little-endian
    24..27  builder's version, one byte a part: major, minor, patch, build

Observed in plans of TensorRT 8.6.0 and TensorRT-RTX 1.7.1; not documented by NVIDIA. Whether a plan
is version-compatible, stripped or refittable does not show here: the manifest must say it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from refit_agent.errors import PlanInvalid
from refit_agent.machine import version_tuple
from refit_agent.manifest import Engine

HEADER_BYTES = 28
_RUNTIMES = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


class PlanHeader(NamedTuple):
    """``runtime`` is "tensorrt" or "tensorrt-rtx"; ``version`` four numbers; ``size`` bytes of the whole plan."""

    magic: bytes
    runtime: str
    version: tuple[int, int, int, int]
    size: int


def read_plan_header(path: str | os.PathLike[str]) -> PlanHeader:
    """The header of an uncompressed plan file, checked against the file's own size.

    Raises:
        PlanInvalid: not a plan, cut short, or unreadable.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            head = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise PlanInvalid(path=name, detail=f"it cannot be read: {error.strerror}") from error
    return parse_plan_header(head, size, name)


def parse_plan_header(head: bytes | memoryview, size: int, path: str) -> PlanHeader:
    """The header in ``head`` of a plan that has ``size`` bytes in all. Raises PlanInvalid."""
    data = bytes(head[:HEADER_BYTES])
    runtime = _RUNTIMES.get(data[:4])
    if runtime is None:
        raise PlanInvalid(path=path, detail=f"it begins with {data[:4]!r}, and a TensorRT plan with b'ftrt' or b'vtrt'")
    if len(data) < HEADER_BYTES:
        raise PlanInvalid(path=path, detail=f"it is cut short: it has {len(data)} bytes")
    stated = int.from_bytes(data[16:24], "little")
    if stated != size:
        raise PlanInvalid(path=path, detail=f"its header gives {stated} bytes and it has {size}: cut short, or changed")
    major, minor, patch, build = data[24:28]
    return PlanHeader(data[:4], runtime, (major, minor, patch, build), stated)


def check_against_manifest(header: PlanHeader, engine: Engine, path: str) -> None:
    """Raise PlanInvalid unless the manifest describes this plan: same runtime, same builder."""
    if header.runtime != engine.runtime:
        raise PlanInvalid(
            path=path, detail=f"it is a plan for {header.runtime}, and the manifest says {engine.runtime}"
        )
    stated = version_tuple(engine.built_with)
    if header.version[: len(stated)] != stated:
        built = ".".join(map(str, header.version))
        raise PlanInvalid(path=path, detail=f"it was built with {built}, and the manifest says {engine.built_with}")
