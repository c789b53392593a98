from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_agent.runtimes import write_file
from refit_agent.runtimes.write_file import write_durably

Mount = Callable[[str], Path]


def parts(*pieces: tuple[int, bytes]) -> list[tuple[int, memoryview]]:
    return [(offset, memoryview(data)) for offset, data in pieces]


def hashers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if getattr(t, "_target", None) is write_file._hash]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_file, "_PIECE_BYTES", 1000)


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, b"abc")],
        [(0, b"")],
        [],
        [(0, b"abc"), (3, b"def")],
        [(5, b"abc"), (100, b"d" * 2500), (2700, b"")],
        [(0, os.urandom(3000)), (4096, os.urandom(1001))],
    ],
)
@pytest.mark.usefixtures("small_pieces")
def test_a_file_is_its_parts_with_zeros_between(tmp_path: Path, pieces: list[tuple[int, bytes]]) -> None:
    """Content, size and hash agree, in pieces too."""
    wanted = bytearray()
    for offset, data in pieces:
        wanted += bytes(offset - len(wanted)) + data
    seen: list[int] = []
    file = write_durably(str(tmp_path / "f"), parts(*pieces), seen.append)
    assert (tmp_path / "f").read_bytes() == wanted
    assert file == ("f", len(wanted), hashlib.sha256(wanted).hexdigest())
    assert seen == sorted(set(seen))
    assert max((length for length in map(len, pieces)), default=0) <= 2
    if pieces and pieces[-1][1]:
        assert seen[-1] == len(wanted)


def test_the_file_is_on_the_disk_when_the_call_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced once, after the last byte, and before it is closed."""
    sizes: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), real(fd)))
    write_durably(str(tmp_path / "f"), parts((0, b"x" * 5000)))
    assert sizes == [5000]


def test_a_disk_that_loses_the_data_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some disks tell of a failed write only at the sync."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        write_durably(str(tmp_path / "f"), parts((0, b"x")))


@pytest.mark.usefixtures("small_pieces")
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take less than it was given."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[:7]))
    data = os.urandom(3003)
    file = write_durably(str(tmp_path / "f"), parts((10, data)))
    assert (tmp_path / "f").read_bytes() == bytes(10) + data
    assert file.size == 3013


def test_a_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    """Nor one that a symbolic link leads to."""
    (tmp_path / "victim").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("victim", "link"):
        with pytest.raises(FileExistsError):
            write_durably(str(tmp_path / name), parts((0, b"new")))
    assert (tmp_path / "victim").read_bytes() == b"old"
    assert hashers() == []


def test_the_file_is_the_user_s_alone(tmp_path: Path) -> None:
    """Weights are nobody else's to read."""
    write_durably(str(tmp_path / "f"), parts((0, b"x")))
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_an_error_with_its_number(mounted: Mount) -> None:
    """And no file of the full size is told of."""
    place = mounted("size=256k")
    with pytest.raises(OSError) as info:
        write_durably(str(place / "f"), parts((0, bytes(range(256)) * 4096)))
    assert info.value.errno == errno.ENOSPC
    assert hashers() == []


@pytest.mark.usefixtures("small_pieces")
def test_after_an_error_nobody_goes_on_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of gigabytes that nobody wants any more would keep the caller waiting."""
    hashed = 0

    class Slow:
        def update(self, data: bytes) -> None:
            nonlocal hashed
            hashed += len(data)
            time.sleep(0.01)

    def stop(done: int) -> None:
        raise InterruptedError("stop")

    monkeypatch.setattr(hashlib, "sha256", Slow)
    start = time.monotonic()
    with pytest.raises(InterruptedError):
        write_durably(str(tmp_path / "f"), parts((0, bytes(2_000_000))), stop)
    assert time.monotonic() - start < 5
    assert hashed < 1_000_000
    assert hashers() == []


def test_a_hash_that_fails_is_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of what came before would be taken for the file's."""

    class Broken:
        def update(self, data: bytes) -> None:
            raise MemoryError

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr(hashlib, "sha256", Broken)
    with pytest.raises(MemoryError):
        write_durably(str(tmp_path / "f"), parts((0, b"x" * 5000)))
