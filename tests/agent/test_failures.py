from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from refit_agent import failures as module
from refit_agent.errors import (
    BundleFileMismatch,
    Cancelled,
    DeviceFailed,
    DiskFull,
    GoldenMismatch,
    PlanRefused,
    RefitAgentError,
    RefitError,
    WeightsNotIdentical,
    WorkerCrashed,
    WorkerTimeout,
)
from refit_agent.failures import Failures

HOUR, DAY = 3600.0, 86400.0
KEY = "k"
CRASH = WorkerCrashed(how="signal SIGSEGV", phase="open", log="boom")
REFUSED = PlanRefused(runtime="TensorRT", version="10.0", path="/p", detail="no")
WRONG = GoldenMismatch(output="y", detail="is missing")


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=clock.time))
    return clock


@pytest.fixture
def failures(tmp_path: Path) -> Failures:
    return Failures(str(tmp_path / "state"))


def test_a_lasting_failure_is_recalled_for_good_and_as_it_was(failures: Failures, clock: Clock) -> None:
    """Class, words and facts are those of the first time."""
    assert failures.recall(KEY) is None
    failures.remember(KEY, WRONG)
    clock.now += 3650 * DAY
    error = failures.recall(KEY)
    assert type(error) is type(WRONG)
    assert str(error) == str(WRONG)
    assert failures.recall("other key") is None


@pytest.mark.parametrize("error", [CRASH, REFUSED, WorkerTimeout(seconds=1, phase="open", log="")])
def test_what_may_pass_is_forgotten_after_a_while_that_doubles(
    failures: Failures, clock: Clock, error: RefitAgentError
) -> None:
    """An hour the first time, two the second, and never more than a week."""
    for hours in (1, 2, 4, 8, 16, 32, 64, 128, 168, 168):
        failures.remember(KEY, error)
        clock.now += hours * HOUR - 1
        assert failures.recall(KEY) is not None, hours
        clock.now += 2
        assert failures.recall(KEY) is None, hours


def test_a_clock_that_was_set_back_does_not_keep_a_passing_failure_alive(failures: Failures, clock: Clock) -> None:
    """A failure from the future is believed for a day of difference and no more."""
    failures.remember(KEY, CRASH)
    clock.now -= HOUR
    assert failures.recall(KEY) is not None
    clock.now -= 2 * DAY
    assert failures.recall(KEY) is None


@pytest.mark.parametrize(
    "error",
    [
        RefitError(detail="The refit was cancelled."),
        BundleFileMismatch(path="p", detail="d"),
        DeviceFailed(detail="d"),
        DiskFull(path="p", free_bytes=1, needed_bytes=2),
    ],
)
def test_what_is_not_the_candidate_s_fault_is_not_remembered(failures: Failures, error: RefitAgentError) -> None:
    """A bundle can be mended, a disk emptied, and cancelling is no failure."""
    failures.remember(KEY, error)
    assert failures.recall(KEY) is None


@pytest.mark.parametrize("error", [WRONG, REFUSED, CRASH])
def test_a_failure_holds_only_under_what_it_may_be_due_to(failures: Failures, error: RefitAgentError) -> None:
    """An update of manifest, golden data or agent is tried; a person who asks is told all the same."""
    failures.remember(KEY, error, "context 1")
    assert failures.recall(KEY, "context 1") is not None
    assert failures.recall(KEY, "context 2") is None
    assert failures.recall(KEY) is not None


@pytest.mark.parametrize(
    "error",
    [
        WeightsNotIdentical(path="p", weights="w"),
        Cancelled(),
        RefitError(detail="unforeseen"),
        WorkerCrashed(how="signal SIGTERM", phase="open", log=""),
    ],
)
def test_what_is_no_fault_of_the_engine_is_not_remembered(failures: Failures, error: RefitAgentError) -> None:
    """A corrected manifest, a second wish, or a login after a logout would be refused in vain."""
    failures.remember(KEY, error)
    assert failures.recall(KEY) is None


def test_a_link_in_the_place_of_a_failure_is_not_followed(failures: Failures, tmp_path: Path) -> None:
    """In a folder that others may write to, it would hang the launch or lead elsewhere."""
    failures.remember(KEY, WRONG)
    (path,) = [p for p in tmp_path.rglob("*.json") if KEY in p.name]
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert failures.recall(KEY) is None
    path.unlink()
    os.mkfifo(path)
    assert failures.recall(KEY) is None


def test_forgetting_makes_the_next_failure_the_first(failures: Failures, clock: Clock) -> None:
    """A success in between resets the count."""
    for _ in range(5):
        failures.remember(KEY, CRASH)
    failures.forget(KEY)
    failures.forget(KEY)
    assert failures.recall(KEY) is None
    failures.remember(KEY, CRASH)
    clock.now += HOUR + 1
    assert failures.recall(KEY) is None


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\xff", b"{}", b'{"code":"from-the-future","facts":{},"when":1,"count":1,"until":null}']
)
def test_a_file_that_makes_no_sense_is_as_good_as_none(failures: Failures, tmp_path: Path, data: bytes) -> None:
    """The candidate is tried, and the next failure replaces the file."""
    folder = tmp_path / "state" / "failures"
    folder.mkdir(parents=True)
    (folder / f"{KEY}.json").write_bytes(data)
    assert failures.recall(KEY) is None
    failures.remember(KEY, REFUSED)
    assert failures.recall(KEY) is not None


def test_a_state_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """Nothing is remembered, and nothing is raised."""
    (tmp_path / "state").write_bytes(b"a file")
    failures = Failures(str(tmp_path / "state"))
    failures.remember(KEY, REFUSED)
    failures.forget(KEY)
    assert failures.recall(KEY) is None


def test_many_threads_remember_at_once(failures: Failures, tmp_path: Path) -> None:
    """Every reader sees a whole failure or none, and no temporary file stays."""
    seen: list[RefitAgentError | None] = []

    def work() -> None:
        for _ in range(30):
            failures.remember(KEY, REFUSED)
            seen.append(failures.recall(KEY))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 240
    assert all(type(error) is PlanRefused for error in seen)
    assert [p.name for p in (tmp_path / "state" / "failures").iterdir()] == [f"{KEY}.json"]
