"""Settings from the environment, read when they are asked for."""

from __future__ import annotations

import os

from refit_agent.errors import SettingInvalid

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: Refit and check of the largest engines take minutes on slow disks; more than this is a hang.
DEFAULT_DEADLINE_S = 900.0


def parse_size(text: str, name: str = "the size") -> int:
    """Bytes of a size such as "500M" or "20G" (powers of 1024). Raises SettingInvalid."""
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    try:
        value = int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise SettingInvalid(name=name, value=text, wanted="a size such as 500M or 20G")
    return value


#: Where weights may be fetched from when nobody said otherwise: what is encrypted, and asks for credentials of its own.
DEFAULT_PROTOCOLS = frozenset({"https", "s3", "gs", "gcs", "az", "abfs", "abfss"})


def fetch_protocols() -> frozenset[str]:
    """REFIT_AGENT_FETCH: kinds of URLs that may be fetched from, separated by commas; "" for none at all."""
    text = os.environ.get("REFIT_AGENT_FETCH")
    if text is None:
        return DEFAULT_PROTOCOLS
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def cache_quota() -> int | None:
    """REFIT_AGENT_CACHE_QUOTA in bytes, or None for the default."""
    text = os.environ.get("REFIT_AGENT_CACHE_QUOTA")
    return None if not text else parse_size(text, "REFIT_AGENT_CACHE_QUOTA")
