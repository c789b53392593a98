"""refit-agent-keep-warm with a stand-in for the agent that ends as the test says; the real one is in test_fleet_pods."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_peers import FLEET

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the script is for Linux")
SCRIPT = FLEET / "kubernetes" / "refit-agent-keep-warm"


class Keeper:
    """The running script. Each provisioning writes its arguments to ``calls``, says what is in ``events``, waits while
    there is ``hold``, and ends with the code in ``code``."""

    def __init__(self, work: Path) -> None:
        self.run = work / "run"
        self.work = work
        (work / "bin").mkdir()
        agent = work / "bin" / "refit-agent"
        agent.write_text(
            f'#!/bin/sh\ncd "{work}"\necho "$@" >>calls\ncat events\n'
            'while [ -e hold ]; do sleep 0.1; echo \'{"event":"progress"}\'; done\nexit "$(cat code)"\n'
        )
        agent.chmod(0o755)
        self.ends_with(0)
        (work / "events").write_text('{"event":"start"}\n')
        self.process: subprocess.Popen[str] | None = None

    def ends_with(self, code: int) -> None:
        (self.work / "code").write_text(str(code))

    def start(self, *bundles: str) -> subprocess.Popen[str]:
        command = [str(SCRIPT), "--public-key", "k.pub", "--every", "1", "--run", str(self.run), *bundles]
        env = {**os.environ, "PATH": f"{self.work / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        # It signals its process group, which must not be the tests'.
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        return self.process

    @property
    def calls(self) -> list[str]:
        path = self.work / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def ready(self) -> bool:
        return (self.run / "ready").exists()


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    one = Keeper(tmp_path)
    yield one
    if one.process is not None:
        # Its children too: they may have outlived it, and hold the pipe.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_ready_is_said_when_every_bundle_is_and_taken_back_when_one_is_not(keeper: Keeper) -> None:
    keeper.run.mkdir()
    (keeper.run / "ready").touch()  # of the container's last life
    (keeper.work / "hold").touch()
    keeper.start("/b/one", "/b/two")
    until(lambda: len(keeper.calls) == 1)
    until(lambda: not keeper.ready)
    (keeper.work / "hold").unlink()
    until(lambda: keeper.ready)
    assert [line.split()[:2] for line in keeper.calls[:2]] == [["provision", "/b/one"], ["provision", "/b/two"]]
    assert "--public-key k.pub" in keeper.calls[0] and "--progress=json" in keeper.calls[0]
    keeper.ends_with(6)
    until(lambda: not keeper.ready)
    keeper.ends_with(0)
    until(lambda: keeper.ready)
    assert keeper.process is not None and keeper.process.poll() is None


def test_one_failed_bundle_keeps_no_other_from_being_made(keeper: Keeper) -> None:
    keeper.ends_with(6)
    keeper.start("/b/one", "/b/two")
    until(lambda: len(keeper.calls) >= 2)
    assert keeper.calls[1].split()[1] == "/b/two" and not keeper.ready


def test_a_driver_that_does_not_answer_ends_it(keeper: Keeper) -> None:
    keeper.ends_with(4)
    assert keeper.start("/b/one").wait(30) == 4
    assert not keeper.ready


def test_it_is_alive_while_provisioning_says_something(keeper: Keeper) -> None:
    (keeper.work / "hold").touch()
    keeper.start("/b/one")
    alive = keeper.run / "alive"
    until(alive.exists)
    first = alive.stat().st_mtime_ns
    until(lambda: alive.stat().st_mtime_ns > first + 10**9)
    assert len(keeper.calls) == 1


@pytest.mark.parametrize("hold", [True, False])
def test_sigterm_ends_it_at_once_and_the_agent_with_it(keeper: Keeper, hold: bool) -> None:
    if hold:
        (keeper.work / "hold").touch()
    process = keeper.start("/b/one")
    until(lambda: len(keeper.calls) == 1 if hold else keeper.ready)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    # What is left of its group would still hold the pipe.
    out, _ = process.communicate(timeout=20)
    assert out.startswith('{"event":"start"}\n')
