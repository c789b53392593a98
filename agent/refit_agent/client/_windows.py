"""Whether the file that names the service's port is the user's alone, on Windows.

Python shows no access lists there. Other users are kept out of a user's profile by the list that Windows gives
it and that everything made in it inherits; in any other place another user could have made the file or read it.

Not run on Windows yet.
"""

from __future__ import annotations

import os
import stat

from refit_agent.client.trust import nothing_there
from refit_agent.errors import ServiceUnreachable

_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)


def open_private(path: str) -> int:
    """A descriptor of the file at ``path``, for reading. Raises ServiceUnreachable unless it is in the profile."""
    if not in_profile(path):
        raise ServiceUnreachable(path=path, detail="it is not in the user's profile")
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise nothing_there(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ServiceUnreachable(path=path, detail="it is not a file")
    return fd


def in_profile(path: str) -> bool:
    """Whether ``path``, links resolved, lies below the user's profile or its folder for local data."""
    here = os.path.normcase(os.path.realpath(path))
    for given in (os.path.expanduser("~"), os.environ.get("LOCALAPPDATA", "")):
        root = os.path.normcase(os.path.realpath(given))
        # The whole of a drive is nobody's profile.
        if not os.path.isabs(given) or os.path.dirname(root) == root:
            continue
        try:
            if os.path.commonpath([root, here]) == root:
                return True
        except ValueError:  # another drive
            continue
    return False
