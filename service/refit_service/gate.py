"""What every request must pass at a port of loopback, where the kernel does not say who connects.

The token keeps out other users and whatever else runs here. Browsers run what strangers wrote: a name of theirs
that leads to 127.0.0.1 makes our answers readable to their pages, so the Host must be ours; and no page of any
site has business here, so there may be no Origin.
"""

from __future__ import annotations

import hmac

from aiohttp import hdrs, web

from refit_agent.client.loopback import HOST, PROOF_HEADER, Place
from refit_service.now_and_then import NowAndThen
from refit_service.problems import Refusal, problem_of, problem_response


class Gate:
    """Tells the requests of this user's programs from all others. For the event loop's thread alone."""

    def __init__(self, place: Place) -> None:
        self._host = f"{HOST}:{place.port}"
        self._wanted = f"Bearer {place.token}".encode()
        self._proof = place.proof
        self._refused = NowAndThen("a request was refused")

    def passes(self, request: web.BaseRequest) -> bool:
        """Whether the request may be answered; if not, the log says why, now and then."""
        why = self._fault(request)
        if why:
            self._refused.warn(why=why)
        return not why

    def refusal(self, request_id: str) -> web.Response:
        """The answer to a request that does not pass: the same whatever was wrong. It ends the connection, so that
        strangers do not keep the places of those who may ask."""
        response = problem_response(problem_of(Refusal(403, "forbidden", _WORDS), request_id))
        response.force_close()
        return response

    def sign(self, response: web.StreamResponse) -> None:
        """Show whoever passed that this is the service that it looked for."""
        response.headers[PROOF_HEADER] = self._proof

    def _fault(self, request: web.BaseRequest) -> str:
        # Two of a kind are one too many: who comes next may go by the other.
        if request.headers.getall(hdrs.HOST, []) != [self._host]:
            return "it is meant for another host"
        if hdrs.ORIGIN in request.headers:
            return "it comes from a web page"
        shown = request.headers.getall(hdrs.AUTHORIZATION, [])
        if not hmac.compare_digest(b",".join(s.encode("utf-8", "surrogateescape") for s in shown), self._wanted):
            return "it does not show the token" if shown else "it shows no token"
        return ""


_WORDS = "This address answers only to programs of its own user, which show the token that its file holds."
