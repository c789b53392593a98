"""Who may see the page: tickets, which are good once and for a minute, and the sessions that they are given for."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable

_BYTES = 32
#: A ticket is used at once or not at all; of more than these the oldest are void.
_MOST_TICKETS = 16
_MOST_SESSIONS = 16
ENDED = -1


class Tickets:
    """One-time tokens that stand in the address which opens the page."""

    def __init__(self, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl_s = ttl_s
        self._clock = clock
        self._until: dict[str, float] = {}

    def issue(self) -> str:
        """A new token."""
        self._drop_old()
        while len(self._until) >= _MOST_TICKETS:
            del self._until[next(iter(self._until))]
        token = secrets.token_urlsafe(_BYTES)
        self._until[token] = self._clock() + self.ttl_s
        return token

    def knows(self, token: str) -> bool:
        """Whether the token is good. It stays so."""
        self._drop_old()
        return bool([known for known in self._until if _same(known, token)])

    def redeem(self, token: str) -> bool:
        """Whether the token is good. It is not from now on."""
        self._drop_old()
        found = [known for known in self._until if _same(known, token)]
        for known in found:
            del self._until[known]
        return bool(found)

    def _drop_old(self) -> None:
        now = self._clock()
        self._until = {token: until for token, until in self._until.items() if now < until}


class Session:
    """One browser that came with a good ticket.

    A cookie goes to every port of its host, so another user's server on this machine could collect it. Hence the
    page stands at a ``place`` that cannot be guessed, and the cookie is for that place alone.

    Attributes:
        place: the part of the path that stands before everything this session may fetch.
        secret: the cookie's value.
        turn: counts the streams that were begun: only the last of them goes on. ENDED once the session is none.
    """

    def __init__(self) -> None:
        self.place = secrets.token_urlsafe(16)
        self.secret = secrets.token_urlsafe(_BYTES)
        self.turn = 0


class Sessions:
    """The sessions of one door; of more than 16, the one that was used least recently ends."""

    def __init__(self) -> None:
        self._sessions: list[Session] = []

    def begin(self) -> Session:
        """A new one."""
        if len(self._sessions) >= _MOST_SESSIONS:
            self._sessions.pop(0).turn = ENDED
        session = Session()
        self._sessions.append(session)
        return session

    def find(self, place: str, secret: str) -> Session | None:
        """The session of that place, if this is its secret."""
        found = [s for s in self._sessions if _same(s.place, place) & _same(s.secret, secret)]
        for session in found:
            self._sessions.remove(session)
            self._sessions.append(session)
        return found[0] if found else None


def _same(known: str, given: str) -> bool:
    """Whether they are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(known.encode(), given.encode("utf-8", "surrogatepass"))
