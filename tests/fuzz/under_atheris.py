"""One harness under atheris, in a process of its own: ``python -m tests.fuzz.under_atheris NAME libFuzzer-options…``"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import atheris

from . import harness, limits

#: Half of the tries keep the structure, the others are libFuzzer's own.
_STRUCTURED = 0.5


def main(name: str, options: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    # Ours alone: what others wrote is measured by what ours does with it.
    with atheris.instrument_imports(include=["refit_agent", "refit_service"], enable_loader_override=False):
        target = harness.load(name)
    mutate = getattr(target, "mutate", None)
    limits.limit_memory()
    atheris.Setup(
        [sys.argv[0], *options],
        lambda data: target.check(data) and None,
        custom_mutator=None if mutate is None else _mutator(mutate),
    )
    atheris.Fuzz()


def _mutator(mutate: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, int, int], bytes]:
    def either(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < _STRUCTURED:
            changed = mutate(data, rng)
            if changed != data and len(changed) <= most:
                return changed
        return bytes(atheris.Mutate(data, most))

    return either


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
