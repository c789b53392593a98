"""The inputs in the repository: one folder for each harness, with a file for each input.

``seed-*`` are made by `seeds`, ``grown-*`` reached something that those did not, ``found-*`` once broke something.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent / "corpus"
#: What the repository takes, of one file and of all.
MOST_FILE_BYTES, MOST_BYTES = 50_000, 400_000
#: No input takes a hundredth of it; one that takes all of it is a way to stop whoever reads such a file.
LONGEST_S = 20


class Outcome(NamedTuple):
    """What became of one harness's corpus: how many were taken for sound, and which of them broke something."""

    inputs: int
    sound: int
    seconds: float
    broken: dict[str, BaseException]


def inputs(name: str) -> list[Path]:
    """The files of one harness, in a fixed order."""
    return sorted(path for path in (ROOT / name).iterdir() if path.is_file())


def replay(check: Callable[[bytes], bool], paths: list[Path]) -> Outcome:
    """Give each of them to ``check``."""
    sound, broken, started = 0, {}, time.monotonic()
    for path in paths:
        try:
            with _limited():
                sound += check(path.read_bytes())
        except Exception as error:  # noqa: BLE001 - every defect is told, not only the first
            broken[path.name] = error
    return Outcome(len(paths), sound, time.monotonic() - started, broken)


def save(name: str, kind: str, data: bytes) -> Path:
    """Put an input into the corpus under a name that its content decides."""
    path = ROOT / name / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


class _limited:  # noqa: N801 - read as a word in a with statement
    """Ends what hangs, where the system can."""

    def __enter__(self) -> None:
        if sys.platform != "win32":
            self._before = signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(LONGEST_S)

    def __exit__(self, *_: object) -> None:
        if sys.platform != "win32":
            signal.alarm(0)
            signal.signal(signal.SIGALRM, self._before)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"it is not done after {LONGEST_S} seconds")


def names() -> Iterator[str]:
    """The harnesses that have a corpus."""
    yield from sorted(path.name for path in ROOT.iterdir() if path.is_dir())
