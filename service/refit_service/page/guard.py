"""What every request for the page must be like, and what every answer says to the browser.

The browser is the user's, but the pages in its other tabs are not: any of them may send requests to this port, and
may have the name of its own server resolved to this machine's address. Hence Host, Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from multidict import CIMultiDictProxy

#: The style of the few pages that need no session, and therefore no file.
PLAIN_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:15vh auto 0;padding:0 1.25rem}"
    "h1{font-size:1.25rem}code{font-size:.95em}:root{color-scheme:light dark}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(PLAIN_STYLE.encode()).digest()).decode()
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    f"style-src 'self' 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Server": "refit-agent",
}


def is_sound(headers: CIMultiDictProxy[str], host: str, *, opens: bool) -> bool:
    """Whether a request comes from our own page or from the user's hand.

    ``host`` is our address with the port. With ``opens`` it is the one that opens the page: a link in a file, a
    mail or a chat leads there, so the whole page of a tab may come from elsewhere, but nothing less.
    """
    # Two of a kind are one too many: who comes next may go by the other.
    if headers.getall("Host", []) != [host]:
        return False
    if headers.getall("Origin", [f"http://{host}"]) != [f"http://{host}"]:
        return False
    # A page that is fetched before anybody wanted it must not use the token up.
    if "Sec-Purpose" in headers or "Purpose" in headers:
        return False
    if opens and headers.get("Sec-Fetch-Site") is not None:
        return (headers.get("Sec-Fetch-Mode"), headers.get("Sec-Fetch-Dest")) == ("navigate", "document")
    # Not "same-site" either: that is what another port of this machine is.
    return headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
