"""Every call of the service but ``ensure`` as a value: what to send, what comes back, how long it may take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from refit_agent.client import messages as m
from refit_agent.errors import SettingInvalid
from refit_agent.machine import Machine

T = TypeVar("T")
#: Longest time for an answer that takes no work, for reading or deleting a whole cache, and for the release of a
#: lease, which lapses by itself anyway.
_CALL_S, _WORK_S, _RELEASE_S = 30.0, 3600.0, 1.0
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Call(Generic[T]):
    """One call. ``kind`` is the type of the answer's body, type(None) for none; ``patience_s`` is for all of it."""

    __slots__ = ("body", "kind", "method", "patience_s", "target")

    def __init__(
        self, method: str, target: str, kind: type[T], body: object = None, patience_s: float = _CALL_S
    ) -> None:
        self.method = method
        self.target = target
        self.kind = kind
        self.body = None if body is None else msgspec.json.encode(body)
        self.patience_s = patience_s


def quoted(text: str) -> str:
    """``text`` percent-encoded, so that it cannot say another address (urllib.parse is slow to import)."""
    return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in text.encode("utf-8", "surrogateescape"))


def renew(lease: str, ttl_s: float) -> Call[m.ServiceLease]:
    """Let the lease last ``ttl_s`` seconds from now on."""
    return Call("POST", f"/v1/leases/{quoted(lease)}:renew", m.ServiceLease, {"ttl_s": ttl_s})


def release(lease: str) -> Call[None]:
    """End the lease."""
    return Call("DELETE", f"/v1/leases/{quoted(lease)}", type(None), patience_s=_RELEASE_S)


def status() -> Call[m.Status]:
    """What the service is and does."""
    return Call("GET", "/v1/status", m.Status)


def bundles() -> Call[m.BundleRecords]:
    """The registered bundles."""
    return Call("GET", "/v1/bundles", m.BundleRecords)


def add_bundle(path: str | os.PathLike[str], public_keys: Sequence[str] | None = None) -> Call[m.BundleRecord]:
    """Register the bundle at ``path``. Raises SettingInvalid for one that JSON cannot hold."""
    folder = os.path.abspath(path)
    try:
        return Call("POST", "/v1/bundles", m.BundleRecord, {"path": folder, "public_keys": public_keys})
    except UnicodeEncodeError:
        raise SettingInvalid(name="the bundle", value=folder, wanted="a path in UTF-8, as the service needs") from None


def remove_bundle(bundle: str) -> Call[None]:
    """Forget the bundle with this id."""
    return Call("DELETE", f"/v1/bundles/{quoted(bundle)}", type(None))


def gpus() -> Call[dict[str, Machine]]:
    """The machine, as "machine"."""
    return Call("GET", "/v1/gpus", dict[str, Machine])


def explain(bundle: str, model: str | None, profile: str | None, target: str | None) -> Call[dict[str, Any]]:
    """Which engine, and why none of the others; what is None is left out."""
    wanted = {"bundle": bundle, "model": model, "profile": profile, "target": target}
    query = "&".join(f"{name}={quoted(text)}" for name, text in wanted.items() if text is not None)
    return Call("GET", f"/v1/explain?{query}", dict[str, Any])


def cache() -> Call[dict[str, Any]]:
    """What is in the cache."""
    return Call("GET", "/v1/cache", dict[str, Any])


def verify_cache(keys: list[str] | None) -> Call[dict[str, Any]]:
    """Compare cached engines with their hashes."""
    return Call("POST", "/v1/cache:verify", dict[str, Any], {"keys": keys}, _WORK_S)


def prune_cache(max_bytes: int | None) -> Call[dict[str, Any]]:
    """Evict engines until the cache is no larger."""
    return Call("POST", "/v1/cache:prune", dict[str, Any], {"max_bytes": max_bytes}, _WORK_S)


def page() -> Call[m.PageLink]:
    """An address that opens the status page."""
    return Call("POST", "/v1/page", m.PageLink)
