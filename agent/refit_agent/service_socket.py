"""Where the service listens: one answer for the service, for its clients and for those who write unit files."""

from __future__ import annotations

import os

VARIABLE = "REFIT_AGENT_SOCKET"
#: Set to "1" by the service for itself and its children, which must never ask the service.
IN_SERVICE_VARIABLE = "REFIT_AGENT_IN_SERVICE"
_NAME = "agent.sock"


def socket_path() -> str:
    """The absolute path of the service's socket, whether or not anything is there; "" where there is to be none.

    REFIT_AGENT_SOCKET decides if it is set ("" means no service), then REFIT_AGENT_HOME, then
    XDG_RUNTIME_DIR, then /run/user/UID if that is ours, and else the state folder.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return os.path.abspath(os.path.expanduser(given)) if given else ""
    if os.name != "posix":
        return ""  # the socket module of Python has no Unix sockets on Windows
    root = os.environ.get("REFIT_AGENT_HOME")
    if root:
        return os.path.join(os.path.abspath(os.path.expanduser(root)), "run", _NAME)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A relative one is to be ignored, says the XDG specification.
    if not os.path.isabs(runtime):
        runtime = f"/run/user/{os.geteuid()}"
        if not _is_ours(runtime):
            return _below_state()
    return os.path.join(runtime, "refit-agent", _NAME)


def _is_ours(folder: str) -> bool:
    try:
        return os.stat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def _below_state() -> str:
    from refit_agent import paths  # what it imports is needed here only

    return os.path.join(paths.home().state, "run", _NAME)
