from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import REAL, shim

if sys.platform == "win32":
    pytest.skip("the service needs Unix sockets", allow_module_level=True)

from .running import Running


@pytest.fixture
def service(home: Path) -> Iterator[Running]:
    """A running service."""
    with Running(home) as running:
        yield running


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Running]]:
    """Starts services with settings of the test's own."""
    started: list[Running] = []

    def begin(**options: Any) -> Running:
        started.append(Running(options.pop("home", home), **options))
        return started[-1].start()

    yield begin
    for running in started:
        running.kill()


@pytest.fixture
def slow_runtime(tmp_path: Path) -> Path:
    """A runtime whose import lasts until the file "go" is in this folder; it counts the imports in "count"."""
    wait = """
    open(os.path.join(HERE, "count"), "a").write("x")
    ends = time.monotonic() + 60
    while not os.path.exists(os.path.join(HERE, "go")) and time.monotonic() < ends:
        time.sleep(0.02)
    """
    return shim(tmp_path / "slow", textwrap.dedent(wait) + REAL)
