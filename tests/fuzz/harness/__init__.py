"""One module for each reader; `NAMES` lists them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Protocol, cast

NAMES = (
    "onnx_walker",
    "external_data",
    "manifest",
    "plan_header",
    "safetensors_index",
    "worker_events",
    "worker_jobs",
    "http_requests",
    "http_answers",
    "bundle_signature",
    "settings_file",
)


class Harness(Protocol):
    """What a harness module has; ``mutate`` may be missing."""

    check: Callable[[bytes], bool]
    mutate: Callable[[bytes, random.Random], bytes]


def load(name: str) -> Harness:
    """The harness of that name, imported now: importing starts what it needs."""
    return cast(Harness, importlib.import_module(f"{__name__}.{name}"))
