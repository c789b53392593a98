"""Sizes of TensorRT's memory pools as trtexec takes them: ``workspace:1024,tacticSharedMem:48K``."""

from __future__ import annotations

import re

from refit_agent.authoring.build.options import Pool
from refit_agent.authoring.errors import BuildOptionsInvalid

_NAMES: dict[str, Pool] = {"workspace": "workspace", "tacticsharedmem": "tactic-shared-memory"}
#: Base 2; MiB where there is no letter.
_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "": 1 << 20}
_SIZE = re.compile(r"(?P<number>[0-9]{1,12}(?:\.[0-9]{1,12})?)(?P<unit>[BKMG]?)(?:i?B)?", re.IGNORECASE)


def parse_pools(text: str) -> dict[Pool, int]:
    """Bytes by pool, rounded down. Raises BuildOptionsInvalid."""
    pools: dict[Pool, int] = {}
    for part in text.split(","):
        name, colon, size = part.partition(":")
        match = _SIZE.fullmatch(size.strip())
        pool = _NAMES.get(name.strip().lower())
        if not colon or pool is None or match is None:
            detail = f"--mem-pool-size has {part!r}, which is not workspace:SIZE or tacticSharedMem:SIZE, such as workspace:512M"
            raise BuildOptionsInvalid(detail=detail)
        if pool in pools:
            raise BuildOptionsInvalid(detail=f"--mem-pool-size gives {name.strip()} twice")
        pools[pool] = int(float(match["number"]) * _UNITS[match["unit"].upper()])
    return pools
