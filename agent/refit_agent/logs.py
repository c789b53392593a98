"""Logging: silent towards a host app's standard output, set up only by our own programs.

A library must not decide where its host's logs go. `get_logger` gives a structlog logger that reaches
the host through the standard library's ``logging``, unless one of our programs said `want` or `set_up`
before: then the lines go to standard error, for people on a terminal, as JSON otherwise.

structlog is imported by `get_logger` and `set_up`, never by importing this module or by `want`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from refit_agent.errors import SettingInvalid

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

LEVEL_VARIABLE = "REFIT_AGENT_LOG_LEVEL"
#: As in ``logging``, which takes longer to import than a cache hit may last.
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_DEFAULT = "warning"

_wanted: str | None = None
_done = False


def level() -> str:
    """The level that REFIT_AGENT_LOG_LEVEL asks for, "warning" without it. Raises SettingInvalid."""
    name = (os.environ.get(LEVEL_VARIABLE) or _DEFAULT).lower()
    if name not in _LEVELS:
        raise SettingInvalid(name=LEVEL_VARIABLE, value=name, wanted="one of " + ", ".join(_LEVELS))
    return name


def want(at: str | None = None) -> None:
    """Note that this process is one of our programs, and at which level it is to speak; costs nothing.

    None means what was noted before, or REFIT_AGENT_LOG_LEVEL. A wrong value there is no reason not to work: it counts
    as "warning", and that is said, once.
    """
    global _wanted
    if at is None and _wanted is not None:
        return
    try:
        _wanted = at or level()
    except SettingInvalid as error:
        _wanted = _DEFAULT
        # The plain logger: structlog is slow to import, and is set up by what has been noted here.
        import logging

        logging.getLogger(__name__).warning("%s %r is taken in its place.", error, _DEFAULT)


def set_up(*, as_json: bool | None = None, logger_factory: Callable[..., WrappedLogger] | None = None) -> None:
    """Send log lines to standard error from now on; a second call changes nothing.

    ``as_json`` None means: unless standard error is a terminal. ``logger_factory`` makes what takes the
    finished lines instead.
    """
    global _done
    if _done:
        return
    if _wanted is None:
        want()
    import structlog

    if as_json is None:
        as_json = not sys.stderr.isatty()
    structlog.configure(
        processors=_processors(as_json),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[_wanted or _DEFAULT]),
        logger_factory=logger_factory or _StandardError,
        cache_logger_on_first_use=False,
    )
    _done = True


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of one module; ``name`` is the module's."""
    import structlog

    if _wanted is not None:
        set_up()
    if _done:  # not whenever structlog is configured: a host's own may print to its standard output
        logger: FilteringBoundLogger = structlog.get_logger(name, module=name)
        return logger
    import logging

    logging.getLogger("refit_agent").addHandler(logging.NullHandler())
    wrapped: FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        wrapper_class=structlog.stdlib.BoundLogger,
        processors=[structlog.stdlib.filter_by_level, structlog.processors.format_exc_info, _one_line],
    )
    return wrapped


def _one_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    del logger, method
    return " ".join([str(event.pop("event", "")), *(f"{key}={value!r}" for key, value in event.items())])


def _processors(as_json: bool) -> list[Processor]:
    import structlog

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
    ]
    if as_json:
        return [*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    renderer = structlog.dev.ConsoleRenderer(
        colors="NO_COLOR" not in os.environ, exception_formatter=structlog.dev.plain_traceback
    )
    return [*shared, _without_module, structlog.processors.format_exc_info, _visible, renderer]


def _without_module(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    del logger, method
    event.pop("module", None)
    return event


def _visible(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Escapes control and invisible characters: a bundle's names, and what a runtime says of them, must not move the
    terminal's cursor."""
    del logger, method
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in value)
    return event


class _StandardError:
    """Writes to whatever standard error is at that moment: a progress bar puts itself in its place."""

    def __init__(self, *args: Any) -> None:
        del args

    def msg(self, message: str) -> None:
        """Write one line."""
        try:
            print(message, file=sys.stderr, flush=True)
        except OSError:
            return  # a log that nobody reads any more is no reason to stop the work

    debug = info = warning = error = critical = msg
