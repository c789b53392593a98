"""`ensure_engine` for a command: stoppable by a signal or a deadline, with a view of its progress.

Light: part of the fast lane of `refit-agent path`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from refit_agent.cli import stop
from refit_agent.errors import Cancelled, RefitAgentError
from refit_agent.provision import Form, ensure_engine
from refit_agent.settings import DEFAULT_DEADLINE_S

if TYPE_CHECKING:
    from refit_agent.cli.progress_view import ProgressView
    from refit_agent.engine import Engine
    from refit_agent.progress import Progress


class Halt(Protocol):
    """What may end the work early; the module `stop` is the plain one: signals."""

    def requested(self) -> bool:
        """Whether the work is to end."""

    def check(self) -> None:
        """Raise what says why, if it is to end."""


class View(Protocol):
    """Shows the steps of the work named ``label``."""

    def show(self, label: str, progress: Progress) -> None:
        """Show one step."""


def ensure(
    bundle: str,
    model: str,
    profile: str | None = None,
    target: str | None = None,
    *,
    view: View,
    halt: Halt = stop,
    label: str = "",
    weights: str | None = None,
    deadline_s: float | None = None,
    retry_failed: bool = False,
    background: bool = False,
    public_keys: tuple[str, ...] | None = None,
    form: Form = "plan",
) -> Engine:
    """What `refit_agent.ensure_engine` gives, its progress shown under ``label``.

    Raises:
        Stopped: a signal came; nothing is left half-done.
        RefitAgentError: as `ensure_engine`.
        Exception: what ``halt`` raises, in place of Cancelled.
    """
    stop.check()

    def on_progress(progress: Progress) -> None:
        stop.check()
        view.show(label or model, progress)

    try:
        # Standard output belongs to the command's answer: a library that prints must not get into it.
        with stop.patiently(), contextlib.redirect_stdout(sys.stderr):
            engine = ensure_engine(
                bundle,
                model,
                profile,
                target,
                on_progress,
                weights=weights,
                deadline_s=DEFAULT_DEADLINE_S if deadline_s is None else deadline_s,
                retry_failed=retry_failed,
                background=background,
                cancelled=halt.requested,
                public_keys=public_keys,
                form=form,
            )
    except RefitAgentError as error:
        stop.check()
        # The library reports a cancelled refit as an error; it was `halt` that cancelled it.
        if isinstance(error, Cancelled):
            halt.check()
        raise
    if stop.requested():
        engine.close()
        stop.check()
    return engine


class LazyView:
    """A progress view that is made when there is something to show: a hit shows nothing and imports nothing."""

    def __init__(self, make: Callable[[], ProgressView] | None = None) -> None:
        self._make = make
        self._view: ProgressView | None = None

    def show(self, label: str, progress: Progress) -> None:
        """Show one step of the work named ``label``."""
        if self._view is None:
            from refit_agent import logs
            from refit_agent.cli.progress_view import progress_view

            logs.set_up()
            self._view = (self._make or progress_view)()
        self._view.show(label, progress)

    def close(self) -> None:
        """Take the view off the screen; the next `show` makes a new one."""
        view, self._view = self._view, None
        if view is not None:
            view.close()


@contextlib.contextmanager
def lazy_view() -> Iterator[LazyView]:
    """A `LazyView` that is closed, with the terminal as it was, however the block ends."""
    view = LazyView()
    try:
        yield view
    finally:
        view.close()
