"""Whether the file that names the service's port is the user's alone, on Linux and macOS: its owner and its mode."""

from __future__ import annotations

import os
import stat
import sys

assert sys.platform != "win32"  # a type checker for Windows reads no further

from refit_agent.client.trust import OTHERS_MAY_WRITE, check_ours, nothing_there  # noqa: E402
from refit_agent.errors import ServiceUnreachable  # noqa: E402

_OTHERS_MAY_ANYTHING = stat.S_IRWXG | stat.S_IRWXO
#: A link could lead to a file of ours that was never meant for this, and a pipe would hold us up.
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def open_private(path: str) -> int:
    """A descriptor of the file at ``path``, for reading. Raises ServiceUnreachable unless nobody else may read
    it and it lies in a folder of ours."""
    try:
        folder = os.stat(os.path.dirname(path))
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise nothing_there(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ServiceUnreachable(path=path, detail="it is not a file")
        check_ours(path, "it", status, "read or write", _OTHERS_MAY_ANYTHING)
        check_ours(path, "its folder", folder, "write to", OTHERS_MAY_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd
