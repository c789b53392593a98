"""Where things live on this machine. Nothing is created here, and nothing is read at import.

    cache/  engines, locks, temporary folders   (rebuildable; safe to delete)
    state/  what was learned: the machine, failures, bundles, logs

``REFIT_AGENT_HOME`` moves both under one root, and the setting ``cache_dir`` the cache alone. What a systemd unit declares (CACHE_DIRECTORY) is left
alone: in a host app's unit those folders are the app's, and every app would have a cache of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from refit_agent.settings import HOME_VARIABLE, cache_dir

APP = "refit-agent"


class Home(NamedTuple):
    """The two roots, absolute paths."""

    cache: str
    state: str


def home(environ: Mapping[str, str] | None = None, *, user_file: bool = True) -> Home:
    """The roots for this process's environment (or for ``environ``); ``user_file`` as for `settings.find`.

    Raises SettingInvalid, for a settings file.
    """
    env = os.environ if environ is None else environ
    cache = cache_dir(env, user_file=user_file)
    root = env.get(HOME_VARIABLE)
    if cache and root:
        return Home(cache, os.path.join(os.path.abspath(os.path.expanduser(root)), "state"))
    # Imported late: a host app that sets REFIT_AGENT_HOME does not pay for it.
    import platformdirs

    # Absolute in any case: the worker runs in another folder.
    return Home(
        cache or os.path.abspath(platformdirs.user_cache_dir(APP, appauthor=False)),
        os.path.abspath(platformdirs.user_state_dir(APP, appauthor=False)),
    )
