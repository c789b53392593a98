"""Candidates that failed on this machine, remembered so that no launch tries them in vain again.

One small file per cache key. Since the key names plan, weights, driver and runtime, a change of any
of them is a new key, and the failure no longer applies. Failures that may be passing (a crash, a
hang) lapse after a while that doubles each time.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from refit_agent.errors import GoldenMismatch, RefitAgentError, RefitError, WorkerCrashed, WorkerTimeout, from_wire

_FIRST_LAPSE_S = 3600.0
_LONGEST_LAPSE_S = 7 * 86400.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, when (Unix time), how often, until when to skip it (None: for good), and for wrong
    results the golden data that showed them."""

    code: str
    facts: dict[str, object]
    when: float
    count: int
    until: float | None
    check: str = ""


class Failures:
    """The remembered failures below one state folder. Safe across threads and processes."""

    def __init__(self, state: str) -> None:
        self._folder = f"{state}/failures"

    def recall(self, key: str, checks: str | None = None, deadline_s: float = 0.0) -> RefitAgentError | None:
        """The error to skip the candidate for, or None to try it.

        ``checks`` names the golden data in use. Wrong results against other data say nothing: an
        update may have corrected it, and another app with the same plan has its own. Nor does a deadline
        that was missed say anything about a longer one, ``deadline_s``.
        """
        failure = self._read(key)
        now = time.time()
        # A clock set back by more than a day would otherwise keep a passing failure alive for years.
        if failure is None or (failure.until is not None and not failure.when - 86400 <= now < failure.until):
            return None
        if failure.check and checks is not None and failure.check != checks:
            return None
        error = from_wire(failure.code, failure.facts)
        if not isinstance(error, RefitError):
            return None  # not written by this version
        allowed = error.facts.get("seconds")
        if isinstance(error, WorkerTimeout) and isinstance(allowed, (int, float)) and deadline_s > allowed:
            return None
        error.hint = f"{error.hint} It failed before and was not tried again; 'refit-agent provision --retry' does."
        return error

    def remember(self, key: str, error: RefitAgentError, checks: str = "") -> None:
        """Note that the candidate failed, if that is worth noting; a state folder that cannot be written is not an error.

        ``checks`` is what the finished engine was to be compared with, see `recall`.
        """
        if not isinstance(error, RefitError) or error.code == RefitError.code:
            return
        before = self._read(key)
        count = 1 if before is None else before.count + 1
        now = time.time()
        passing = isinstance(error, (WorkerCrashed, WorkerTimeout))
        lapse = min(_LONGEST_LAPSE_S, _FIRST_LAPSE_S * 2.0 ** (count - 1))
        facts: dict[str, object] = {
            k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in error.facts.items()
        }
        failure = Failure(
            code=error.code,
            facts=facts,
            when=now,
            count=count,
            until=now + lapse if passing else None,
            check=checks if isinstance(error, GoldenMismatch) else "",
        )
        temporary = f"{self._folder}/{key}.{os.urandom(4).hex()}.tmp"
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(msgspec.json.encode(failure))
            os.replace(temporary, f"{self._folder}/{key}.json")
            return
        with contextlib.suppress(OSError):
            os.unlink(temporary)

    def forget(self, key: str) -> None:
        """Try the candidate again from now on."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._folder}/{key}.json")

    def _read(self, key: str) -> Failure | None:
        try:
            with open(f"{self._folder}/{key}.json", "rb") as file:
                return msgspec.json.decode(file.read(), type=Failure)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
