from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_machine import Machine, make_machine, packages


@pytest.fixture(scope="session")
def fleet_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Debian with Python and the tools that fetch, of which tests make copies."""
    work = tmp_path_factory.mktemp("fleet-base")
    yield make_machine(work / "root")
    shutil.rmtree(work)


@pytest.fixture(scope="session")
def fleet_packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], list[Path]]]:
    """The packages to install on it, and what of this machine they need."""
    work = tmp_path_factory.mktemp("fleet-packages")
    yield packages(work)
    shutil.rmtree(work)
