"""What the conductor and its callers share: memory that outlives whoever is killed."""

from __future__ import annotations

import mmap
import time

_STOP, _QUOTA, _HEAD = 0, 1, 2
#: Of each slot.
FIELDS = ("alive_ns", "requests", "hits", "made", "crashed", "compared", "loaded", "pruned", "verified")


class Board:
    """Numbers in shared memory: two for all, and for each slot those of FIELDS, written by its caller alone."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._numbers = memoryview(mmap.mmap(-1, 8 * (_HEAD + slots * len(FIELDS)))).cast("q")

    @property
    def stopping(self) -> bool:
        """Whether callers are to end."""
        return bool(self._numbers[_STOP])

    def stop(self) -> None:
        """Have callers end after their present request."""
        self._numbers[_STOP] = 1

    @property
    def quota(self) -> int:
        """Bytes of the cache, as the next request is to be told."""
        return self._numbers[_QUOTA]

    @quota.setter
    def quota(self, value: int) -> None:
        self._numbers[_QUOTA] = value

    def add(self, slot: int, field: str) -> None:
        """One more."""
        self._numbers[self._at(slot, field)] += 1

    def alive(self, slot: int) -> None:
        """Its caller has come to an end of something now."""
        self._numbers[self._at(slot, "alive_ns")] = time.monotonic_ns()

    def silent_s(self, slot: int) -> float:
        """Seconds since it said so."""
        return (time.monotonic_ns() - self._numbers[self._at(slot, "alive_ns")]) / 1e9

    def total(self, field: str) -> int:
        """Of all slots."""
        return sum(self._numbers[self._at(slot, field)] for slot in range(self.slots))

    def _at(self, slot: int, field: str) -> int:
        return _HEAD + slot * len(FIELDS) + FIELDS.index(field)
