"""Small files of the state folder, replaced whole."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from refit_agent.state_file import drop_leftovers, replace_file


def test_the_file_is_the_user_s_alone_and_its_folder_is_made(tmp_path: Path) -> None:
    """Whatever the umask."""
    before = os.umask(0)
    try:
        replace_file(str(tmp_path / "state" / "x.json"), b"one", lasting=True)
        replace_file(str(tmp_path / "state" / "x.json"), b"two")
    finally:
        os.umask(before)
    path = tmp_path / "state" / "x.json"
    assert path.read_bytes() == b"two" and os.listdir(path.parent) == ["x.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_cannot_be_written_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """A folder has the name."""
    path = tmp_path / "x.json"
    path.mkdir()
    with pytest.raises(OSError):
        replace_file(str(path), b"one")
    assert os.listdir(tmp_path) == ["x.json"] and path.is_dir()


def test_no_reader_sees_half_of_it(tmp_path: Path) -> None:
    """Two writers, one reader."""
    path = tmp_path / "x"
    texts = [letter * 200_000 for letter in (b"a", b"b")]
    replace_file(str(path), texts[0])
    ends = time.monotonic() + 0.5

    def write(text: bytes) -> None:
        while time.monotonic() < ends:
            replace_file(str(path), text)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while time.monotonic() < ends:
        seen.add(path.read_bytes())
    for writer in writers:
        writer.join()
    assert seen <= set(texts) and os.listdir(tmp_path) == ["x"]


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    """Of this file alone."""
    old, young, other = (tmp_path / name for name in ("x.json.1.tmp", "x.json.2.tmp", "y.json.1.tmp"))
    for path in (old, young, other):
        path.touch()
        os.utime(path, (time.time() - (5 if path is young else 86400),) * 2)
    replace_file(str(tmp_path / "x.json"), b"")
    assert not old.exists() and young.exists() and other.exists()
    drop_leftovers(str(tmp_path / "nowhere"), "")
