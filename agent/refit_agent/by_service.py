"""Have the service make an engine, and take it over: from the cache, under a key of our own, with our own lease."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from refit_agent.cache.entry import Entry
from refit_agent.cache.store import Lease, Store
from refit_agent.errors import ServiceUnreachable
from refit_agent.progress import ProgressMeter
from refit_agent.selection import Candidate
from refit_agent.service_socket import IN_SERVICE_VARIABLE, socket_path

if TYPE_CHECKING:
    from refit_agent.client.messages import EngineResult, EnsureRequest


class Made(NamedTuple):
    """What the service provided: the entry as our own look-up found it, and for which of our candidates."""

    found: tuple[Entry, str, Lease]
    candidate: Candidate
    result: EngineResult


def service_to_ask(candidates: Sequence[Candidate], *, insist: bool) -> str:
    """The socket to ask at, or "" where there is none or must be none. With ``insist`` that is an error."""
    in_service = os.environ.get(IN_SERVICE_VARIABLE) == "1"
    path = "" if in_service else socket_path()
    hint = ""
    if in_service:
        why, hint = "this process is not to use one", "Ask without service=True: the process works by itself then."
    elif not path:
        if insist:
            from refit_agent.client.trust import require_place

            require_place(path)
        return ""
    elif any(c.engine.host_code or c.engine.lean_runtime is not None for c in candidates):
        why = "the bundle brings code of its own, and whether that may run is for this process to say"
    elif not os.path.lexists(path):
        why = "nothing listens there"
    else:
        return path
    if insist:
        raise ServiceUnreachable(path=path, detail=why, hint=hint)
    return ""


def common_target(candidates: Sequence[Candidate], target: str | None) -> str | None:
    """``target`` as another process understands it, whose CUDA_VISIBLE_DEVICES may differ: its "cuda:0" is not
    ours, and from a process that is to see no GPU it must not be asked to use one."""
    left = {"cpu" if c.gpu is None else c.gpu.uuid for c in candidates}
    return left.pop() if len(left) == 1 else target


def made_by_service(
    path: str,
    request: EnsureRequest,
    keys: Sequence[tuple[str, Candidate]],
    store: Store,
    meter: ProgressMeter,
    cancelled: Callable[[], bool],
    *,
    insist: bool,
) -> Made | None:
    """The engine that the service at ``path`` made for one of our candidates; None if it is of no help.

    Its answer is believed only as far as our own reckoning goes: with other GPUs in sight or another cache it
    may have made something that is of no use here.

    Raises:
        RefitAgentError: the service tried, and this is why it failed; with ``insist`` also in place of None.
    """
    # Imported late: where there is no service, nobody pays for its client.
    from refit_agent.client.ask import asked, say_unused

    with asked(path, request, meter, cancelled, insist=insist) as result:
        if result is None:
            return None
        fitting = [candidate for key, candidate in keys if key == result.key]
        found = store.lookup(result.key) if fitting else None
        if isinstance(found, tuple):
            meter("ready")
            named = [candidate for candidate in fitting if candidate.target == result.target]
            return Made(found, (named or fitting)[0], result)
        why = "its engine is not in this process's cache" if fitting else "it made an engine for another machine"
        if insist:
            raise ServiceUnreachable(path=path, detail=why)
        say_unused(path, why)
        return None
