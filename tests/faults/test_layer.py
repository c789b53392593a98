"""The fault layer does what it says: a matrix whose faults do not happen would always be passed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .layer import Call, Fault, Layer, Spot, read_trace

KEY, OTHER = "ab" * 32, "cd" * 32
_WORK = """
import os, sys
root = sys.argv[1]
with open(root + "/home/a", "wb", buffering=0) as file:
    for _ in range(3):
        print(file.write(b"0123456789"))
    os.fsync(file.fileno())
os.mkdir(root + "/home/d")
os.rename(root + "/home/a", root + "/home/d/b")
print(os.listdir(root + "/home/d"))
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def spot(tmp_path: Path) -> Spot:
    (tmp_path / "root" / "home").mkdir(parents=True)
    return Spot(tmp_path / "root", tmp_path / "notes", {"K": KEY})


@pytest.fixture
def run(layer: Layer, spot: Spot) -> Run:
    """Runs a program under the layer, with one fault in it."""

    def start(deed: str = "", call: str = "", path: str = "", number: int = 1, code: str = _WORK, **env: str) -> object:
        fault = Fault(Call("parent", 0, call, path, number, "-"), deed) if deed else None
        command = [sys.executable, "-c", code, str(spot.root)]
        return subprocess.run(
            command, env=os.environ | layer.environment(spot, fault) | env, capture_output=True, text=True
        )

    return start  # type: ignore[return-value]


def words(spot: Spot) -> list[str]:
    return [c.words for c in read_trace(spot)[0]]


def test_every_call_below_the_root_is_told_in_its_order(run: Run, spot: Spot) -> None:
    """And no other: neither Python's own files nor the layer's."""
    assert run().stdout == "10\n10\n10\n['b']\n"
    assert words(spot) == [
        "parent create home/a #1",
        "parent stat home/a #1",
        "parent write home/a #1",
        "parent write home/a #2",
        "parent write home/a #3",
        "parent fsync home/a #1",
        "parent mkdir home/d #1",
        "parent rename home/a > home/d/b #1",
        "parent list home/d #1",
    ]
    assert not read_trace(spot)[1]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (f"tmp/{KEY}.123-0a1b2c3d/model.onnx", "tmp/K.*/model.onnx"),
        (f"tmp/{KEY}.123-0a1b2c3d.log", "tmp/K.*.log"),
        (f"engines/{OTHER}/entry.json", "engines/?/entry.json"),
        (f"locks/{KEY}.lock", "locks/K.lock"),
        (f"quarantine/{OTHER}.0a1b2c3d", "quarantine/?.*"),
        (f"failures/{KEY}.0a1b2c3d.tmp", "failures/K.*.tmp"),
        ("machine.json.x1_abcde", "machine.json.*"),
        ("machine.json", "machine.json"),
        ("facade/decade", "facade/decade"),
        (KEY + "ef", KEY + "ef"),
    ],
)
def test_what_is_another_name_each_time_is_shown_as_the_same(run: Run, spot: Spot, name: str, shown: str) -> None:
    """So that a call of one run can be named in the next."""
    run(code="import os, sys; os.path.exists(sys.argv[1] + '/' + sys.argv[2])".replace("sys.argv[2]", repr(name)))
    assert words(spot) == [f"parent stat {shown} #1"]


def test_a_kill_comes_before_the_call(run: Run, spot: Spot) -> None:
    done = run("kill", "write", "home/a", 3)
    assert done.returncode == -9
    assert (spot.root / "home" / "a").read_bytes() == b"0123456789" * 2
    assert read_trace(spot)[1]


def test_a_torn_write_has_one_half_and_ends_the_process(run: Run, spot: Spot) -> None:
    assert run("torn", "write", "home/a", 2).returncode == -9
    assert (spot.root / "home" / "a").read_bytes() == b"012345678901234"


def test_a_short_write_says_so(run: Run, spot: Spot) -> None:
    assert run("short", "write", "home/a", 2).stdout.splitlines()[:3] == ["10", "5", "10"]
    assert (spot.root / "home" / "d" / "b").stat().st_size == 25


@pytest.mark.parametrize("call", ["create", "write", "fsync"])
def test_an_error_is_that_of_the_one_call(run: Run, spot: Spot, call: str) -> None:
    done = run(f"errno:{errno.EIO}", call, "home/a")
    assert "Input/output error" in done.stderr
    assert read_trace(spot)[1]


def test_a_full_disk_stays_full_and_can_still_rename(run: Run, spot: Spot) -> None:
    """For a process that comes later, too."""
    code = """
import os, subprocess, sys
home = sys.argv[1] + "/home/"
open(home + "a", "w").close()
try:
    open(home + "b", "w")
except OSError as error:
    print(error.strerror)
os.rename(home + "a", home + "c")
subprocess.run([sys.executable, "-c", "import sys; open(sys.argv[1] + 'd', 'w')", home])
"""
    done = run("full", "create", "home/b", code=code)
    assert done.stdout == "No space left on device\n"
    assert "No space left on device" in done.stderr
    assert os.listdir(spot.root / "home") == ["c"]


def test_a_read_only_disk_can_be_read(run: Run, spot: Spot) -> None:
    done = run("readonly", "mkdir", "home/d")
    assert "Read-only file system" in done.stderr
    assert (spot.root / "home" / "a").stat().st_size == 30


def test_slow_is_slow_and_nothing_else(run: Run, spot: Spot) -> None:
    begun = time.monotonic()
    assert run("slow:400", "rename", "home/a > home/d/b").stdout.endswith("['b']\n")
    assert time.monotonic() - begun >= 0.4


def test_a_worker_s_phases_are_calls_and_its_parent_can_be_killed(run: Run, layer: Layer, spot: Spot) -> None:
    """A pseudo-worker reports as ours does; the parent's end is seen by whoever waits for it."""
    worker = 'import os; os.write(1, b\'{\\"type\\":\\"phase\\",\\"phase\\":\\"open\\",\\"done\\":0}\\n\')'
    parent = f"""
import os, subprocess, sys
env = os.environ | {{"REFIT_AGENT_PARENT_PID": str(os.getpid())}}
subprocess.run([sys.executable, "-c", {worker!r}], env=env, stdout=subprocess.DEVNULL)
"""
    assert run(code=parent).returncode == 0
    assert words(spot) == ["worker phase open #1"]
    fault = Fault(Call("worker", 0, "phase", "open", 1, "open"), "kill-parent")
    env = os.environ | layer.environment(spot, fault)
    assert subprocess.run([sys.executable, "-c", parent, str(spot.root)], env=env).returncode == -9
    assert read_trace(spot)[1]


def test_a_fault_that_is_not_reached_is_told(run: Run, spot: Spot) -> None:
    assert run("kill", "write", "home/a", 4).returncode == 0
    assert not read_trace(spot)[1]
