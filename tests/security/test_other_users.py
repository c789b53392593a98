"""What another user of the machine has put where our folders are said to be, or tries to get out of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import MODEL
from refit_agent import ensure_engine
from refit_agent.cache.store import Store
from refit_agent.errors import CacheInsecure, WorkerCrashed
from refit_agent.failures import Failures
from service.running import Running

NOBODY = 65534
pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="playing another user needs root"
)


def _as_nobody(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    head = f"import os, sys\nos.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    command = [sys.executable, "-I", "-c", head + code, *map(str, arguments)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=30)


def _start(home: Path) -> tuple[int | None, bytes]:
    """How a service with that home ended, or None if it listens; and what it said."""
    running = Running(home)
    try:
        running.start()
    except AssertionError as error:  # with what it said in its message
        assert running.process is not None
        return running.process.wait(10), str(error).encode()
    finally:
        running.kill()
    return None, b""


def _foreign_folder(home: Path, target: Path) -> None:
    (home / "state" / "logs").mkdir(parents=True)
    (home / "state/logs/service.log").symlink_to(target)
    for path in (home / "state", home / "state/logs"):
        os.chown(path, NOBODY, NOBODY)


def _folder_for_all(home: Path, target: Path) -> None:
    (home / "state" / "logs").mkdir(parents=True)
    (home / "state/logs/service.log").symlink_to(target)
    (home / "state").chmod(0o777)


def _foreign_link(home: Path, target: Path) -> None:
    del target
    home.mkdir()
    ours = home.parent / "ours"
    ours.mkdir()
    (home / "state").symlink_to(ours)
    os.chown(home / "state", NOBODY, NOBODY, follow_symlinks=False)


@pytest.mark.parametrize("plant", [_foreign_folder, _folder_for_all, _foreign_link], ids=lambda f: f.__name__)
def test_a_service_uses_no_state_that_another_user_could_have_written(
    plant: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """It would append its log to what a link names, and make engines of bundles that somebody else registered."""
    home, mine = tmp_path / "planted", tmp_path / "bashrc"
    mine.write_text("mine\n")
    plant(home, mine)
    code, said = _start(home)
    assert code == 7
    assert b"state-insecure" in said
    assert mine.read_text() == "mine\n"
    assert not (tmp_path / "ours" / "logs").exists()


def test_a_service_uses_state_of_its_own(tmp_path: Path) -> None:
    """Also behind a link of this user's."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "state").symlink_to(tmp_path / "elsewhere")
    assert _start(tmp_path / "linked") == (None, b"")
    assert (tmp_path / "elsewhere/logs/service.log").read_text()


@pytest.mark.parametrize("owner", [NOBODY, 0], ids=["another user", "this user"])
def test_a_cache_behind_another_user_s_link_is_not_used(owner: int, tmp_path: Path) -> None:
    """It may lead to any folder of this user's, of which what lies in "tmp" would be taken for leftovers."""
    mine = tmp_path / "project"
    (mine / "tmp").mkdir(parents=True)
    (mine / "tmp" / "notes.txt").write_text("mine")
    (tmp_path / "cache").symlink_to(mine)
    os.chown(tmp_path / "cache", owner, owner, follow_symlinks=False)
    store = Store(str(tmp_path / "cache"))
    if owner == os.geteuid():
        store.check_owner()
        return
    with pytest.raises(CacheInsecure, match="a link that user"):
        store.check_owner()
    with pytest.raises(CacheInsecure):
        store.prepare()
    assert os.listdir(mine) == ["tmp"]


def test_another_user_does_not_say_what_is_not_to_be_tried(tmp_path: Path) -> None:
    """A remembered failure keeps an engine from being made."""
    failures = Failures(str(tmp_path))
    failures.remember("k", WorkerCrashed(how="signal SIGSEGV", phase="open", log=""))
    assert failures.recall("k") is not None
    os.chown(tmp_path / "failures/k.json", NOBODY, NOBODY)
    assert failures.recall("k") is None


def test_nobody_else_reads_what_was_made(bundle: Path, home: Path) -> None:
    """The weights are the app's property: neither listed nor read, although every folder above lets others through."""
    with ensure_engine(bundle, MODEL, service=False) as engine:
        path = engine.path
    above = [p for p in home.parents if p != Path("/")]
    modes = {p: p.stat().st_mode & 0o7777 for p in above}
    try:
        for folder in above:
            folder.chmod(modes[folder] | 0o055)
        code = """
try:
    open(sys.argv[1], "rb").read(1)
except PermissionError:
    pass
else:
    sys.exit("read")
try:
    os.listdir(sys.argv[2])
except PermissionError:
    sys.exit(0)
sys.exit("listed")
"""
        home.chmod(0o755)
        child = _as_nobody(code, path, home / "cache")
        assert child.returncode == 0, child.stderr
    finally:
        for folder in above:
            folder.chmod(modes[folder])
