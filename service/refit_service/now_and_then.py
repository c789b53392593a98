"""`NowAndThen`: a line of the log for what strangers may cause a thousand times a second."""

from __future__ import annotations

import time

from refit_agent.logs import get_logger

_PAUSE_S = 60.0


class NowAndThen:
    """Warns of one kind of event, once a minute at most. For the event loop's thread alone."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._quiet_until = 0.0
        self._unsaid = 0

    def warn(self, **facts: object) -> None:
        """Write a line with these facts, and with the number of events since the last line that got none."""
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        self._quiet_until = now + _PAUSE_S
        get_logger("refit_service").warning(self._event, **facts, unsaid=self._unsaid)
        self._unsaid = 0
