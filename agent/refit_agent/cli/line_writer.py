"""Lines on standard output for a program that reads them while the work goes on, and nothing else there.

A thread of its own writes, so that a reader who does not read holds up no work, that there is a sign of life while
the work is silent, and that no signal strikes into the middle of a line.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable

from refit_agent.cli.output import OutputFailed

#: News that may be left out is looked for this often, and without any there is a sign of life after so long.
_LOOK_S, _BEAT_S = 0.1, 1.0
#: Once the work is over, so long is the reader waited for.
LAST_WORDS_S = 10.0


class LineWriter:
    """Takes standard output for itself, for the rest of the process: what anything else prints there from now on
    goes to standard error.

    ``compose`` gives the line that says how it all stands; it is called in the writing thread. Use `put` and
    `close` from one other thread.
    """

    def __init__(self, compose: Callable[[], bytes]) -> None:
        self._compose = compose
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._fault: Exception | None = None
        self._news = False
        sys.stdout.flush()
        self._fd = os.dup(sys.stdout.fileno())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self._thread = threading.Thread(target=self._run, name="progress-lines", daemon=True)
        self._beats = False
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have this line written, after those before it. Does not wait."""
        self._queue.put(line)

    def begin_beats(self) -> None:
        """Let there be a line at least every second from now on."""
        self._beats = True

    def news(self) -> None:
        """Something has changed: what ``compose`` gives is written soon, once for however many changes."""
        self._news = True

    def failed(self) -> bool:
        """Whether nobody reads any more, or the lines cannot be written."""
        return self._fault is not None

    def check(self) -> None:
        """Raise what kept the last line from being written.

        Raises:
            BrokenPipeError: nobody reads it any more.
            OutputFailed: any other fault.
        """
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Wait until all is written, but not for ever: a reader may have stopped reading. Raises as `check`."""
        self._beats = self._news = False
        self._queue.put(None)
        self._thread.join(LAST_WORDS_S)
        self.check()

    def _run(self) -> None:
        try:
            written = time.monotonic()
            while True:
                line = self._next()
                if line is None:
                    return
                if not line:
                    if not (self._news or (self._beats and time.monotonic() - written >= _BEAT_S)):
                        continue
                    self._news = False
                    line = self._compose()
                self._write(line)
                written = time.monotonic()
        except BrokenPipeError as error:
            self._fault = error
        except OSError as error:
            self._fault = OutputFailed(error.strerror or str(error))

    def _next(self) -> bytes | None:
        try:
            return self._queue.get(timeout=_LOOK_S)
        except queue.Empty:
            return b""

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._fd, line) :]
