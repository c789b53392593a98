"""Where runtimes are looked for: on the light path, apart from the looking itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

#: Environment variable: further folders (separated by os.pathsep), each with runtimes of its own.
RUNTIMES_VARIABLE = "REFIT_AGENT_RUNTIMES"


def search_folders(
    path: Sequence[object] | None = None, environ: os._Environ[str] | dict[str, str] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders that are searched: those of the module search path, and those named apart.

    The same as the worker gets: all that is absolute. The current folder, which stands there as "", is left
    out: the worker runs in another.
    """
    entries = sys.path if path is None else path
    on_path = dict.fromkeys(e for e in entries if isinstance(e, str) and os.path.isabs(e))
    named = (os.environ if environ is None else environ).get(RUNTIMES_VARIABLE, "")
    apart = dict.fromkeys(os.path.abspath(e) for e in named.split(os.pathsep) if e) if named else {}
    return tuple(on_path), tuple(apart)
