"""Folders in the making: those of commands that live stay, the others go."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from refit_agent.authoring import staging
from refit_agent.authoring.staging import Staging, remove_abandoned


def test_what_lives_stays_and_what_was_abandoned_goes(tmp_path: Path) -> None:
    """Of that prefix alone."""
    living = Staging(str(tmp_path), "new-")
    dead = Staging(str(tmp_path), "new-")
    dead._alive.release()
    (tmp_path / "old-1").mkdir()
    (tmp_path / "new-file").write_text("")
    remove_abandoned(str(tmp_path), "new-")
    assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(living.path), "new-file", "old-1"])
    living.remove()
    assert sorted(os.listdir(tmp_path)) == ["new-file", "old-1"]


@pytest.mark.skipif(sys.platform != "linux", reason="it reads what is open by its number")
def test_nothing_in_it_is_open_when_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows removes no file that is open, and the folder would stay for ever."""
    removed: list[str] = []

    def rmtree(path: str, **options: bool) -> None:
        descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        assert not [fd for fd in descriptors if os.path.exists(fd) and os.readlink(fd).startswith(path)]
        removed.append(path)
        original(path, **options)

    original = shutil.rmtree
    monkeypatch.setattr(staging.shutil, "rmtree", rmtree)
    (tmp_path / "new-1").mkdir()
    (tmp_path / "new-1/alive").touch()
    remove_abandoned(str(tmp_path), "new-")
    mine = Staging(str(tmp_path), "new-")
    mine.remove()
    assert removed == [str(tmp_path / "new-1"), mine.path] and os.listdir(tmp_path) == []
