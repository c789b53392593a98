"""Background work makes way for what an app waits for, is done later, and is never an error for it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bundles import MODEL, make_bundle

from .altered import Altered, talking_runtime
from .running import Running, read_answer, until


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles with different engines, which nobody changes."""
    root = tmp_path_factory.mktemp("two")
    return make_bundle(root / "one", seed=1), make_bundle(root / "two", seed=2)


@pytest.fixture
def nearly_done(tmp_path: Path) -> Path:
    """A runtime that has got to nine tenths when it waits for the file "go"."""
    return talking_runtime(tmp_path / "nearly", 'tell("check")\nwait()')


@pytest.fixture
def altered(home: Path, nearly_done: Path) -> Iterator[Altered]:
    """A service whose patience with background work that is nearly done is short."""
    with Altered(home, "from refit_service import jobs; jobs._FINISH_S = 0.5", path=[nearly_done]) as running:
        yield running


def published(service: Running) -> list[str]:
    """Keys of the engines made, in their order."""
    lines = (service.home / "state/logs/service.log").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines if "engine published" in line]


def key(service: Running, bundle: Path) -> str:
    return str(service.ensure(bundle, MODEL).document["key"])


def in_the_background(
    service: Running, bundle: Path, far_enough: Callable[[dict[str, Any]], bool] = lambda _: True
) -> tuple[socket.socket, psutil.Process]:
    """Somebody who has time asks for the bundle's engine; gives him and the worker, once the job is ``far_enough``."""
    sock = service.begin(bundle, MODEL, background=True)
    until(lambda: service.status["jobs"] and far_enough(service.status["jobs"][0]))
    return sock, until(service.workers)[0]


def at_check(job: dict[str, Any]) -> bool:
    """Whether it is nearly done."""
    return bool(job["phase"] == "check")


def half_done(job: dict[str, Any]) -> bool:
    """Whether it is in the midst of the refit."""
    return bool(job["fraction"] > 0.5)


def assert_served(*socks: socket.socket) -> None:
    """Each of those who wait gets an engine."""
    for sock in socks:
        last = read_answer(sock).lines[-1]
        assert last["event"] == "result", last
        sock.close()


def gone(worker: psutil.Process) -> bool:
    return not worker.is_running()


def test_an_app_does_not_wait_for_background_work(
    start: Callable[..., Running], tmp_path: Path, two: tuple[Path, Path]
) -> None:
    """The worker of the background work ends, the app's engine comes first, and the other one after all."""
    runtime = talking_runtime(tmp_path / "half", 'tell("refit", 1, 2)\nwait()')
    service = start(path=[runtime])
    later, worker = in_the_background(service, two[0], half_done)
    sooner = service.begin(two[1], MODEL)
    until(lambda: gone(worker), 5)
    jobs = until(lambda: (now := service.status["jobs"])[1:] and now[1]["phase"] == "queue" and now)
    assert [(job["background"], job["waiters"]) for job in jobs] == [(False, 1), (True, 1)]
    assert len(until(service.workers)) == 1
    (runtime / "go").touch()
    for sock in (sooner, later):
        *steps, last = read_answer(sock).lines
        sock.close()
        assert last["event"] == "result", last
        fractions = [step["fraction"] for step in steps]
        assert fractions == sorted(fractions)
    assert "queue" in [step["phase"] for step in steps[1:]]
    assert published(service) == [key(service, two[1]), key(service, two[0])]
    assert (runtime / "count").read_text() == "xxx"
    assert service.status["errors"] == []


def test_nearly_done_background_work_may_finish(
    start: Callable[..., Running], nearly_done: Path, two: tuple[Path, Path]
) -> None:
    """Beginning it anew would cost more."""
    service = start(path=[nearly_done])
    later = service.begin(two[0], MODEL, background=True)
    until(lambda: service.status["jobs"] and service.status["jobs"][0]["phase"] == "check")
    sooner = service.begin(two[1], MODEL)
    until(lambda: len(service.status["jobs"]) == 2)
    (nearly_done / "go").touch()
    assert_served(sooner, later)
    assert published(service) == [key(service, two[0]), key(service, two[1])]
    assert (nearly_done / "count").read_text() == "xx"


def test_one_that_is_nearly_done_and_hangs_is_not_waited_for(
    altered: Altered, nearly_done: Path, two: tuple[Path, Path]
) -> None:
    """An app is not kept from its engine by the last tenth."""
    later, worker = in_the_background(altered, two[0], at_check)
    sooner = altered.begin(two[1], MODEL)
    until(lambda: gone(worker), 5)
    (nearly_done / "go").touch()
    assert_served(sooner, later)
    assert published(altered) == [key(altered, two[1]), key(altered, two[0])]


def test_one_that_was_waited_for_in_vain_is_not_waited_for_again(
    altered: Altered, nearly_done: Path, two: tuple[Path, Path], bundle: Path
) -> None:
    """Each app waits for its last tenth as long as another, also when one before it has given up."""
    later, worker = in_the_background(altered, two[0], at_check)
    for impatient in (two[0], two[1]):  # one joins it, one waits for another engine
        with altered.begin(impatient, MODEL):
            until(lambda: sum(job["waiters"] for job in altered.status["jobs"]) == 2)
        until(lambda: sum(job["waiters"] for job in altered.status["jobs"]) == 1)
    time.sleep(1)
    assert altered.workers() == [worker]
    sooner = altered.begin(bundle, MODEL)
    until(lambda: gone(worker), 5)
    (nearly_done / "go").touch()
    assert_served(sooner, later)


def test_who_waits_for_work_that_makes_way_again_and_again_is_told_in_time(
    home: Path, slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """His deadline counts from when it was begun first, however often it is begun anew."""
    changes = "from refit_service import ensure_handler as e; e._GRACE_S = 0.5"
    with Altered(home, changes, path=[slow_runtime]) as service, ThreadPoolExecutor(1) as pool:
        later = service.begin(two[0], MODEL, background=True, deadline_s=3)
        until(service.workers)
        answer = pool.submit(read_answer, later)
        ends = time.monotonic() + 20
        while not answer.done():
            assert time.monotonic() < ends
            with service.begin(two[1], MODEL):
                until(lambda: service.status["jobs"][0]["background"] is False)
            until(lambda: all(job["background"] for job in service.status["jobs"]))
            until(lambda: service.workers() or answer.done())
        later.close()
        last = answer.result().lines[-1]
        assert (last["event"], last["code"]) == ("error", "service-busy"), last
        until(lambda: service.status["idle"] and not service.workers())


def test_one_app_does_not_make_way_for_another(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """Its worker goes on."""
    service = start(path=[slow_runtime])
    first = service.begin(two[0], MODEL)
    worker = until(service.workers)[0]
    second = service.begin(two[1], MODEL)
    until(lambda: len(service.status["jobs"]) == 2)
    time.sleep(0.5)
    assert service.workers() == [worker]
    (slow_runtime / "go").touch()
    assert_served(first, second)
    assert (slow_runtime / "count").read_text() == "xx"


def test_an_apps_wish_has_an_apps_priority(
    start: Callable[..., Running], tmp_path: Path, two: tuple[Path, Path]
) -> None:
    """Although one who has time asked for the engine before it."""
    note = 'open(os.path.join(HERE, "nice"), "a").write("%d " % os.nice(0))\nwait()'
    runtime = talking_runtime(tmp_path / "noting", note)
    service = start(path=[runtime])
    socks = [service.begin(two[0], MODEL)]
    until(service.workers)
    for background in (True, False):
        socks.append(service.begin(two[1], MODEL, background=background))
        until(lambda: sum(job["waiters"] for job in service.status["jobs"]) == len(socks))
    (runtime / "go").touch()
    assert_served(*socks)
    first, second = (runtime / "nice").read_text().split()
    assert first == second


def test_what_an_app_joins_is_no_background_work_any_more(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """It is not stopped for another; and is again when the app has gone."""
    service = start(path=[slow_runtime])
    later, worker = in_the_background(service, two[0])
    joined = service.begin(two[0], MODEL)
    until(lambda: gone(worker), 5)
    worker = until(service.workers)[0]
    sooner = service.begin(two[1], MODEL)
    until(lambda: len(service.status["jobs"]) == 2)
    time.sleep(0.5)
    assert service.workers() == [worker]
    joined.close()
    until(lambda: gone(worker), 5)
    (slow_runtime / "go").touch()
    assert_served(sooner, later)
    assert published(service) == [key(service, two[1]), key(service, two[0])]


def test_what_an_app_joins_is_begun_anew_with_its_priority(
    start: Callable[..., Running], tmp_path: Path, two: tuple[Path, Path]
) -> None:
    """The worker that takes only what others leave might take for ever."""
    runtime = talking_runtime(tmp_path / "half", 'tell("refit", 1, 2)\nwait()')
    service = start(path=[runtime])
    later, worker = in_the_background(service, two[0], half_done)
    assert service.process is not None
    least = psutil.Process(service.process.pid).nice()
    assert worker.nice() == min(19, least + 19)
    joined = [service.begin(two[0], MODEL) for _ in range(3)]
    until(lambda: gone(worker), 5)
    until(lambda: (runtime / "count").read_text() == "xx")
    assert [w.nice() for w in service.workers()] == [min(19, least + 5)]
    (runtime / "go").touch()
    assert_served(later, *joined)
    assert (runtime / "count").read_text() == "xx"


def test_what_an_app_joins_when_it_is_nearly_done_goes_on(
    altered: Altered, nearly_done: Path, two: tuple[Path, Path]
) -> None:
    """Its last tenth takes less than all of it."""
    later, worker = in_the_background(altered, two[0], at_check)
    joined = altered.begin(two[0], MODEL)
    until(lambda: altered.status["jobs"][0]["waiters"] == 2)
    time.sleep(1)
    assert altered.workers() == [worker]
    (nearly_done / "go").touch()
    assert_served(later, joined)
    assert (nearly_done / "count").read_text() == "x"


def test_an_app_that_joins_what_is_being_stopped_gets_its_engine(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """Whether it comes just before the worker's end or just after; again and again."""
    service = start(path=[slow_runtime])
    waiting = [service.begin(two[0], MODEL, background=True)]
    worker = until(service.workers)[0]
    waiting += [service.begin(two[n % 2], MODEL, background=n > 4) for n in (1, 2, 3, 4, 5, 6, 7)]
    until(lambda: gone(worker), 5)
    until(lambda: sum(job["waiters"] for job in service.status["jobs"]) == 8)
    (slow_runtime / "go").touch()
    assert_served(*waiting)
    assert sorted(published(service)) == sorted([key(service, two[0]), key(service, two[1])])
    until(lambda: service.status["idle"])


def test_the_one_who_waits_for_stopped_work_may_go(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """Nothing is left of it in the queue."""
    service = start(path=[slow_runtime])
    later, worker = in_the_background(service, two[0])
    sooner = service.begin(two[1], MODEL)
    until(lambda: gone(worker), 5)
    later.close()
    until(lambda: len(service.status["jobs"]) == 1)
    (slow_runtime / "go").touch()
    assert_served(sooner)
    until(lambda: service.status["idle"])
    assert published(service) == [key(service, two[1])]


def test_stopping_the_service_ends_what_was_put_back(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """Everybody is told, and no worker is left."""
    service = start(path=[slow_runtime])
    later = service.begin(two[0], MODEL, background=True)
    until(service.workers)
    sooner = service.begin(two[1], MODEL)
    assert service.process is not None
    service.process.terminate()
    for sock in (sooner, later):
        # The second one may not have been heard any more.
        with contextlib.suppress(ConnectionResetError):
            assert json.loads(read_answer(sock).body.splitlines()[-1])["code"] == "service-stopping"
        sock.close()
    assert service.process.wait(10) == 0
    assert not [p for p in psutil.process_iter() if _is_worker_of(p, service)]


def _is_worker_of(process: psutil.Process, service: Running) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.environ().get("REFIT_AGENT_HOME") == str(service.home) and process.is_running()
    return False


def test_warming_makes_way_and_goes_on(
    start: Callable[..., Running], slow_runtime: Path, two: tuple[Path, Path]
) -> None:
    """Nothing is noted as a failure meanwhile, not even if the service is killed."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(two[0])})
    worker = until(service.workers)[0]

    def failures() -> list[Any]:
        return json.loads((service.home / "state/warm.json").read_bytes())

    assert [f["code"] for f in until(failures)] == ["service-stopped"]
    sooner = service.begin(two[1], MODEL)
    until(lambda: gone(worker), 5)
    until(lambda: failures() == [], 5)
    assert service.status["warm"] == {"state": "working", "reason": "", "failures": []}
    service.kill()
    sooner.close()
    again = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    until(again.workers)
    sooner = again.begin(two[1], MODEL)
    (slow_runtime / "go").touch()
    assert_served(sooner)
    until(lambda: again.status["cache"]["entries"] == 2)
    until(lambda: again.status["warm"] == {"state": "idle", "reason": "", "failures": []})
