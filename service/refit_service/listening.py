"""Where the service listens: on the socket that systemd hands over, on one of its own, or at a port of loopback."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Protocol

from refit_agent.errors import SocketUnusable
from refit_agent.service_socket import is_loopback
from refit_service.systemd import inherited_socket

if TYPE_CHECKING:
    from refit_service.gate import Gate

#: More than connections are taken: a crowd that comes at once waits here and is not turned away.
BACKLOG = 512


class Listening(Protocol):
    """A listening socket that is this user's only one.

    Attributes:
        path: the place by which clients find it.
        uid: the user that the kernel must name for each connection; None where it names nobody.
        gate: what every request must pass in its place.
    """

    sock: socket.socket
    path: str

    @property
    def uid(self) -> int | None: ...

    @property
    def gate(self) -> Gate | None: ...

    def close(self) -> None:
        """Give the place back, unless it is somebody else's by now."""


def listen(path: str) -> Listening:
    """Listen at ``path``, or on the socket that systemd hands over, until the result is closed.

    Raises:
        ServiceRunning: somebody else listens there.
        SocketUnusable: the folder or the path will not do.
    """
    try:
        inherited = inherited_socket()
    except OSError as error:
        detail = f"the socket that was handed over (LISTEN_FDS) is none: {error.strerror}"
        raise SocketUnusable(path=path, detail=detail) from error
    if inherited is None and not path:
        raise SocketUnusable(path="REFIT_AGENT_SOCKET", detail="it is set to nothing, which means no service")
    if inherited is None and is_loopback(path):
        from refit_service.loopback import listen_at_port  # with the client and filelock: no Unix socket needs them

        return listen_at_port(path, BACKLOG)
    if sys.platform != "win32":
        from refit_service.listening_unix import listen_unix

        return listen_unix(path, inherited, BACKLOG)
    raise SocketUnusable(path=path, detail="Python has no Unix sockets here; a place that ends in .json will do")
