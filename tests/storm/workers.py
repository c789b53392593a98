"""What the workers of a storm say of themselves: one line each when it begins to make an engine."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import NamedTuple

from bundles import REAL, shim

#: Runs when a worker imports its runtime, which each does once, under the lock of its key. The lock taken here is
#: another one: it shows whether two workers are ever at the same engine, whatever the product believes.
_NOTE = """
import fcntl
_frame = sys._getframe()
while _frame is not None and _frame.f_code.co_name != "_perform":
    _frame = _frame.f_back
if _frame is not None:
    _cache, _name = os.path.split(_frame.f_locals["job"].staging)
    _key, _maker = _name.split("-")[0].split(".")
    _mine = os.open(os.path.join(HERE, _key), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(_mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _other = 0
        os.pwrite(_mine, b"%20d" % os.getpid(), 0)
    except BlockingIOError:
        _other = int(os.pread(_mine, 20, 0) or 0) or -1
    _there = os.path.lexists(os.path.join(os.path.dirname(_cache), "engines", _key))
    with open(os.path.join(HERE, "starts"), "ab", buffering=0) as _file:
        _file.write(b"%s %d %s %d %d\\n" % (_key.encode(), os.getpid(), _maker.encode(), _other, _there))
"""


class Start(NamedTuple):
    """A worker has begun: on which key, in which process, for which caller. ``other`` is the process that is at the
    same key already, 0 for none; ``published`` whether the engine is there already."""

    key: str
    worker: int
    maker: int
    other: int
    published: bool


def install(notes: Path) -> Path:
    """A folder for the module search path in which the runtime writes the line, and then does its work."""
    return shim(notes / "runtime", textwrap.dedent(_NOTE) + REAL)


def forget(notes: Path) -> None:
    """Begin anew."""
    (notes / "runtime" / "starts").unlink(missing_ok=True)


def read_starts(notes: Path) -> list[Start]:
    """All lines, in the order in which they were written."""
    path = notes / "runtime" / "starts"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [Start(key, int(w), int(m), int(o), there == "1") for key, w, m, o, there in rows]
