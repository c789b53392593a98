from __future__ import annotations

from pathlib import Path

import pytest

from refit_agent.cache.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A cache that does not exist yet."""
    return Store(str(tmp_path / "cache"))
