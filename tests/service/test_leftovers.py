"""What a service that was killed while it wrote a small file left beside it: gone at the next start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_service.attempts import Attempts
from refit_service.loopback import listen_at_port
from refit_service.registry import Registry


def _listen(folder: Path) -> None:
    listen_at_port(str(folder / "agent.json"), 1).close()


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("warm.json", lambda folder: Attempts(str(folder))),
        ("bundles.json", lambda folder: Registry(str(folder)).load()),
        ("agent.json", _listen),
    ],
    ids=["attempts", "registry", "loopback"],
)
def test_old_leftovers_go_and_what_is_being_written_stays(
    tmp_path: Path, name: str, begin: Callable[[Path], object]
) -> None:
    """Nothing else in that folder does: another process may be at work on the young one."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    old, young, damaged, other = (folder / n for n in (f"{name}.0a1b2c3d.tmp", f"{name}.4e5f6a7b.tmp", f"{name}.damaged", "x.tmp"))  # fmt: skip
    for path in (old, young, damaged, other):
        path.touch()
        os.utime(path, (time.time() - (5 if path is young else 86400),) * 2)
    begin(folder)
    assert not old.exists()
    assert young.exists() and damaged.exists() and other.exists()
