"""`refit-agent provision --deadline`: the time for the whole command."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Store
from refit_agent.cli.deadline import Deadline
from refit_agent.errors import DeadlinePassed
from several_models import WaitingRuntime, several_models

from .command import Cli
from .lines import Lines

#: Far more than ending takes, far less than a second engine would have had.
SOON_S = 15


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left() -> None:
    """Each engine gets what is left, whole seconds of a long time, less what the end of the command takes."""
    clock = Clock()
    deadline = Deadline(60, clock)
    assert deadline.for_work() == 59 and not deadline.over()
    clock.now += 52
    assert deadline.for_work() == 7.5
    clock.now += 7.5
    assert deadline.over() and not deadline.requested()
    deadline.check()
    clock.now += 0.5
    assert deadline.requested()
    with pytest.raises(DeadlinePassed, match=r"The 60 s for the whole command were over"):
        deadline.check()
    assert (deadline.for_work() or 0) > 0, "the library takes no deadline of nothing; a hit needs none"


@pytest.mark.parametrize("seconds", [None, float("inf")])
def test_no_end(seconds: float | None) -> None:
    """Without one, nothing is ever over."""
    deadline = Deadline(seconds)
    assert deadline.for_work() == seconds and not deadline.over() and not deadline.requested()


def test_the_same_call_gives_the_same_seconds() -> None:
    """What took too long is remembered with the seconds that it had, and is tried again with more: a few milliseconds
    are not more."""
    clock = Clock()
    first, second = Deadline(60, clock), Deadline(60, clock)
    clock.now += 0.2
    given = first.for_work()
    clock.now += 0.1
    assert given == second.for_work()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return several_models(tmp_path / "bundle", 3)


def test_it_is_for_the_whole_command(cli: Cli, three: Path, tmp_path: Path) -> None:
    """The first engine is made, the second takes all the time, the third is not begun; a later run makes them."""
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=2)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    began = time.monotonic()
    ran = cli("provision", three, "--progress=json", "--deadline", "4")
    assert time.monotonic() - began < 4 + SOON_S
    result = Lines(ran.out).result
    assert ran.code == result["exit_code"] == 6 and result["deadline_passed"] is True
    first, second, third = result["engines"]
    assert first["hit"] is False and waiting.imports() == 2
    assert second["error"]["code"] == "worker-timeout" and 2 < second["error"]["facts"]["seconds"] < 4
    assert third["error"]["code"] == "deadline-passed" and "not begun" in third["error"]["message"]
    assert "Run the command again" in third["error"]["hint"] and result["error"] == second["error"]
    assert cli.leftovers() == []

    waiting.go()
    more = Lines(cli("provision", three, "--progress=json", "--deadline", "60").out).result
    assert [e["hit"] for e in more["engines"]] == [True, False, False] and more["deadline_passed"] is False


def test_what_is_there_is_found_when_the_time_is_over(cli: Cli, three: Path, tmp_path: Path) -> None:
    """A hit takes no time, also behind an engine that took all of it; for people and as a document alike."""
    assert cli("provision", three, "--model", "m3").code == 0
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    ran = cli("provision", three, "--json", "--deadline", "1")
    first, second, third = ran.document["engines"]
    assert ran.code == 6 and first["error"]["code"] == "worker-timeout" and waiting.imports() == 1
    assert second["error"]["code"] == "deadline-passed" and third["hit"] is True
    spoken = cli("provision", three, "--deadline", "0.000001")
    assert spoken.code == 6 and "error [deadline-passed]: m2: " in spoken.err and "m3: in the cache" in spoken.out


def test_waits_do_not_add_up(cli: Cli, three: Path, tmp_path: Path) -> None:
    """A better engine that hangs, and then the next one: together they get no more than one would have had."""
    document = json.loads((three / "bundle.json").read_text())
    for model in document["models"]:
        (engine,) = model["engines"]
        # The newer builder ranks first. Another plan, so that they are two engines.
        path = three / model["name"] / "plans/other"
        path.write_bytes((three / engine["path"]).read_bytes())
        other = dict(engine, path=f"{model['name']}/plans/other", built_with="1.19.0")
        model["engines"].append(other)
    (three / "bundle.json").write_text(json.dumps(document))
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    cli.env["PYTHONPATH"] = str(waiting.folder)
    began = time.monotonic()
    ran = cli("provision", three, "--json", "--deadline", "8")  # on a busy machine a worker's start takes seconds
    assert time.monotonic() - began < 8 + SOON_S and ran.code == 6
    assert waiting.imports() == 2, "the second candidate was begun"
    assert [e["error"]["code"] for e in ran.document["engines"]] == ["deadline-passed"] * 3
    assert cli.leftovers() == []


@pytest.mark.skipif(os.name == "nt", reason="the lock is held by this process")
def test_another_process_holds_it(cli: Cli, three: Path) -> None:
    """Waiting for another process is part of the time, and has a code of its own."""
    key = cli("explain", three, "--model", "m1", "--json").document["models"][0]["candidates"][0]["key"]
    store = Store(str(cli.cache))
    store.prepare()
    with key_lock(store, key, 0):
        lines = Lines(cli("provision", three, "--progress=json", "--deadline", "1").out)
    assert "wait" in {step["phase"] for step in lines.steps}
    assert lines.result["exit_code"] == 7 and lines.result["error"]["code"] == "cache-busy"
    assert lines.result["deadline_passed"] is True
