"""Ask the service for an engine on behalf of `ensure_engine`, which does the work itself wherever that fails.

A service that is not there, hangs, dies or talks nonsense must never cost an app its engine: all of that
ends as "no answer" here, with a line in the debug log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from refit_agent.client.messages import EngineResult, EnsureRequest
from refit_agent.client.sync import ServiceClient
from refit_agent.errors import (
    BundleError,
    RefitAgentError,
    SelectionError,
    ServiceBusy,
    ServiceError,
    SettingInvalid,
)
from refit_agent.progress import ProgressMeter

#: Errors that working in-process finds again within a millisecond if they are true here too. The service may
#: run with another environment, or in a container that lacks the bundle's folder.
_THE_SERVICE_S_OWN = (SelectionError, ServiceError, SettingInvalid)
_UNSEEN = frozenset({
    "bundle-missing", "bundle-file-missing", "bundle-file-unreadable", "manifest-invalid", "unknown-model",
    "unknown-profile",
})  # fmt: skip


@contextlib.contextmanager
def asked(
    path: str, request: EnsureRequest, meter: ProgressMeter, cancelled: Callable[[], bool], *, insist: bool
) -> Iterator[EngineResult | None]:
    """What the service at ``path`` answers, leased by it within the block; None where it is of no use.

    With ``insist`` there is an error in place of None.

    Raises:
        RefitAgentError: the service tried, and this is why it failed; or ``cancelled`` said to stop.
    """
    with ServiceClient(path) as client:
        result = _answer(client, request, meter, cancelled, insist)
        try:
            yield result
        finally:
            if result is not None:
                # Without this it would lapse by itself, only later.
                with contextlib.suppress(RefitAgentError):
                    client.release(result.lease.id)


def _answer(
    client: ServiceClient,
    request: EnsureRequest,
    meter: ProgressMeter,
    cancelled: Callable[[], bool],
    insist: bool,
) -> EngineResult | None:
    try:
        return client.ensure(request, meter.relay, cancelled)
    except RefitAgentError as error:
        own = isinstance(error, _THE_SERVICE_S_OWN) or (isinstance(error, BundleError) and error.code in _UNSEEN)
        if insist or not own or isinstance(error, ServiceBusy):  # busy: the caller's deadline is over
            raise
        say_unused(client.path, str(error))
        return None


def say_unused(path: str, why: str) -> None:
    """Note in the debug log that the work is done in-process, and why."""
    from refit_agent.logs import get_logger

    get_logger("refit_agent.client").debug("working in-process", service=path, why=why)
