"""What a machine is, as far as the choice of an engine goes: plain records, no detection."""

from __future__ import annotations

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU or MIG slice as the driver describes it.

    ``index`` is the CUDA ordinal that a process with the same environment sees. Memory in bytes;
    ``memory_free`` is as of the detection and None where the driver does not say.
    """

    index: int
    name: str
    uuid: str
    compute_capability: str
    pci: str = ""
    memory_total: int = 0
    memory_free: int | None = None
    mig: bool = False
    parent_uuid: str = ""


class InstalledRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that a worker could import: the module, its version, and the folder to import it from.

    ``folder`` is "" when the ordinary module search path finds it; ``cuda_major`` is 0 when unknown.
    """

    module: str
    version: str
    cuda_major: int = 0
    folder: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Facts that selection may depend on. ``no_gpu_reason`` is words when ``gpus`` is empty.

    ``os`` is "linux", "windows" or another sys.platform name; ``driver`` and ``cuda`` are the NVIDIA
    driver's version and the newest CUDA version that it supports, "" without a driver. ``warnings``
    are words about GPUs that are there and do not answer.
    """

    os: str
    arch: str
    gpus: tuple[Gpu, ...] = ()
    no_gpu_reason: str = ""
    driver: str = ""
    cuda: str = ""
    runtimes: tuple[InstalledRuntime, ...] = ()
    warnings: tuple[str, ...] = ()

    def installed(self, module: str) -> tuple[InstalledRuntime, ...]:
        """Installed runtimes of that module name, newest first."""
        found = [r for r in self.runtimes if r.module == module]
        return tuple(sorted(found, key=lambda r: version_tuple(r.version), reverse=True))


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numeric parts of a version: "10.16.1.11" -> (10, 16, 1, 11), "8.6.1.post1" -> (8, 6, 1)."""
    parts: list[int] = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)
