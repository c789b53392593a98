"""Where things live on this machine. Nothing is created here, and nothing is read at import.

    cache/  engines, locks, temporary folders   (rebuildable; safe to delete)
    state/  what was learned: the machine, failures, bundles, logs

``REFIT_AGENT_HOME`` moves both under one root. Under systemd the folders that the unit declares are
used (CACHE_DIRECTORY, STATE_DIRECTORY).
"""

from __future__ import annotations

import os
from typing import NamedTuple

APP = "refit-agent"


class Home(NamedTuple):
    """The two roots, absolute paths."""

    cache: str
    state: str


def home(environ: os._Environ[str] | dict[str, str] | None = None) -> Home:
    """The roots for this process's environment (or for ``environ``)."""
    env = os.environ if environ is None else environ
    root = env.get("REFIT_AGENT_HOME")
    if root:
        root = os.path.abspath(os.path.expanduser(root))
        return Home(os.path.join(root, "cache"), os.path.join(root, "state"))
    # Imported late: a host app that sets REFIT_AGENT_HOME does not pay for it.
    import platformdirs

    # Absolute in any case: the worker runs in another folder.
    return Home(
        os.path.abspath(_declared(env, "CACHE_DIRECTORY") or platformdirs.user_cache_dir(APP, appauthor=False)),
        os.path.abspath(_declared(env, "STATE_DIRECTORY") or platformdirs.user_state_dir(APP, appauthor=False)),
    )


def _declared(env: os._Environ[str] | dict[str, str], name: str) -> str:
    """The first of the folders that a systemd unit declares (it may declare several, joined by colons)."""
    return env.get(name, "").split(":" if os.name == "posix" else os.pathsep)[0]
