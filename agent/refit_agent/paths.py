"""Where things live on this machine. Nothing is created here, and nothing is read at import.

    cache/  engines, locks, temporary folders   (rebuildable; safe to delete)
    state/  what was learned: the machine, failures, bundles, logs

``REFIT_AGENT_HOME`` moves both under one root. What a systemd unit declares (CACHE_DIRECTORY) is left
alone: in a host app's unit those folders are the app's, and every app would have a cache of its own.
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
        os.path.abspath(platformdirs.user_cache_dir(APP, appauthor=False)),
        os.path.abspath(platformdirs.user_state_dir(APP, appauthor=False)),
    )
