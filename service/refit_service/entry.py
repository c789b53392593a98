"""Loads the service without what its libraries bring along and it never uses: TLS and the console's colours.

aiohttp makes two TLS contexts with all of the system's certificates when it is imported, and structlog imports
rich: together a quarter of the memory of a service at rest.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

_UNUSED = ("ssl", "rich")
#: Of the standard library, and not whole when imported without ssl: whoever needs them later gets them anew.
_HALF_MADE = ("http.client", "urllib.request")


def load() -> Callable[[], int]:
    """The service's main function. Raises ImportError if a library is missing."""
    try:
        with _without_unused():
            from refit_service.daemon import main
    except ImportError:
        # A library that insists on one of them, or is not there at all, which this says again.
        from refit_service.daemon import main
    return main


@contextlib.contextmanager
def _without_unused() -> Iterator[None]:
    """Let imports of what is not used fail, as on a system that lacks it; every one of them is optional."""
    before = {name: sys.modules.get(name) for name in (*_UNUSED, *_HALF_MADE)}
    hidden = [name for name in _UNUSED if before[name] is None]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401 - imported by the first line of the log otherwise, when rich is visible again

        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        for name in _HALF_MADE if "ssl" in hidden else ():
            if before[name] is None:
                sys.modules.pop(name, None)
