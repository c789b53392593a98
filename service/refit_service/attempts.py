"""What background work tried in vain, kept in ``<state>/warm.json``.

An attempt is noted before it begins. So a service that is killed by what it does in the background, again
and again, waits longer each time, as after any other failure.
"""

from __future__ import annotations

import contextlib
import os
import time

import msgspec

from refit_agent.errors import RefitAgentError
from refit_agent.state_file import drop_leftovers, replace_file
from refit_service.protocol import WarmFailure

_FILE = "warm.json"
_FIRST_WAIT_S = 60.0
_LONGEST_WAIT_S = 6 * 3600.0
#: Clocks are set by a little all the time, and sums of floats are a little more than their parts.
_CLOCK_SLACK_S = 5.0
_decoder = msgspec.json.Decoder(list[WarmFailure])
Target = tuple[str, str, str | None]


class Attempts:
    """Failures by (bundle, model, target). Used by the event loop's thread alone."""

    def __init__(self, state: str) -> None:
        self._path = os.path.join(state, _FILE)
        self._failures: dict[Target, WarmFailure] = {}
        self._before: dict[Target, WarmFailure | None] = {}
        drop_leftovers(state, f"{_FILE}.", ".tmp")
        damaged = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
        with contextlib.suppress(OSError, *damaged), open(self._path, "rb") as file:
            self._failures = {(f.bundle, f.model, f.target): f for f in _decoder.decode(file.read())}

    def failures(self) -> tuple[WarmFailure, ...]:
        """All of them."""
        return tuple(self._failures.values())

    def wait_s(self, what: Target) -> float:
        """Seconds until this may be tried again, 0 for now."""
        failure = self._failures.get(what)
        if failure is None:
            return 0.0
        left = failure.not_before - time.time()
        # A clock set back would otherwise put it off for as long as it was set back by.
        return left if 0 < left <= _wait_after_s(failure.tries) + _CLOCK_SLACK_S else 0.0

    def begin(self, what: Target) -> None:
        """Note that it is tried now."""
        self._before[what] = self._failures.get(what)
        self._note(what, "service-stopped", "The service ended while it made this engine.")

    def withdraw(self, what: Target) -> None:
        """The try that `begin` noted, if any, was stopped for no fault of its own: as if it had not been begun."""
        if what not in self._before:
            return
        before = self._before.pop(what)
        if before is None:
            self.forget(what)
        else:
            self._failures[what] = before
            self._save()

    def failed(self, what: Target, error: BaseException) -> None:
        """Note what became of the try that `begin` noted."""
        code = error.code if isinstance(error, RefitAgentError) else "internal"
        begun = self._failures[what]
        # From now on: one that took longer than its wait would be tried again at once.
        self._failures[what] = msgspec.structs.replace(
            begun, code=code, message=str(error)[:2000], not_before=time.time() + _wait_after_s(begun.tries)
        )
        self._before.pop(what, None)
        self._save()

    def forget(self, what: Target) -> None:
        """It went well, or nobody wants it any more."""
        self._before.pop(what, None)
        if self._failures.pop(what, None) is not None:
            self._save()

    def forget_bundle(self, path: str) -> None:
        """There is another bundle in this folder: what failed before says nothing of it."""
        for what in [w for w in self._failures if w[0] == path]:
            self.forget(what)

    def keep_only(self, wanted: set[Target]) -> None:
        """Forget what nobody wants any more."""
        for what in [w for w in self._failures if w not in wanted]:
            self.forget(what)

    def _note(self, what: Target, code: str, message: str) -> None:
        before = self._failures.get(what)
        tries = 1 if before is None else before.tries + 1
        bundle, model, target = what
        self._failures[what] = WarmFailure(
            bundle=bundle,
            model=model,
            target=target,
            code=code,
            message=message,
            tries=tries,
            not_before=time.time() + _wait_after_s(tries),
        )
        self._save(lasting=True)

    def _save(self, *, lasting: bool = False) -> None:
        # Lasting: what is about to begin may take the whole machine down, driver and all.
        with contextlib.suppress(OSError):  # a full disk costs a repeated try after the next start
            replace_file(self._path, msgspec.json.encode(list(self._failures.values())), lasting=lasting)


def _wait_after_s(tries: int) -> float:
    """How long to wait after so many failures."""
    return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(max(tries, 1) - 1, 20))
