"""The service at a port of 127.0.0.1: a file that only the user may read says which, and what both sides show there.

We show the token with every request, and every answer must show the proof. A service that was killed leaves its
file behind, and then anybody may listen at its port. Such a stranger learns a token that opens nothing, since
every start makes new secrets, and what it answers is not believed. It learns the one request that it is sent as well,
such as the path of a bundle and the number of our process; and if it says nothing, an app's miss takes the ten seconds
longer for which an answer is waited for, at every miss until the service is started anew or the file is removed. The
service itself is not believed by `ensure_engine` either but as far as its own look-up in its own cache goes.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
from collections.abc import Iterator
from typing import Annotated

import msgspec

from refit_agent.client.http import Head, Malformed, Replaced, Whom
from refit_agent.errors import ServiceUnreachable

if sys.platform == "win32":
    from refit_agent.client import _windows as _platform
else:
    from refit_agent.client import _posix as _platform

HOST = "127.0.0.1"
PROOF_HEADER = "Refit-Agent-Proof"
MOST_BYTES = 4096
#: The status of an answer for which there was no place.
BUSY = 503
Secret = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one service listens, from its start to its end. ``token`` is for clients to show, ``proof`` for the
    service; ``pid`` is for people."""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    token: Secret
    proof: Secret
    pid: int = 0


_decoder = msgspec.json.Decoder(Place)


class AtPort(Whom):
    """The service that wrote ``place`` to the file at ``path``."""

    __slots__ = ("_path", "_place")

    def __init__(self, path: str, place: Place) -> None:
        self._path = path
        self._place = place

    @property
    def header_lines(self) -> str:
        """With the token."""
        return f"Host: {HOST}:{self._place.port}\r\nAuthorization: Bearer {self._place.token}\r\n"

    def check(self, head: Head) -> None:
        """Let only an answer pass that shows the proof.

        Raises:
            Replaced: it does not, and the file names another service by now.
            Malformed: it does not. A service that has no place for another connection shows no proof, since it has
                not seen who asks; its 503 is as little believed, but called by its name.
            ServiceUnreachable: it does not, and the file is gone.
        """
        shown = head.headers.get(PROOF_HEADER.lower(), "").encode("latin-1")
        if not hmac.compare_digest(shown, self._place.proof.encode()):
            why = "what listens at its port is not this service"
            if head.status == BUSY:
                why = "what listens at its port takes no more connections"
            raise Replaced(why) if read_place(self._path) != self._place else Malformed(why)
        super().check(head)


def read_place(path: str) -> Place:
    """What the file at ``path`` says now.

    Raises:
        ServiceUnreachable: there is none, others may read it or could have written it, or it makes no sense.
    """
    fd = _platform.open_private(path)
    try:
        data = os.read(fd, MOST_BYTES + 1)
    except OSError as error:
        raise ServiceUnreachable(path=path, detail=error.strerror or str(error)) from error
    finally:
        os.close(fd)
    try:
        if len(data) > MOST_BYTES:
            raise ServiceUnreachable(path=path, detail=f"the file has more than {MOST_BYTES} bytes")
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise ServiceUnreachable(path=path, detail=f"the file names no port ({fault})") from fault


def places(path: str) -> Iterator[Place]:
    """What the file says; for who asks on because nothing listens there, once more if it says something else by
    then: the service may have been started anew in between."""
    first = read_place(path)
    yield first
    second = read_place(path)
    if second != first:
        yield second


def connect(path: str, seconds: float) -> tuple[AtPort, socket.socket]:
    """A connection to what listens at the port. Each of two tries at most may take ``seconds``.

    Raises:
        ServiceUnreachable: nothing listens there.
    """
    fault: OSError | None = None
    for place in places(path):
        try:
            return AtPort(path, place), socket.create_connection((HOST, place.port), seconds)
        except OSError as error:
            fault = error
    raise refused(path, fault)


def refused(path: str, fault: BaseException | None) -> ServiceUnreachable:
    """The error that says why no port that the file named could be connected to."""
    why = getattr(fault, "strerror", None) or "it takes no connections"
    error = ServiceUnreachable(path=path, detail=f"nothing listens at its port ({why})")
    error.__cause__ = fault
    return error
