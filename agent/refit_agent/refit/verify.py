"""Check the bundle's files against their hashes while the runtime opens the plan.

Hashing releases the GIL and so does the opening of a plan, so on two cores the check costs next to
nothing; as a side effect the weights are in the page cache when the refit wants them. Nothing made
from the files is published before `wait` has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


class BackgroundChecks:
    """Runs checks in threads of its own; the first error is raised by `wait`."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, name: str, checks: Sequence[Callable[[], object]]) -> None:
        """Run ``checks`` one after the other in a new thread."""

        def work() -> None:
            try:
                for check in checks:
                    check()
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
                self._errors.append(error)

        # Daemonic: a failed refit must not wait for gigabytes to be hashed before it can say so.
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, name: str | None = None) -> None:
        """Return when every check (or those started as ``name``) has passed; raise the first error there was."""
        for thread in self._threads:
            if name is None or thread.name == name:
                thread.join()
        if self._errors:
            raise self._errors[0]
