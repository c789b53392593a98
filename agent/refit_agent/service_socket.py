"""Where the service listens: one answer for the service, for its clients and for those who write unit files.

Its place is a Unix socket. A place that ends in ".json" is a file instead, which only the user may read: it
names a port of 127.0.0.1 and the secrets that both sides show there. That is the way on Windows, where Python
has no Unix sockets, and works everywhere.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "REFIT_AGENT_SOCKET"
#: Set to "1" by the service for itself and its children, which must never ask the service.
IN_SERVICE_VARIABLE = "REFIT_AGENT_IN_SERVICE"
_NAME = "agent.sock"
_LOOPBACK = ".json"
_LOOPBACK_NAME = "agent.json"


def socket_path() -> str:
    """The absolute path of the service's place, whether or not anything is there; "" where there is to be none.

    REFIT_AGENT_SOCKET decides if it is set ("" means no service), then REFIT_AGENT_HOME, then
    XDG_RUNTIME_DIR, then /run/user/UID if that is ours, and else the state folder; on Windows only the first
    two and the last.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return os.path.abspath(os.path.expanduser(given)) if given else ""
    name = _LOOPBACK_NAME if sys.platform == "win32" else _NAME
    root = os.environ.get("REFIT_AGENT_HOME")
    if root:
        return os.path.join(os.path.abspath(os.path.expanduser(root)), "run", name)
    if sys.platform == "win32":
        return _below_state(name)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # A relative one is to be ignored, says the XDG specification.
    if not os.path.isabs(runtime):
        runtime = f"/run/user/{os.geteuid()}"
        if not _is_ours(runtime):
            return _below_state(name)
    return os.path.join(runtime, "refit-agent", name)


def is_loopback(path: str) -> bool:
    """Whether the place is a file that names a port, and not a Unix socket."""
    return path.endswith(_LOOPBACK)


def _is_ours(folder: str) -> bool:
    try:
        return sys.platform != "win32" and os.stat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def _below_state(name: str) -> str:
    from refit_agent import paths  # what it imports is needed here only

    # Where the cache is, which the user's settings file may say, is of no interest here.
    return os.path.join(paths.home(user_file=False).state, "run", name)
