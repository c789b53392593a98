"""The service's log: JSON lines in ``<state>/logs/service.log``, which is rotated, and words on a terminal."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys

from refit_agent import logs

_MOST_BYTES = 2 << 20
_KEPT = 3


def set_up(state: str) -> None:
    """Send the lines of this process to the file; a state folder that cannot be written leaves standard error."""
    os.environ.setdefault(logs.LEVEL_VARIABLE, "info")
    logs.want()
    if sys.stderr is not None and sys.stderr.isatty():
        logs.set_up(as_json=False)
        return
    try:
        folder = os.path.join(state, "logs")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            os.path.join(folder, "service.log"), maxBytes=_MOST_BYTES, backupCount=_KEPT, encoding="utf-8", delay=True
        )
    except OSError:
        logs.set_up(as_json=True)
        return
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.raiseExceptions = False  # a full disk must not print a traceback for every line
    logger = logging.getLogger("refit_agent.file")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    logs.set_up(as_json=True, logger_factory=lambda *_: logger)
