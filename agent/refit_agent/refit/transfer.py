"""Fetch one file of a bundle from elsewhere, inside the worker: resumed, bounded, compared with its hash.

https goes through the standard library, everything else (s3, gs, az, …) through fsspec and the package that it
asks for. What has come stays in the job's file, whatever ends the transfer; the next try goes on from there.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from typing import Any, BinaryIO
from urllib.parse import unquote, unquote_plus, urlsplit

from refit_agent.errors import FetchFailed, FetchLibraryMissing, FetchMismatch
from refit_agent.refit.messages import Done, FetchJob, FileResult, Phase
from refit_agent.shown_url import shown

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
#: Tries in a row that bring not one byte; one that brings something begins the count anew.
_TRIES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_REPORT_INTERVAL_S = 0.1
#: Worth another try: too many requests, or the server's own trouble.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_QUERY = re.compile(r"\?[^\s'\"<>]+")
_LONGEST_TEXT = 300
#: A shorter one is taken for a word or a number, which would be missed in texts that have nothing to do with it.
_SHORTEST_SECRET = 4


class _Interrupted(Exception):  # noqa: N818 - not an error yet: there will be another try
    """The transfer ended early; the message says how."""


def transfer(job: FetchJob, report: Callable[[Phase], None]) -> Done:
    """Bring ``job.target`` to what ``job.size`` and ``job.sha256`` say, and the disk.

    Raises:
        FetchFailed: the source cannot be reached, refuses, or has something else.
        FetchMismatch: it has a file of another content; nothing of it is kept.
        FetchLibraryMissing: a package that this kind of URL needs is not installed.
    """
    fd = os.open(job.target, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(fd, "r+b", buffering=0) as file:
        part = _Part(job, file, report)
        resumed = part.position > 0
        _complete(job, part)
        if part.digest() != job.sha256 and resumed:
            # What an earlier try left was not what it should have been: once more, from the beginning.
            part.restart()
            _complete(job, part)
        if part.digest() != job.sha256:
            part.restart()
            raise FetchMismatch(url=shown(job.url), detail=f"its SHA-256 is not {job.sha256}, which the manifest gives")
        os.fsync(fd)
    name = os.path.basename(job.target)
    result = FileResult(name=name, size=job.size, sha256=job.sha256)
    return Done(files=(result,), runtime_version="", check="", golden_error=None, seconds={})


def scrubbed(text: str, url: str) -> str:
    """Somebody else's ``text`` about ``url``, in one line, without what `shown` leaves out of it or of any other URL."""
    # Before anything is cut: a secret that is not whole is not found.
    text = _URL.sub(lambda found: shown(found[0]), text)
    for secret in _secrets(url):
        text = text.replace(secret, "…")
    text = " ".join(_QUERY.sub("?…", text).split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _secrets(url: str) -> list[str]:
    """What must not be seen of a URL, longest first: whole, by its parts, and as they are decoded."""
    rest = url.partition("://")[2]
    query = rest.partition("#")[0].partition("?")[2]
    user = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
    found = {query, user, *(pair.partition("=")[2] for pair in query.split("&")), user.partition(":")[2]}
    found |= {decode(part) for part in found for decode in (unquote, unquote_plus)}
    return sorted((part for part in found if len(part) >= _SHORTEST_SECRET), key=len, reverse=True)


def _foreign(error: BaseException, url: str) -> str:
    """An exception of somebody else's in words that may be shown."""
    text = scrubbed(str(getattr(error, "reason", "") or error), url)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Part:
    """The file on its way: what is there counts as come, and is hashed as it comes."""

    def __init__(self, job: FetchJob, file: BinaryIO, report: Callable[[Phase], None]) -> None:
        self._job, self._file, self._report = job, file, report
        self._hash = hashlib.sha256()
        self._reported = 0.0
        self.position = 0
        if os.fstat(file.fileno()).st_size > job.size:
            self.restart()
        while data := file.read(_CHUNK_BYTES):
            self._hash.update(data)
            self.position += len(data)

    def restart(self) -> None:
        """Nothing has come."""
        os.ftruncate(self._file.fileno(), 0)
        self._file.seek(0)
        self._hash = hashlib.sha256()
        self.position = 0

    def add(self, data: bytes) -> None:
        """Some more has come. Raises FetchMismatch for more than the whole."""
        if self.position + len(data) > self._job.size:
            self.restart()
            raise FetchMismatch(
                url=shown(self._job.url), detail=f"it is larger than the {self._job.size} bytes that the manifest gives"
            )
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)
        self.position += len(data)
        now = time.monotonic()
        if now - self._reported >= _REPORT_INTERVAL_S or self.position == self._job.size:
            self._reported = now
            self._report(Phase(phase="fetch", done=self.position, total=self._job.size))

    def expect(self, total: int | None) -> None:
        """The source says that the whole has ``total`` bytes. Raises FetchMismatch: no need to fetch them."""
        if total is not None and total != self._job.size:
            detail = f"it has {total} bytes and should have {self._job.size}"
            raise FetchMismatch(url=shown(self._job.url), detail=detail)

    def digest(self) -> str:
        return self._hash.hexdigest()


def _complete(job: FetchJob, part: _Part) -> None:
    """Try until everything has come, as long as every few tries bring something."""
    vain, furthest = 0, part.position
    while part.position < job.size:
        why = ""
        try:
            for data in _pieces(job.url, part):
                part.add(data)
            if part.position < job.size:
                why = f"it ended after {part.position} of {job.size} bytes"
        except _Interrupted as error:
            why = str(error)
        # Further than ever, or it counts as nothing: a source that always breaks off at the same place ends here.
        vain = 0 if part.position > furthest else vain + 1
        furthest = max(furthest, part.position)
        if why and vain >= _TRIES:
            raise FetchFailed(url=shown(job.url), detail=why)
        if why:
            time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**vain))


def _pieces(url: str, part: _Part) -> Iterator[bytes]:
    """The bytes from ``part.position`` on, or from the beginning if the source cannot go on where we were."""
    if urlsplit(url).scheme in ("http", "https"):
        yield from _by_http(url, part)
    else:
        yield from _by_fsspec(url, part)


# ---------------------------------------------------------------- https


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows no redirection that gives up encryption, nor one to another kind of source."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != urlsplit(req.full_url).scheme:
            raise FetchFailed(url=shown(req.full_url), detail=f"it leads to {shown(newurl)}, another kind of address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _by_http(url: str, part: _Part) -> Iterator[bytes]:
    # No compression: what is counted, resumed and hashed are the file's own bytes.
    headers = {"Accept-Encoding": "identity", "User-Agent": "refit-agent"}
    if part.position:
        headers["Range"] = f"bytes={part.position}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the scheme was compared with a list
    try:
        with urllib.request.build_opener(_SameScheme).open(request, timeout=_TIMEOUT_S) as answer:
            if answer.status == 206:
                begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
                if begins != str(part.position):
                    raise _Interrupted(f"it answered with the bytes from {begins or '?'} on, not {part.position}")
            elif part.position:
                part.restart()  # it sends the whole
            part.expect(_total(answer.headers, part.position))
            while data := answer.read1(_CHUNK_BYTES):  # what has come, not the whole chunk: it may be all for long
                yield data
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            part.restart()
            raise _Interrupted("it has not as many bytes as have come already") from error
        why = f"HTTP {error.code} {scrubbed(str(error.reason), url)}"
        if error.code in _PASSING:
            raise _Interrupted(why) from error
        raise FetchFailed(url=shown(url), detail=why) from error
    except http.client.IncompleteRead as error:
        raise _Interrupted("the connection broke") from error
    except (http.client.InvalidURL, ValueError) as error:  # ours, or one that it was redirected to
        raise FetchFailed(url=shown(url), detail=_foreign(error, url)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_foreign(error, url)) from error


def _total(headers: Message, position: int) -> int | None:
    """The size of the whole file, where the answer tells."""
    whole = headers.get("Content-Range", "").rpartition("/")[2]
    if whole.isdecimal():
        return int(whole)
    length = headers.get("Content-Length", "")
    return position + int(length) if length.isdecimal() else None


# ---------------------------------------------------------------- everything else


def _by_fsspec(url: str, part: _Part) -> Iterator[bytes]:
    if "::" in url:
        # To fsspec these are several addresses, and only the first one's scheme was compared with the list.
        raise FetchFailed(url=shown(url), detail="it has '::' in it, which names a source within another")
    try:
        import fsspec
    except ImportError as error:
        raise FetchLibraryMissing(url=shown(url), detail="fsspec cannot be imported") from error
    try:
        # Not url_to_fs, which follows chains.
        scheme = urlsplit(url).scheme
        kind = fsspec.get_filesystem_class(scheme)
        system, path = fsspec.filesystem(scheme, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)
    except ImportError as error:
        raise FetchLibraryMissing(url=shown(url), detail=scrubbed(str(error), url)) from error
    except Exception as error:  # each kind of source raises its own, for an address as for missing credentials
        raise FetchFailed(url=shown(url), detail=_foreign(error, url)) from error
    try:
        # Nothing kept in memory: we read front to back, once.
        with system.open(path, "rb", block_size=4 * _CHUNK_BYTES, cache_type="readahead") as source:
            source.seek(part.position)
            while data := source.read(_CHUNK_BYTES):
                yield data
    except FileNotFoundError as error:
        raise FetchFailed(url=shown(url), detail="there is no such file") from error
    except PermissionError as error:
        raise FetchFailed(url=shown(url), detail=f"access is denied: {_foreign(error, url)}") from error
    except FetchMismatch:
        raise
    except Exception as error:  # each kind of source raises its own
        raise _Interrupted(_foreign(error, url)) from error
