"""A clock that is set back or forward under the running service: only what people read off it changes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bundles import MODEL, make_bundle
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import list_entries
from refit_agent.cli.cache_document import is_leased
from refit_agent.provision import ensure_engine
from refit_service.attempts import Attempts

from .altered import talking_runtime
from .running import Running, read_answer, until

_YEAR_S = 365 * 86400
_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
Clock = Callable[[int], None]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A runtime that waits for the file "go"; not by time.sleep, which libfaketime breaks."""
    return talking_runtime(tmp_path / "slow", "import select\nwait(lambda: select.select([], [], [], 0.02))")


@pytest.fixture
def clock(home: Path, tmp_path: Path, runtime: Path) -> Iterator[tuple[Running, Clock]]:
    """A service, warming too, whose wall clock goes wrong by so many years as is said; its files' times do not."""
    if not _LIBRARIES:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    said = tmp_path / "clock"

    def set_by(years: int) -> None:
        new = said.with_suffix(".new")
        new.write_text(f"{years * _YEAR_S:+d}")
        os.replace(new, said)

    set_by(0)
    settings = {
        "LD_PRELOAD": str(_LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(said),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    with Running(home, path=[runtime], REFIT_AGENT_WARM="1", **settings) as service:
        yield service, set_by


def seen_years(service: Running) -> int:
    """By how many years the service's clock is wrong."""
    service.ensure("/nowhere", MODEL)
    return round((service.status["errors"][-1]["when"] - time.time()) / _YEAR_S)


@pytest.mark.parametrize("years", [-20, 10])
def test_a_clock_that_jumps_in_the_middle(
    clock: tuple[Running, Clock], runtime: Path, sound_bundle: Path, tmp_path: Path, years: int
) -> None:
    """Refits, heartbeats, leases, hits and the uptime go on as if nothing had happened."""
    service, set_by = clock
    other = make_bundle(tmp_path / "other", seed=3)
    sock = service.begin(sound_bundle, MODEL, ttl_s=600, deadline_s=100)
    until(service.workers)
    up = service.status["uptime_s"]
    set_by(years)
    assert seen_years(service) == years
    assert up <= service.status["uptime_s"] < up + 60
    time.sleep(2.5)
    (runtime / "go").touch()
    *steps, made = read_answer(sock).lines
    sock.close()
    assert made["event"] == "result", made
    assert len(steps) >= 2
    assert all(step["eta_s"] is None or 0 <= step["eta_s"] < 1000 for step in steps)
    hit = service.ensure(sound_bundle, MODEL, ttl_s=2)
    assert hit.document["hit"]
    assert service.ensure(other, MODEL).lines[-1]["event"] == "result"
    set_by(0)
    assert seen_years(service) == 0
    for result in (made, service.ensure(other, MODEL).document):
        assert service.ask("POST", f"/v1/leases/{result['lease']['id']}:renew", {"ttl_s": 600}).status == 200
        assert is_leased(Store(str(service.home / "cache")), result["key"])
    # Two seconds are two seconds.
    until(lambda: service.ask("DELETE", f"/v1/leases/{hit.document['lease']['id']}").status == 404, 10)
    assert service.process is not None
    service.process.terminate()
    assert service.process.wait(10) == 0


def test_warming_after_the_clock_was_set_back(
    clock: tuple[Running, Clock], runtime: Path, bundle: Path, tmp_path: Path
) -> None:
    """What failed under a clock ten years ahead is not put off for ten years."""
    service, set_by = clock
    (runtime / "go").touch()
    set_by(10)
    plan = bundle / "plans" / "mlp.cpu"
    sound = plan.read_bytes()
    plan.write_bytes(bytes(len(sound)))
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    failure = until(lambda: [f for f in service.status["warm"]["failures"] if f["code"] != "service-stopped"])[0]
    assert failure["not_before"] > time.time() + 9 * _YEAR_S
    plan.write_bytes(sound)
    set_by(0)
    # Something makes it look again.
    service.ask("POST", "/v1/bundles", {"path": str(make_bundle(tmp_path / "other", seed=3))})
    until(lambda: service.status["cache"]["entries"] == 2)
    until(lambda: service.status["warm"] == {"state": "idle", "reason": "", "failures": []})


def test_failures_noted_in_the_future_are_tried_again_at_the_next_start(
    start: Callable[..., Running], home: Path, bundle: Path
) -> None:
    """A machine without a battery for its clock may note anything before it knows the time."""
    (home / "state").mkdir(parents=True)
    failure = {"bundle": str(bundle), "model": MODEL, "target": None, "code": "refit-error", "message": "", "tries": 2, "not_before": time.time() + 3600}  # fmt: skip
    (home / "state/warm.json").write_text(json.dumps([failure]))
    service = start(REFIT_AGENT_WARM="1")
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(lambda: service.status["cache"]["entries"] == 1)
    until(lambda: service.status["warm"] == {"state": "idle", "reason": "", "failures": []})


def test_a_wait_is_no_longer_than_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By however much the clock is set back, a minute too; forward, it is over sooner."""
    attempts, what = Attempts(str(tmp_path)), ("/b", "m", None)
    attempts.begin(what)
    attempts.failed(what, ValueError("no"))
    assert 55 < attempts.wait_s(what) <= 60
    now = time.time()
    for offset in (-30, -3600, -_YEAR_S, 61, _YEAR_S):
        monkeypatch.setattr(time, "time", lambda offset=offset: now + offset)
        assert attempts.wait_s(what) == 0


def test_a_wait_begins_when_the_try_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes longer than its wait is not tried again at once."""
    attempts, what = Attempts(str(tmp_path)), ("/b", "m", None)
    attempts.begin(what)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 900)
    attempts.failed(what, ValueError("no"))
    assert 55 < attempts.wait_s(what) <= 60
    assert attempts.failures()[0].code == "internal"


def test_a_try_that_is_withdrawn_leaves_what_was_before(tmp_path: Path) -> None:
    """Five failures are not forgotten because the sixth try had to make way."""
    attempts, what = Attempts(str(tmp_path)), ("/b", "m", None)
    attempts.withdraw(what)
    attempts.begin(what)
    attempts.withdraw(what)
    assert attempts.failures() == ()
    for _ in range(5):
        attempts.begin(what)
        attempts.failed(what, ValueError("no"))
    before = attempts.failures()
    attempts.withdraw(what)
    assert attempts.failures() == before
    attempts.begin(what)
    attempts.withdraw(what)
    assert attempts.failures() == before == Attempts(str(tmp_path)).failures()


def test_engines_used_in_the_future_are_evicted_last_and_used_now_again(
    service: Running, home: Path, tmp_path: Path
) -> None:
    """The order is that of the stamps, whatever they are; a use brings one back to the present."""
    bundles = [make_bundle(tmp_path / f"b{seed}", seed=seed) for seed in range(3)]
    keys = []
    for bundle in bundles:
        with ensure_engine(bundle, MODEL, service=False) as engine:
            keys.append(engine.key)
    now = time.time()
    for key, offset in zip(keys, (20 * _YEAR_S, -_YEAR_S, 10 * _YEAR_S), strict=True):
        os.utime(home / "cache/engines" / key / "entry.json", (now + offset, now + offset))
    assert [e["key"] for e in service.ask("GET", "/v1/cache").document["entries"]] == [keys[1], keys[2], keys[0]]
    hit = service.ensure(bundles[0], MODEL, ttl_s=600).document
    assert hit["key"] == keys[0]
    used = {c.key: c.last_used for c in list_entries(Store(str(home / "cache")))}
    assert abs(used[keys[0]] - time.time()) < 60
    sizes = service.ask("GET", "/v1/cache").document
    most = sizes["bytes"] - 1
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": most}).document["removed"] == [keys[1]]
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == [keys[2]]
    service.ask("DELETE", f"/v1/leases/{hit['lease']['id']}")
    assert service.ask("POST", "/v1/cache:prune", {"max_bytes": 0}).document["removed"] == [keys[0]]
