"""Which GPUs a CUDA process with this environment may use, and under which ordinals.

Rules of CUDA: CUDA_VISIBLE_DEVICES is a list of ordinals, or of UUIDs, or of beginnings of UUIDs that
fit one device; it ends at the first entry that fits none; an entry given twice hides everything; a
process that is given a MIG slice sees that slice alone. All but the last, and the odd spellings in the
tests, were compared with libcuda of driver 580 on two H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from refit_agent.gpu.nvml import Device
from refit_agent.machine import Gpu


class View(NamedTuple):
    """The GPUs in sight, numbered; ``reason`` is words when there are none."""

    gpus: tuple[Gpu, ...]
    reason: str = ""


def visible(devices: Sequence[Device], listed: str | None, order: str | None) -> View:
    """What of ``devices`` (in PCI order) is in sight; ``listed`` is CUDA_VISIBLE_DEVICES or None, and
    ``order`` CUDA_DEVICE_ORDER.

    ``Gpu.index`` is the place in the list where there is one: CUDA's own numbering. Without a list it
    is the place in PCI order, which CUDA shares if CUDA_DEVICE_ORDER=PCI_BUS_ID or all GPUs are one
    model; in a mixed machine CUDA counts fastest first, so address a GPU there by its UUID, as the
    worker does. For the same reason numbers *in* a list are read, in a mixed machine without
    PCI_BUS_ID, as places in our estimate of that order: cores times clock.

    Without a list every MIG slice is given, though CUDA shows a process only the first: a worker is
    started for one by UUID.
    """
    chosen = list(devices) if listed is None else _listed(devices, listed, order)
    units = [unit for device in chosen for unit in device.units]
    if listed is not None:
        units = [unit for unit in units if unit.mig][:1] or units
    gpus = tuple(msgspec.structs.replace(unit, index=i) for i, unit in enumerate(units))
    if gpus:
        return View(gpus)
    problems = "; ".join(d.problem for d in chosen if d.problem)
    if devices and not problems:
        return View((), f"CUDA_VISIBLE_DEVICES={listed!r} hides every GPU")
    return View((), problems or "the driver lists no GPU")


def _listed(devices: Sequence[Device], listed: str, order: str | None) -> list[Device]:
    """The devices that the list names, in its order; of one whose slice is named, with that slice alone."""
    entries = listed.split(",")
    if entries[0].startswith("GPU-"):
        known = list(devices)
        names = [device.uuid for device in known]
    elif entries[0].startswith("MIG-"):
        known = [d._replace(units=(unit,)) for d in devices for unit in d.units if unit.mig]
        names = [device.units[0].uuid for device in known]
    else:
        known = _cuda_order(devices, order)
        names = []
    kind = entries[0][:4] if names else ""
    places: list[int] = []
    for entry in entries:
        place = _named(entry, kind, names) if kind else _number(entry, len(known))
        if place is None:
            break
        if place in places:
            return []
        places.append(place)
    return [known[place] for place in places]


def _named(entry: str, kind: str, names: Sequence[str]) -> int | None:
    """The place of the one name that begins with the entry; what follows a whole UUID does not count."""
    if not entry.startswith(kind):
        return None
    hits = [i for i, name in enumerate(names) if name.lower().startswith(entry[: len(name)].lower())]
    return hits[0] if len(hits) == 1 else None


def _number(entry: str, count: int) -> int | None:
    """The number at the entry's start, as strtoul reads it into an int; None unless below ``count``."""
    entry = entry.lstrip()
    digits = entry[1:] if entry.startswith("+") else entry
    end = 0
    while end < len(digits) and digits[end] in "0123456789":
        end += 1
    # Twenty digits fill strtoul's range; int() of a hostile million of them would take minutes.
    if not 0 < end <= 20:
        return None
    number = int(digits[:end])
    if number >= 1 << 64:
        return None
    place = number & 0xFFFFFFFF
    return place if place < count else None


def _cuda_order(devices: Sequence[Device], order: str | None) -> list[Device]:
    if order == "PCI_BUS_ID" or len({d.name for d in devices}) <= 1:
        return list(devices)
    return sorted(devices, key=lambda d: -d.speed)
