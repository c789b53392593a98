"""Where the files of a manifest may lie: below the bundle's folder, or at a URL."""

from __future__ import annotations

from urllib.parse import urlsplit

#: Names that Windows gives to devices, whatever their extension.
_WINDOWS_DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{i}" for port in ("com", "lpt") for i in "0123456789¹²³"),
    ]
)


def path_fault(path: str) -> str:
    """Why ``path`` must not be opened below a bundle's folder, as the end of a sentence; "" if it may.

    Symbolic links are not seen here: `bundle.Bundle.locate` checks them when it opens.
    """
    if not path.isprintable() and any(ord(c) < 32 for c in path):
        return "holds a control character"
    if "\\" in path:
        return "holds a backslash; use forward slashes"
    if path.startswith("/"):
        return "is absolute"
    for part in path.split("/"):
        if part == "..":
            return "leaves the folder by '..'"
        if part in ("", "."):
            return "has an empty or '.' part"
        if ":" in part:
            return "holds a colon, which names a drive or a stream on Windows"
        if part.endswith((" ", ".")):
            return "has a part that ends in a space or a dot, which Windows drops"
        if part.split(".")[0].rstrip(" ").lower() in _WINDOWS_DEVICES:
            return f"has the part {part!r}, a device on Windows"
    return ""


def url_fault(url: str) -> str:
    """Why nothing must be fetched from ``url``, as the end of a sentence; "" if it may. The scheme is not judged."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "cannot be understood"
    user, at, _ = parts.netloc.rpartition("@")
    # abfs://CONTAINER@ACCOUNT is Azure's way to name a container; a password is none there either.
    if at and (parts.scheme not in ("abfs", "abfss") or not user or ":" in user or "@" in user):
        return "has a user or password in it, which everybody with the bundle could read"
    http = parts.scheme in ("http", "https")
    if http and not host:
        return "names no host"
    # fsspec would open what follows as a source of its own, whatever kinds are allowed. An IPv6 host is no chain.
    if "::" in (f"{parts.path}?{parts.query}" if http else url):
        return "holds '::', which chains it to another source"
    if "#" in url:
        return "has a fragment ('#'), which no server ever sees"
    return ""
