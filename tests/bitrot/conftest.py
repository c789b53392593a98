from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundles import MODEL, make_bundle
from refit_agent import ensure_engine

from .victim import Victim


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A home with one engine in its cache, its bundle, and the engine's key. Nobody changes them."""
    root = tmp_path_factory.mktemp("provisioned")
    bundle = make_bundle(root / "bundle", external=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFIT_AGENT_HOME", str(root / "home"))
        with ensure_engine(bundle, MODEL) as engine:
            return root / "home", bundle, engine.key


@pytest.fixture
def victim(provisioned: tuple[Path, Path, str], home: Path) -> Victim:
    """An engine in the cache of the test's own home."""
    shutil.copytree(provisioned[0], home)
    return Victim(home, provisioned[1], provisioned[2])
