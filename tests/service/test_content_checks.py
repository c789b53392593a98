"""Cached engines are read whole once in a while, and damaged ones told and replaced."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import entries
from bundles import MODEL, make_bundle
from refit_agent import digest, ensure_engine, paths
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Store
from refit_agent.cache.verify import Verdict
from refit_agent.errors import CacheUnwritable, Cancelled
from refit_service import content_checks, idle
from refit_service.content_checks import ContentChecks
from settings_files import SettingsFiles
from several_models import WaitingRuntime

from .in_process import Parts, ended, joined, run, until


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at once and again and again, on a machine that is not on battery."""
    monkeypatch.setattr(idle, "on_battery", lambda: False)
    monkeypatch.setattr(content_checks, "_FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(content_checks, "_LOOK_S", 0.02)
    monkeypatch.setattr(content_checks, "_BUSY_PAUSE_S", 0.02)


class Asked:
    """See the fixture."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.instead: Callable[[str], list[Verdict] | None] = lambda key: None


class Checked:
    """Checks in this process, of the cache of this test, and what they told. Made in a running event loop."""

    def __init__(self, parts: Parts) -> None:
        self.damaged: list[Verdict] = []
        self.faults: list[BaseException] = []
        self.store = Store(paths.home().cache)
        self.state = Path(paths.home().state)
        self.checks = ContentChecks(
            self.store, parts.jobs, str(self.state), self.damaged.append, lambda error, _: self.faults.append(error)
        )

    def times(self) -> dict[str, float]:
        """When each engine was compared, as it is kept."""
        try:
            return dict(json.loads((self.state / "checked.json").read_bytes()))
        except FileNotFoundError:
            return {}


def engine(bundle: Path) -> str:
    with ensure_engine(bundle, MODEL, service=False) as made:
        return made.key


def due(key: str, days: float = 8.0) -> None:
    """As if it had been compared so long ago."""
    kept(**{key: time.time() - days * 86400})


def kept(**times: float) -> None:
    """What an earlier service noted."""
    state = Path(paths.home().state)
    state.mkdir(parents=True, exist_ok=True)
    (state / "checked.json").write_text(json.dumps(times))


def reading() -> bool:
    """Whether an engine is being read right now."""
    return any(thread.name == "check" for thread in threading.enumerate())


def rot(key: str) -> None:
    """One bit of its largest file changes."""
    entries.rot(max(Path(Store(paths.home().cache).folder(key)).iterdir(), key=lambda p: p.stat().st_size))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The keys that were to be read, in order. What is put into ``instead`` is asked for each, and reads it if it gives
    None."""
    asked = Asked()
    real = content_checks.verify

    def verify(store: Store, keys: Sequence[str], on_bytes: Callable[[int], None]) -> list[Verdict]:
        (key,) = keys
        asked.keys.append(key)
        found = asked.instead(key)
        return real(store, keys, on_bytes) if found is None else found

    monkeypatch.setattr(content_checks, "verify", verify)
    return asked


def test_what_rots_is_set_aside_and_told_once(bundle: Path) -> None:
    """A hit would have handed it over."""
    key = engine(bundle)
    rot(key)
    assert ensure_engine(bundle, MODEL, service=False).hit
    due(key)

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: seen.damaged)
        await asyncio.sleep(0.2)
        (verdict,) = seen.damaged
        assert verdict.key == key and "changed although" in verdict.fault and os.path.isdir(verdict.set_aside)
        assert seen.store.lookup(key) is None and seen.faults == []
        await seen.checks.stop()

    run(test())


def test_a_sound_engine_is_read_once_a_week(bundle: Path, asked: Asked) -> None:
    """What is new counts as compared: its maker did it. What is gone is forgotten."""
    key = engine(bundle)
    due("gone")

    async def test() -> None:
        seen = Checked(Parts())
        begun = time.time()
        seen.checks.start()
        await until(lambda: set(seen.times()) == {key})
        await asyncio.sleep(0.2)
        assert asked.keys == [] and 0 <= begun - seen.times()[key] < 60
        await seen.checks.stop()
        due(key)
        again = Checked(Parts())
        again.checks.start()
        await until(lambda: asked.keys == [key] and again.times()[key] >= begun)
        await asyncio.sleep(0.2)
        assert asked.keys == [key] and again.damaged == [] and again.faults == []
        await again.checks.stop()

    run(test())


@pytest.mark.parametrize("noted", [True, False])
def test_what_is_old_is_read_although_nothing_was_noted(bundle: Path, noted: bool) -> None:
    """With the state gone, or on a disk that takes no notes: a start of the service must not put it off."""
    key = engine(bundle)
    rot(key)
    long_ago = time.time() - 8 * 86400
    os.utime(Store(paths.home().cache).folder(key), (long_ago, long_ago))
    if not noted:
        Path(paths.home().state, "checked.json").mkdir(parents=True)

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: seen.damaged)
        await seen.checks.stop()
        assert seen.damaged[0].key == key and seen.faults == []

    run(test())


def test_one_that_is_always_interrupted_keeps_no_other_from_being_read(
    bundle: Path, tmp_path: Path, asked: Asked
) -> None:
    """Where engines are made again and again, a large one is never read to its end."""
    first, second = engine(bundle), engine(make_bundle(tmp_path / "another", seed=9))
    rot(second)

    def interrupt(key: str) -> None:
        if key == first:
            raise Cancelled()

    asked.instead = interrupt
    kept(**{first: 1.0, second: 2.0})

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: seen.damaged)
        await until(lambda: seen.times() == {first: 1.0})
        await seen.checks.stop()
        assert [v.key for v in seen.damaged] == [second] and seen.faults == []

    run(test())


def test_many_engines_neither_hold_up_the_service_nor_wear_out_a_disk(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    """They are read beside the event loop, and noted together."""
    root = Path(Store(paths.home().cache).folder(engine(bundle))).parent
    keys = {f"{number:064x}" for number in range(20)}
    for key in keys:
        (root / key).mkdir()
    kept(**dict.fromkeys(keys, 1.0))
    threads: set[str] = set()
    noted: list[str] = []

    def sound(key: str) -> list[Verdict]:
        threads.add(threading.current_thread().name)
        return [Verdict(key, "", "")]

    def replace_file(path: str, data: bytes) -> None:
        noted.append(threading.current_thread().name)

    asked.instead = sound
    monkeypatch.setattr(content_checks, "replace_file", replace_file)
    monkeypatch.setattr(content_checks, "_PAUSE_S", 0.0)

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: noted)
        await asyncio.sleep(0.2)
        await seen.checks.stop()
        assert sorted(asked.keys) == sorted(keys) and threads == {"check"} and noted == ["check"]

    run(test())


def test_a_clock_that_was_set_back_puts_nothing_off_for_years(bundle: Path) -> None:
    """A time to come counts as now."""
    key = engine(bundle)
    due(key, days=-4000)

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: seen.times()[key] <= time.time())
        await seen.checks.stop()

    run(test())


@pytest.mark.parametrize("text", ["warm = false", "warm_between = '00:00-00:01'", "warm = 'perhaps'"])
def test_not_when_background_work_is_off(bundle: Path, files: SettingsFiles, text: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """As engines are not made then either."""
    monkeypatch.setattr(idle, "_minute_of_the_day", lambda: 720)
    key = engine(bundle)
    rot(key)
    due(key)
    files.user(text)

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await asyncio.sleep(0.2)
        assert seen.damaged == []
        files.user("warm = true")
        await until(lambda: seen.damaged)
        await seen.checks.stop()

    run(test())


def test_not_while_an_engine_is_made(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    """Whoever waits for it wants the disk."""
    key = engine(bundle)
    rot(key)
    due(key)
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    monkeypatch.syspath_prepend(str(waiting.folder))
    another = make_bundle(tmp_path / "another", seed=9)

    async def test() -> None:
        parts = Parts()
        waiter = joined(parts, another)
        await until(lambda: waiting.imports() == 1)
        seen = Checked(parts)
        seen.checks.start()
        await asyncio.sleep(0.2)
        assert seen.damaged == [] and asked.keys == []
        waiting.go()
        await ended(waiter)
        await until(lambda: seen.damaged)
        await seen.checks.stop()
        await parts.jobs.stop(1, 5)

    run(test())


def test_it_ends_in_the_middle_of_an_engine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads goes on for one piece at most, and the engine is due again."""
    key = engine(bundle)
    due(key)
    monkeypatch.setattr(digest, "CHUNK_BYTES", 16)
    monkeypatch.setattr(content_checks, "_BYTES_PER_S", 160.0)

    async def test() -> None:
        seen = Checked(Parts())
        before = seen.times()
        seen.checks.start()
        await until(reading)
        await asyncio.wait_for(seen.checks.stop(), 1)
        await until(lambda: not reading(), 2)
        assert seen.times() == before and seen.damaged == []

    run(test())


@pytest.mark.parametrize("error", [CacheUnwritable(path="x", detail="Too many open files"), MemoryError()])
def test_one_that_cannot_be_read_now_is_read_soon(bundle: Path, tmp_path: Path, asked: Asked, error: Exception) -> None:
    """It does not keep the others waiting either."""
    first, second = engine(bundle), engine(make_bundle(tmp_path / "another", seed=9))
    rot(first)
    rot(second)

    def fail_once(key: str) -> list[Verdict] | None:
        if key != first or asked.keys.count(first) > 1:
            return None
        if isinstance(error, CacheUnwritable):
            return [Verdict(first, "", "", error)]
        raise error

    asked.instead = fail_once
    kept(**{first: 1.0, second: 2.0})

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: len(seen.damaged) == 2)
        assert asked.keys == [first, second, first] and [v.key for v in seen.damaged] == [second, first]
        assert seen.faults == [error]
        await seen.checks.stop()

    run(test())


def test_one_that_cannot_be_set_aside_is_told_and_tried_again(bundle: Path) -> None:
    """Look-ups still find it, so it must not pass for checked."""
    key = engine(bundle)
    rot(key)
    due(key)

    async def test() -> None:
        seen = Checked(Parts())
        with key_lock(seen.store, key, 0):  # as on a disk that has become read-only no lock can be had
            seen.checks.start()
            await until(lambda: len(seen.damaged) == 2)
        await until(lambda: seen.damaged[-1].set_aside)
        assert {v.set_aside for v in seen.damaged[:-1]} == {""} and seen.faults == []
        await seen.checks.stop()

    run(test())


def test_a_job_that_begins_in_the_middle_is_given_way_to(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The reading begins anew in a later round."""
    key = engine(bundle)
    rot(key)
    due(key)
    monkeypatch.setattr(digest, "CHUNK_BYTES", 16)
    monkeypatch.setattr(content_checks, "_BYTES_PER_S", 160.0)
    waiting = WaitingRuntime(tmp_path / "waiting", waits_from=1)
    monkeypatch.syspath_prepend(str(waiting.folder))
    another = make_bundle(tmp_path / "another", seed=9)

    async def test() -> None:
        parts = Parts()
        seen = Checked(parts)
        seen.checks.start()
        await until(reading)
        waiter = joined(parts, another)
        await until(lambda: not reading(), 5)
        assert seen.damaged == []
        monkeypatch.setattr(content_checks, "_BYTES_PER_S", 1e9)
        waiting.go()
        await ended(waiter)
        await until(lambda: seen.damaged)
        await seen.checks.stop()
        await parts.jobs.stop(1, 5)

    run(test())


@pytest.mark.parametrize("name", [".DS_Store", os.fsdecode(b"\xff"), "a" * 63])
def test_what_is_no_engine_is_left_alone(bundle: Path, name: str) -> None:
    """A file manager's notes, or what somebody put there."""
    key = engine(bundle)
    stranger = Path(Store(paths.home().cache).folder(name))
    stranger.mkdir()

    async def test() -> None:
        seen = Checked(Parts())
        seen.checks.start()
        await until(lambda: set(seen.times()) == {key})
        await asyncio.sleep(0.1)
        assert seen.damaged == [] and seen.faults == [] and stranger.is_dir()
        await seen.checks.stop()

    run(test())
