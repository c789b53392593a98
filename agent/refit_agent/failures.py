"""Candidates that failed on this machine, remembered so that no launch tries them in vain again.

One small file per cache key. Since the key names plan, weights, driver and runtime, a change of any
of them is a new key, and the failure no longer applies; nor does it after a change of the manifest's
entry, of the golden data or of the agent. Failures that may be passing (a crash, a hang) lapse after
a while that doubles each time; a worker that was killed may try once more at once.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from refit_agent.errors import (
    Cancelled,
    PlanRefused,
    RefitAgentError,
    RefitError,
    RefitRefused,
    WeightsNotIdentical,
    WorkerCrashed,
    WorkerTimeout,
    from_wire,
)

#: Failures that say nothing of the engine on this machine: what the caller or the manifest said, which may
#: be otherwise next time, and what nobody foresaw.
_NOT_ITS_FAULT = frozenset({Cancelled.code, RefitError.code, WeightsNotIdentical.code})
#: A link or a pipe that another user has put there must neither lead elsewhere nor hang the launch.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_MAX_BYTES = 1 << 20
#: A crash or a hang may not come again, and a runtime that refuses does not say whether memory was short.
_PASSING = (WorkerCrashed, WorkerTimeout, PlanRefused, RefitRefused)
#: Somebody ended the worker, at a logout for example: no fault of the engine's.
_STOPPED = frozenset({"signal SIGTERM", "signal SIGINT", "signal SIGHUP"})
#: Somebody or the kernel, which was short of memory, ended it. That is noted, and held against the engine from the
#: second time in a row on: every launch would be as much in vain.
_KILLED = "signal SIGKILL"
_FIRST_LAPSE_S = 3600.0
_LONGEST_LAPSE_S = 7 * 86400.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, when (Unix time), how often, until when to skip it (None: for good), and under which
    circumstances it counts."""

    code: str
    facts: dict[str, object]
    when: float
    count: int
    until: float | None
    context: str = ""


class Failures:
    """The remembered failures below one state folder. Safe across threads and processes."""

    def __init__(self, state: str) -> None:
        self._folder = f"{state}/failures"

    def recall(self, key: str, context: str | None = None, deadline_s: float = 0.0) -> RefitAgentError | None:
        """The error to skip the candidate for, or None to try it.

        ``context`` names what else the failure may be due to (`keys.attempt_context`): under another, it says
        nothing. Nor does a deadline that was missed say anything about a longer one, ``deadline_s``.
        """
        failure = self._read(key)
        now = time.time()
        # A clock set back by more than a day would otherwise keep a passing failure alive for years.
        if failure is None or (failure.until is not None and not failure.when - 86400 <= now < failure.until):
            return None
        if context is not None and failure.context != context:
            return None
        error = from_wire(failure.code, failure.facts)
        if not isinstance(error, RefitError):
            return None  # not written by this version
        allowed = error.facts.get("seconds")
        if isinstance(error, WorkerTimeout) and isinstance(allowed, (int, float)) and deadline_s > allowed:
            return None
        error.hint = f"{error.hint} It failed before and was not tried again; 'refit-agent provision --retry' does."
        return error

    def remember(self, key: str, error: RefitAgentError, context: str = "") -> None:
        """Note that the candidate failed, if that is worth noting; a state folder that cannot be written is not an error.

        ``context`` is what it may be due to, see `recall`.
        """
        if not isinstance(error, RefitError) or error.code in _NOT_ITS_FAULT:
            return
        if str(error.facts.get("how")) in _STOPPED:
            return
        before = self._read(key)
        count = 1 if before is None else before.count + 1
        now = time.time()
        passing = isinstance(error, _PASSING)
        lapse = min(_LONGEST_LAPSE_S, _FIRST_LAPSE_S * 2.0 ** (count - 1))
        again = before is not None and before.context == context and str(before.facts.get("how")) == _KILLED
        if str(error.facts.get("how")) == _KILLED and not again:
            lapse = 0.0
        facts: dict[str, object] = {
            k: v if isinstance(v, (str, int, float, bool)) else str(v) for k, v in error.facts.items()
        }
        failure = Failure(
            code=error.code,
            facts=facts,
            when=now,
            count=count,
            until=now + lapse if passing else None,
            context=context,
        )
        from refit_agent.state_file import drop_leftovers, replace_file  # not needed for a hit

        drop_leftovers(self._folder, "", ".tmp")  # of other keys too, which nobody may ever write again
        with contextlib.suppress(OSError):
            replace_file(f"{self._folder}/{key}.json", msgspec.json.encode(failure))

    def forget(self, key: str) -> None:
        """Try the candidate again from now on."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._folder}/{key}.json")

    def _read(self, key: str) -> Failure | None:
        try:
            fd = os.open(f"{self._folder}/{key}.json", _READ_FLAGS)
            with os.fdopen(fd, "rb") as file:
                if os.name == "posix" and os.fstat(fd).st_uid != os.geteuid():
                    return None  # another user must not say what is not to be tried here
                return msgspec.json.decode(file.read(_MAX_BYTES), type=Failure)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
