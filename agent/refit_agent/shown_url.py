"""A URL as messages and reports may show it."""

from __future__ import annotations

from urllib.parse import urlsplit


def shown(url: str) -> str:
    """The URL without what may be a secret: user, password, query, fragment. Takes what is no URL, too."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0][:20] + "://..."
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
