"""A service of the test's own, where the client looks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .fake_service import Behaviour, FakeService, serving

Serve = Callable[..., FakeService]


@pytest.fixture
def socket_file(home: Path) -> Path:
    return home / "run" / "agent.sock"


@pytest.fixture
def serve(socket_file: Path) -> Iterator[Serve]:
    """Starts a service, sound or with the given behaviour."""
    with ExitStack() as stack:

        def start(behaviour: Behaviour | None = None) -> FakeService:
            return stack.enter_context(serving(socket_file, behaviour))

        yield start
