"""Hashing files in parallel."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from refit_agent.hash_files import MOST_THREADS, hash_files


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Twelve files of different sizes, the largest last, some of more than one piece."""
    paths = []
    for number in range(12):
        path = tmp_path / f"{number}"
        path.write_bytes(os.urandom(number * 300_000))
        paths.append(str(path))
    return paths


def test_hashes_come_in_the_order_of_the_files(files: list[str]) -> None:
    """Whatever the number of threads, and whichever file is done first."""
    wanted = [(hashlib.sha256(Path(p).read_bytes()).hexdigest(), os.path.getsize(p)) for p in files]
    for threads in (1, 2, None):
        assert hash_files(files, threads=threads) == wanted
    assert hash_files([]) == []


def test_a_file_that_cannot_be_read_does_not_stop_the_others(files: list[str], tmp_path: Path) -> None:
    """Its error stands in its place."""
    found = hash_files([str(tmp_path / "missing"), files[3], str(tmp_path)])
    assert isinstance(found[0], FileNotFoundError) and isinstance(found[2], OSError)
    assert found[1] == (hashlib.sha256(Path(files[3]).read_bytes()).hexdigest(), 900_000)


def test_bytes_are_told_by_one_thread_at_a_time(files: list[str]) -> None:
    """So a callback that adds up needs no lock, and its sum never goes back."""
    busy = threading.Lock()
    counts: list[int] = []
    threads: set[int] = set()

    def on_bytes(count: int) -> None:
        assert busy.acquire(blocking=False)
        threads.add(threading.get_ident())
        counts.append(count)
        time.sleep(0.001)
        busy.release()

    hash_files(files, on_bytes, threads=4)
    assert sum(counts) == sum(os.path.getsize(p) for p in files) and min(counts) > 0
    assert 1 < len(threads) <= 4


def test_no_more_threads_than_the_limit(files: list[str]) -> None:
    """However many are asked for."""
    threads: set[int] = set()

    def on_bytes(count: int) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.001)

    hash_files(files * 4, on_bytes, threads=1000)
    assert len(threads) <= MOST_THREADS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("of the callback"), ValueError("x")])
def test_what_the_callback_raises_ends_all(files: list[str], error: BaseException) -> None:
    """It comes out as it is, and no thread reads on."""
    calls = 0

    def on_bytes(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error

    before = threading.active_count()
    with pytest.raises(type(error)) as caught:
        hash_files(files, on_bytes, threads=3)
    assert caught.value is error and calls == 3
    assert threading.active_count() == before


def test_an_error_of_the_callback_is_not_one_of_the_file(files: list[str]) -> None:
    """An OSError that the callback raises for the last piece of the last file comes out, too."""

    def on_bytes(count: int) -> None:
        raise OSError("of the callback")

    with pytest.raises(OSError, match="of the callback"):
        hash_files(files[1:2], on_bytes)
