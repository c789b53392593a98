"""Answers on disk: believed only when they are surely ours."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from refit_agent.gpu.remembered import FILE, KEPT, recall, remember
from refit_agent.machine import Gpu, InstalledRuntime, Machine

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners of POSIX")
MACHINE = Machine(
    os="linux",
    arch="x86_64",
    gpus=(Gpu(index=0, name="NVIDIA A10", uuid="GPU-1", compute_capability="8.6", memory_total=1),),
    driver="580.1",
    runtimes=(InstalledRuntime(module="tensorrt_lean", version="11.4.0.106", cuda_major=13, folder="/x"),),
)


def test_round_trip(tmp_path: Path) -> None:
    state = str(tmp_path / "a" / "state")
    assert recall(state, "f") is None
    assert remember(state, "f", MACHINE)
    assert recall(state, "f") == MACHINE
    assert recall(state, "g") is None
    assert os.listdir(state) == [FILE]


@posix
def test_modes(tmp_path: Path) -> None:
    state = tmp_path / "state"
    remember(str(state), "f", MACHINE)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / FILE).stat().st_mode) == 0o600


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    state = str(tmp_path)
    for i in range(KEPT + 2):
        remember(state, str(i), MACHINE)
    assert [recall(state, str(i)) is not None for i in range(KEPT + 2)] == [False, False] + [True] * KEPT
    remember(state, "5", None)
    assert recall(state, "5") is None and recall(state, "6") is not None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"a": 1}', b'[{"fingerprint": "f"}]', b"\xff\xfe", b"[" * 90000])
def test_damage_is_as_good_as_nothing(tmp_path: Path, data: bytes) -> None:
    state = str(tmp_path)
    remember(state, "f", MACHINE)
    (tmp_path / FILE).write_bytes(data)
    assert recall(state, "f") is None
    assert remember(state, "f", MACHINE) and recall(state, "f") == MACHINE


@posix
@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    remember(str(tmp_path), "f", MACHINE)
    (tmp_path / FILE).chmod(mode)
    assert recall(str(tmp_path), "f") is None


@posix
@pytest.mark.skipif(sys.platform != "win32" and os.geteuid() != 0, reason="giving a file away needs root")
def test_another_users_file_is_not_believed(tmp_path: Path) -> None:
    remember(str(tmp_path), "f", MACHINE)
    os.chown(tmp_path / FILE, 12345, 12345)
    assert recall(str(tmp_path), "f") is None


@posix
def test_nothing_but_a_plain_file_is_opened(tmp_path: Path) -> None:
    remember(str(tmp_path / "real"), "f", MACHINE)
    for name, make in [
        ("link", lambda p: p.symlink_to(tmp_path / "real" / FILE)),
        ("fifo", lambda p: os.mkfifo(p)),
        ("folder", lambda p: p.mkdir()),
    ]:
        (tmp_path / name).mkdir()
        make(tmp_path / name / FILE)
        assert recall(str(tmp_path / name), "f") is None


@posix
def test_a_folder_that_all_may_write_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert not remember(str(tmp_path), "f", MACHINE)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not remember(str(tmp_path / "file" / "state"), "f", MACHINE)


def test_a_failed_replace_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert not remember(str(tmp_path), "f", MACHINE)
    assert os.listdir(tmp_path) == [FILE]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    state = str(tmp_path)
    remember(state, "f", MACHINE)
    faults: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if recall(state, "f") != MACHINE:
                faults.append("lost")

    thread = threading.Thread(target=read)
    thread.start()
    for i in range(100):
        remember(state, f"other {i % 3}", MACHINE)
    done.set()
    thread.join()
    assert faults == []
