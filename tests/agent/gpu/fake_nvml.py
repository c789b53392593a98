"""A stand-in for the module pynvml: the machine that a test describes, with pynvml's real errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pynvml


class Card(NamedTuple):
    """One GPU as the fake driver lists it; ``error`` is what every call about it raises."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    cc: tuple[int, int] = (9, 0)
    pci: str = "00000000:01:00.0"
    memory: int = 80 << 30
    cores: int = 16896
    clock: int = 1980
    mig: bool = False
    slices: tuple[str | None, ...] = ()
    error: int = 0


class Slice(NamedTuple):
    uuid: str
    card: Card


class FakeNvml:
    """What `nvml.ask` uses of pynvml. ``as_bytes`` answers as releases before 11.5 did."""

    NVML_CLOCK_SM = pynvml.NVML_CLOCK_SM
    NVML_ERROR_LIBRARY_NOT_FOUND = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_ERROR_DRIVER_NOT_LOADED = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    NVML_ERROR_NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
    NVMLError = pynvml.NVMLError

    def __init__(self, *cards: Card, init_error: int = 0, count_error: int = 0, as_bytes: bool = False) -> None:
        self.cards = cards
        self.init_error = init_error
        self.count_error = count_error
        self.as_bytes = as_bytes
        self.sessions = 0
        self.asked = 0

    def _text(self, value: str) -> Any:
        return value.encode() if self.as_bytes else value

    def nvmlInit(self) -> None:  # noqa: N802
        self.asked += 1
        if self.init_error:
            raise pynvml.NVMLError(self.init_error)
        self.sessions += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> Any:  # noqa: N802
        return self._text("580.159.04")

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13000

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.count_error:
            raise pynvml.NVMLError(self.count_error)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Card:  # noqa: N802
        card = self.cards[number]
        if card.error:
            raise pynvml.NVMLError(card.error)
        return card

    def nvmlDeviceGetUUID(self, handle: Card | Slice) -> Any:  # noqa: N802
        return self._text(handle.uuid)

    def nvmlDeviceGetName(self, handle: Card | Slice) -> Any:  # noqa: N802
        return self._text(handle.name if isinstance(handle, Card) else handle.card.name + " MIG 1g.10gb")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> tuple[int, int]:  # noqa: N802
        return handle.cc

    def nvmlDeviceGetPciInfo(self, handle: Card) -> Any:  # noqa: N802
        return SimpleNamespace(busId=self._text(handle.pci))

    def nvmlDeviceGetMemoryInfo(self, handle: Card | Slice) -> Any:  # noqa: N802
        total = handle.memory if isinstance(handle, Card) else handle.card.memory // 8
        return SimpleNamespace(total=total, free=total // 2)

    def nvmlDeviceGetNumGpuCores(self, handle: Card) -> int:  # noqa: N802
        return handle.cores

    def nvmlDeviceGetMaxClockInfo(self, handle: Card, kind: int) -> int:  # noqa: N802
        assert kind == pynvml.NVML_CLOCK_SM
        return handle.clock

    def nvmlDeviceGetMigMode(self, handle: Card) -> list[int]:  # noqa: N802
        if handle.cc < (8, 0):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(handle.mig), int(handle.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Card) -> int:  # noqa: N802
        return len(handle.slices)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Card, number: int) -> Slice:  # noqa: N802
        uuid = handle.slices[number]
        if uuid is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return Slice(uuid, handle)
