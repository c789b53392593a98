"""Ctrl+C and SIGTERM: a command in the middle of something is stopped where nothing is left half-done.

Python's own KeyboardInterrupt strikes between any two instructions, between the making of a temporary
folder and the `try` that removes it too. Within `patiently` a first signal is therefore only noted, and
the work asks for it (`requested`, `check`) where it can stop.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
#: Further signals within this time are the same impatient finger: they must not strike into the clean-up.
_DEAF_S = 3.0


class Stopped(BaseException):
    """The user or the system asked for an end; ``signum`` says how."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _State:
    signum = 0
    heard = 0.0
    patient = False


_state = _State()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Turn the signals that end a program into `Stopped` for as long as the block runs.

    A signal that the parent told us to ignore (nohup, a shell's background job) stays ignored. After one
    was heard the program is about to end, and the next ones are ignored for good.
    """
    _state.signum, _state.heard, _state.patient = 0, 0.0, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in (getattr(signal, name, None) for name in _NAMES):
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, _on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            # Another one while the interpreter shuts down would change the exit code.
            signal.signal(number, signal.SIG_IGN if _state.signum else handler)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    del frame
    now = time.monotonic()
    first = not _state.signum
    if not first and now - _state.heard < _DEAF_S:
        return
    _state.heard = now
    _state.signum = _state.signum or signum
    if not (first and _state.patient):
        raise Stopped(_state.signum)


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """Within the block a first signal is noted, not raised; leaving the block does not raise it either."""
    _state.patient = True
    try:
        yield
    finally:
        _state.patient = False


def requested() -> bool:
    """Whether a signal was noted."""
    return _state.signum != 0


def check() -> None:
    """Raise Stopped if a signal was noted."""
    if _state.signum:
        raise Stopped(_state.signum)
