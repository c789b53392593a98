"""Which of the inputs that atheris kept are worth a place in the repository: ``python -m tests.fuzz.growth FOLDER``

FOLDER is what ``--keep`` has filled. Taken are the shortest ones that go a way through the code (from one line to
another) that nothing in the corpus goes.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from . import corpus, harness

_MOST_FILES, _LONGEST_BYTES = 40, 2048
_OURS = (f"{os.sep}refit_agent{os.sep}", f"{os.sep}refit_service{os.sep}")
#: File, and the two lines.
_Step = tuple[str, int, int]


def main(folder: Path) -> None:
    """Add to the corpus of each harness."""
    for name in harness.NAMES:
        if not (folder / name).is_dir():
            continue
        check = harness.load(name).check
        known: set[_Step] = set()
        for path in corpus.inputs(name):
            known |= _steps(check, path.read_bytes())
        before, taken = len(known), 0
        for path in sorted((folder / name).iterdir(), key=lambda p: (p.stat().st_size, p.name)):
            data = path.read_bytes()
            if len(data) > _LONGEST_BYTES or taken == _MOST_FILES:
                break
            new = _steps(check, data) - known
            if new:
                corpus.save(name, "grown", data)
                known |= new
                taken += 1
        print(f"{name:20} {taken:3} taken; {before} steps before, {len(known)} now", flush=True)


def _steps(check: Any, data: bytes) -> set[_Step]:
    found: set[_Step] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        if not any(part in file for part in _OURS):
            return None
        last = frame.f_lineno

        def line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                found.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    threading.settrace(trace)
    sys.settrace(trace)
    try:
        check(data)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
