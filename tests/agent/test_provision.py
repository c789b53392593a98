"""`ensure_engine` from end to end: real bundles, real workers, real ONNX Runtime, hostile circumstances."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import pytest

from bundles import (
    GOLDEN_INPUT,
    GOLDEN_OUTPUT,
    MODEL,
    REAL,
    add_broken_engine,
    edit,
    make_bundle,
    model_of,
    other_onnx_weights,
    python,
    rehash,
)
from entries import leased, locked
from refit_agent import Engine, Progress, ensure_engine
from refit_agent import make as make_module
from refit_agent.cache.store import Store
from refit_agent.errors import (
    BundleError,
    BundleFileMismatch,
    BundleFileMissing,
    BundleMissing,
    CacheBusy,
    CacheInsecure,
    CacheUnwritable,
    Cancelled,
    DiskFull,
    GoldenMismatch,
    ManifestInvalid,
    ManifestTooNew,
    NoMatchingEngine,
    PlanInvalid,
    PlanRefused,
    RefitAgentError,
    RefitError,
    SettingInvalid,
    UnknownModel,
    UnknownProfile,
    UnknownTarget,
    UnsafePath,
    WeightsNotIdentical,
    WorkerCrashed,
    WorkerTimeout,
)

PYTHON = sys.executable
Install = Callable[[str], Path]
ROOT_ONLY = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")


def left(home: Path) -> dict[str, list[str]]:
    """What lies in the cache, by folder."""
    names = ("engines", "tmp", "quarantine")
    return {n: sorted(os.listdir(home / "cache" / n)) if (home / "cache" / n).is_dir() else [] for n in names}


def nothing_left(home: Path) -> bool:
    return all(names == [] for names in left(home).values())


def computes(engine: Engine, bundle: Path) -> bool:
    session = onnxruntime.InferenceSession(os.fspath(engine), providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": np.load(bundle / GOLDEN_INPUT)})[0]
    return bool(np.allclose(got, np.load(bundle / GOLDEN_OUTPUT), atol=1e-4))


# ---------------------------------------------------------------- what it is for


def test_the_first_call_makes_the_engine_and_the_second_finds_it(bundle: Path, home: Path) -> None:
    """The engine computes what the source model computes, and the reasons are given."""
    with ensure_engine(bundle, MODEL) as made:
        assert not made.hit
        assert (made.runtime, made.target, made.profile) == ("onnxruntime", "cpu", None)
        assert made.path.is_absolute()
        assert computes(made, bundle)
        assert "plans/mlp.cpu: runs on the CPU" in str(made.explanation)
        assert "made>" in repr(made)
    for path in bundle.rglob("*"):
        if path.is_file() and path.name != "bundle.json":
            path.unlink()
    with ensure_engine(bundle, MODEL) as found:
        assert found.hit, "a hit reads no file of the bundle but its manifest"
        assert found.path == made.path
    assert left(home) == {"engines": [made.key], "tmp": [], "quarantine": []}


def test_progress_goes_forward_from_start_to_ready(bundle: Path) -> None:
    """Each step has words and a fraction, and a hit reports nothing."""
    steps: list[Progress] = []
    ensure_engine(bundle, MODEL, progress=steps.append).close()
    fractions = [s.fraction for s in steps]
    assert fractions == sorted(fractions)
    assert (steps[0].phase, steps[-1].phase, fractions[-1]) == ("start", "ready", 1.0)
    assert all(s.text for s in steps)
    steps.clear()
    ensure_engine(bundle, MODEL, progress=steps.append).close()
    assert steps == []


def test_nothing_is_printed_on_the_host_s_standard_output(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It belongs to the app."""
    ensure_engine(bundle, MODEL).close()
    assert capfd.readouterr().out == ""


def test_external_weights_and_compressed_plans_work(tmp_path: Path) -> None:
    """Whatever the packaging, the result is the same."""
    for number, kind in enumerate(["zstd", "xz"]):
        root = make_bundle(tmp_path / kind, seed=number, compression=kind, external=True)
        with ensure_engine(root, MODEL) as engine:
            assert computes(engine, root)


# ---------------------------------------------------------------- bad bundles


def _damage(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        data = bytearray((root / path).read_bytes())
        data[-1] ^= 1
        (root / path).write_bytes(data)

    return act


def _first_engine(**changes: Any) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda d: model_of(d)["engines"][0].update(changes))


def _link(root: Path) -> None:
    shutil.move(root / "plans/mlp.cpu", root.parent / "outside")
    (root / "plans/mlp.cpu").symlink_to(root.parent / "outside")


BAD: dict[str, tuple[Callable[[Path], Any], type[RefitAgentError], str]] = {
    "no bundle": (shutil.rmtree, BundleMissing, "bundle.json"),
    "no manifest": (lambda r: os.unlink(r / "bundle.json"), BundleMissing, "bundle.json"),
    "garbage manifest": (lambda r: (r / "bundle.json").write_bytes(b"{,"), ManifestInvalid, "bundle.json"),
    "newer schema": (lambda r: edit(r, lambda d: d.update(schema=7)), ManifestTooNew, "schema 7"),
    "missing plan": (lambda r: os.unlink(r / "plans/mlp.cpu"), BundleFileMissing, "plans/mlp.cpu"),
    "missing model": (lambda r: os.unlink(r / "models/mlp.onnx"), BundleFileMissing, "models/mlp.onnx"),
    "missing golden": (lambda r: os.unlink(r / GOLDEN_INPUT), BundleFileMissing, GOLDEN_INPUT),
    "wrong plan": (_damage("plans/mlp.cpu"), BundleFileMismatch, "plans/mlp.cpu"),
    "wrong model": (_damage("models/mlp.onnx"), BundleFileMismatch, "models/mlp.onnx"),
    "wrong golden input": (_damage(GOLDEN_INPUT), BundleFileMismatch, GOLDEN_INPUT),
    "wrong golden output": (_damage(GOLDEN_OUTPUT), BundleFileMismatch, GOLDEN_OUTPUT),
    "cut plan": (lambda r: os.truncate(r / "plans/mlp.cpu", 10), BundleFileMismatch, "has 10 bytes"),
    "parent path": (_first_engine(path="../x"), UnsafePath, "'../x'"),
    "absolute path": (_first_engine(path="/etc/passwd"), UnsafePath, "'/etc/passwd'"),
    "backslash": (_first_engine(path="a\\b"), UnsafePath, "backslash"),
    "link": (_link, UnsafePath, "symbolic link"),
    "wrong results": (other_onnx_weights, GoldenMismatch, "computes wrong results: output 'y'"),
    "no graph": (
        lambda r: (
            (r / "plans/mlp.cpu").write_bytes(b"\x3a\xff\xff\x0fx"),
            _first_engine(size=5, plan_size=5, plan_sha256=None)(r),
            rehash(r),
        ),
        BundleError,
        "plans/mlp.cpu",
    ),
    "compressed lie": (_first_engine(compression="zstd"), PlanInvalid, "zstd data is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_bundle_is_refused_in_words_and_leaves_nothing_behind(bundle: Path, home: Path, case: str) -> None:
    """Each with a class of its own, the file's name and what to do; nothing is published."""
    act, kind, says = BAD[case]
    act(bundle)
    with pytest.raises(kind) as info:
        ensure_engine(bundle, MODEL)
    assert says in str(info.value)
    assert info.value.hint
    assert "<" not in str(info.value)
    assert nothing_left(home)


def test_a_bad_bundle_is_fine_once_it_is_mended(bundle: Path, sound_bundle: Path) -> None:
    """What was wrong with its files is not remembered of the machine."""
    for path in ("models/mlp.onnx", "plans/mlp.cpu", GOLDEN_OUTPUT):
        _damage(path)(bundle)
        with pytest.raises(BundleFileMismatch):
            ensure_engine(bundle, MODEL)
        shutil.copy(sound_bundle / path, bundle / path)
    ensure_engine(bundle, MODEL).close()


def test_unknown_names_are_answered_with_the_known_ones(bundle: Path) -> None:
    """Model, profile and target."""
    with pytest.raises(UnknownModel, match="'mlp'"):
        ensure_engine(bundle, "other")
    with pytest.raises(UnknownProfile, match="no named profile"):
        ensure_engine(bundle, MODEL, "large")
    with pytest.raises(UnknownTarget, match="cpu"):
        ensure_engine(bundle, MODEL, target="tpu")


def test_a_bundle_without_an_engine_for_this_machine_says_why(bundle: Path) -> None:
    """Each reason, counted."""
    edit(bundle, lambda d: model_of(d)["engines"][0].update(os=["windows"]))
    with pytest.raises(NoMatchingEngine, match=r"^The only engine of .* cannot be used here: it needs windows\."):
        ensure_engine(bundle, MODEL)


# ---------------------------------------------------------------- the next best candidate


def test_if_the_best_engine_cannot_be_made_the_next_best_is(
    bundle: Path, evil_runtime: Install, tmp_path: Path
) -> None:
    """Why is in the explanation; the failure is remembered until somebody asks to try again."""
    add_broken_engine(bundle, plan=_plan_of_other_names(bundle))
    runs = tmp_path / "runs"
    evil_runtime(f"open({str(runs)!r}, 'a').write('x')\n" + REAL)
    fractions: list[float] = []
    with ensure_engine(bundle, MODEL, progress=lambda p: fractions.append(p.fraction)) as engine:
        assert engine.explanation.engine == "plans/mlp.cpu"
        (attempt,) = engine.explanation.attempts
        assert (attempt.engine, attempt.code) == ("plans/broken.cpu", "weights-uncovered")
        assert "plans/broken.cpu on cpu failed" in str(engine.explanation)
    assert fractions == sorted(fractions), "it never goes back, not for another candidate either"
    assert runs.read_text() == "xx"
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
        assert engine.explanation.attempts == (attempt,)
    assert runs.read_text() == "xx", "no worker is started for what failed before"
    with ensure_engine(bundle, MODEL, retry_failed=True) as engine:
        assert engine.hit
    assert runs.read_text() == "xxx"


def _plan_of_other_names(root: Path) -> bytes:
    """A sound plan whose weights the model does not have."""
    import onnx

    plan = onnx.load(str(root / "plans/mlp.cpu"), load_external_data=False)
    for tensor in plan.graph.initializer:
        tensor.name = "other_" + tensor.name
    return bytes(plan.SerializeToString())


def test_if_no_engine_can_be_made_the_best_one_s_error_is_raised(bundle: Path, home: Path) -> None:
    """Whichever failed last; from memory it is the same error."""
    add_broken_engine(bundle, plan=_plan_of_other_names(bundle))
    other_onnx_weights(bundle)
    rehash(bundle)
    words = set()
    for _ in range(2):
        with pytest.raises(RefitError) as info:
            ensure_engine(bundle, MODEL)
        assert info.value.code == "weights-uncovered"
        words.add(str(info.value))
    assert len(words) == 1
    assert nothing_left(home)


def test_skipping_a_passing_failure_does_not_prolong_it(bundle: Path, home: Path, evil_runtime: Install) -> None:
    """An app that is launched every hour tries again all the same."""
    evil_runtime("os.abort()")
    with pytest.raises(WorkerCrashed):
        ensure_engine(bundle, MODEL)
    (noted,) = (home / "state" / "failures").iterdir()
    before = noted.read_bytes()
    for _ in range(3):
        with pytest.raises(WorkerCrashed):
            ensure_engine(bundle, MODEL)
    assert noted.read_bytes() == before
    document = json.loads(before)
    assert document["count"] == 1
    noted.write_text(json.dumps({**document, "when": 0.0, "until": 1.0}))
    evil_runtime(REAL)
    ensure_engine(bundle, MODEL).close()
    assert not noted.exists()


def test_corrected_golden_data_is_tried_although_the_old_one_failed(bundle: Path) -> None:
    """The plan and the weights are the same, so the key is."""
    right = (bundle / GOLDEN_OUTPUT).read_bytes()
    np.save(bundle / GOLDEN_OUTPUT, np.load(bundle / GOLDEN_OUTPUT) + np.float32(1))
    rehash(bundle)
    for _ in range(2):
        with pytest.raises(GoldenMismatch):
            ensure_engine(bundle, MODEL)
    (bundle / GOLDEN_OUTPUT).write_bytes(right)
    rehash(bundle)
    ensure_engine(bundle, MODEL).close()


# ---------------------------------------------------------------- workers that misbehave


@pytest.mark.parametrize("code", ["ctypes.string_at(0)", "os.kill(os.getpid(), 9)", "sys.exit(0)", "os._exit(0)"])
def test_a_worker_that_dies_leaves_nothing_behind(bundle: Path, home: Path, evil_runtime: Install, code: str) -> None:
    """The error has its last words, and the next runtime is tried afresh."""
    evil_runtime("print('famous last words', flush=True)\n" + code)
    with pytest.raises(WorkerCrashed, match="famous last words") as info:
        ensure_engine(bundle, MODEL)
    assert info.value.code == "worker-crashed"
    assert nothing_left(home)
    evil_runtime(REAL)
    ensure_engine(bundle, MODEL, retry_failed=True).close()


def test_a_worker_that_hangs_is_stopped_at_the_deadline(bundle: Path, home: Path, evil_runtime: Install) -> None:
    """Nothing of it is left, in the cache or among the processes."""
    evil_runtime("time.sleep(300)")
    with pytest.raises(WorkerTimeout):
        ensure_engine(bundle, MODEL, deadline_s=0.7)
    assert nothing_left(home)
    assert psutil.Process().children() == []


def test_cancelling_stops_the_work_and_is_not_remembered(bundle: Path, home: Path, evil_runtime: Install) -> None:
    """Neither the next candidate is tried, nor this one skipped the next time."""
    add_broken_engine(bundle, first=False)
    evil_runtime("time.sleep(300)")
    began = time.monotonic()
    with pytest.raises(RefitError, match="cancelled"):
        ensure_engine(bundle, MODEL, cancelled=lambda: time.monotonic() - began > 0.3)
    assert time.monotonic() - began < 5
    assert nothing_left(home)
    assert not (home / "state" / "failures").exists()


def test_cancelling_also_ends_the_wait_for_another_process(bundle: Path, home: Path) -> None:
    """The deadline of the other is not waited for."""
    ensure_engine(bundle, MODEL).close()
    store = Store(str(home / "cache"))
    (key,) = store.list_keys()
    store.remove(key)
    steps: list[str] = []
    with locked(store, key):
        began = time.monotonic()
        with pytest.raises(RefitError, match="cancelled"):
            ensure_engine(
                bundle,
                MODEL,
                cancelled=lambda: time.monotonic() - began > 0.3,
                progress=lambda p: steps.append(p.phase),
            )
        assert time.monotonic() - began < 5
        assert steps == ["wait"]
        with pytest.raises(CacheBusy):
            ensure_engine(bundle, MODEL, deadline_s=0.1)


# ---------------------------------------------------------------- disks and folders


def test_a_cache_on_a_read_only_disk_serves_what_it_has_and_says_why_it_takes_no_more(
    bundle: Path, tmp_path: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hit needs no writing."""
    place = mounted("size=16m,mode=700")
    monkeypatch.setenv("REFIT_AGENT_HOME", str(place))
    monkeypatch.setattr("refit_agent.cache.upkeep.DISK_MARGIN_BYTES", 0)
    ensure_engine(bundle, MODEL).close()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
    other = make_bundle(tmp_path / "other", seed=5)
    with pytest.raises(CacheUnwritable, match="Read-only file system") as info:
        ensure_engine(other, MODEL)
    assert "REFIT_AGENT_HOME" in info.value.hint


def test_a_disk_without_room_is_told_before_any_work_is_done(
    bundle: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, evil_runtime: Install
) -> None:
    """With the bytes that are free and those that are needed."""
    evil_runtime("os.abort()")
    monkeypatch.setenv("REFIT_AGENT_HOME", str(mounted("size=1m,mode=700")))
    with pytest.raises(DiskFull) as info:
        ensure_engine(bundle, MODEL)
    free = info.value.facts["free_bytes"]
    assert isinstance(free, int)
    assert 0 < free < 1 << 20


@pytest.mark.parametrize("room", ["8k", "16k", "24k", "28k", "32k"])
def test_a_disk_that_fills_up_in_the_middle_is_told_and_nothing_is_left(
    bundle: Path, mounted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    """Wherever it happens: in the worker or at the publication."""
    place = mounted(f"size={room},mode=700")
    monkeypatch.setenv("REFIT_AGENT_HOME", str(place))
    monkeypatch.setattr(make_module, "make_room", lambda *_: [])
    with pytest.raises(DiskFull) as info:
        ensure_engine(bundle, MODEL)
    assert "REFIT_AGENT_HOME" in info.value.hint
    assert nothing_left(place)
    subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
    ensure_engine(bundle, MODEL).close()


def test_a_file_in_the_cache_s_place_is_told(bundle: Path, home: Path) -> None:
    """Also where it stands in the place of a folder inside the cache."""
    home.write_bytes(b"")
    with pytest.raises(CacheUnwritable):
        ensure_engine(bundle, MODEL)
    home.unlink()
    (home / "cache").mkdir(parents=True, mode=0o700)
    for name in ("engines", "locks", "tmp"):
        (home / "cache" / name).write_bytes(b"")
        with pytest.raises(CacheUnwritable, match=str(home / "cache")):
            ensure_engine(bundle, MODEL)
        (home / "cache" / name).unlink()
    ensure_engine(bundle, MODEL).close()


@ROOT_ONLY
def test_a_cache_of_somebody_else_is_not_used(bundle: Path, home: Path) -> None:
    """Neither one that belongs to another user nor one that everybody may write."""
    ensure_engine(bundle, MODEL).close()
    os.chmod(home / "cache", 0o777)
    with pytest.raises(CacheInsecure, match="mode 777"):
        ensure_engine(bundle, MODEL)
    os.chmod(home / "cache", 0o700)
    os.chown(home / "cache", 4242, -1)
    with pytest.raises(CacheInsecure, match="belongs to user 4242"):
        ensure_engine(bundle, MODEL)


def test_leftovers_of_a_killed_process_are_no_obstacle(bundle: Path, home: Path) -> None:
    """A lock file and a temporary folder from before the power cut."""
    with ensure_engine(bundle, MODEL) as engine:
        key = engine.key
    shutil.rmtree(engine.path.parent)
    (home / "cache" / "locks" / f"{key}.lock").write_bytes(b"12345")
    stale = home / "cache" / "tmp" / f"{key}.12345-abcd"
    stale.mkdir()
    (stale / "model.onnx").write_bytes(b"half")
    Path(f"{stale}.log").write_bytes(b"words")
    ensure_engine(bundle, MODEL).close()
    assert left(home) == {"engines": [key], "tmp": [], "quarantine": []}


@pytest.mark.parametrize("damage", ["cut", "touched", "garbage", "gone"])
def test_a_damaged_entry_is_set_aside_and_made_anew(bundle: Path, home: Path, damage: str) -> None:
    """The caller gets a sound engine, and the damaged one is kept for a look at it."""
    with ensure_engine(bundle, MODEL) as engine:
        folder = engine.path.parent
    if damage == "cut":
        os.truncate(folder / "weights.bin", 100)
    elif damage == "touched":
        os.utime(folder / "weights.bin", (1, 1))
    elif damage == "garbage":
        (folder / "entry.json").write_bytes(b"\0" * 100)
    else:
        (folder / "model.onnx").unlink()
    with ensure_engine(bundle, MODEL) as again:
        assert not again.hit
        assert computes(again, bundle)
    assert len(left(home)["quarantine"]) == 1
    with ensure_engine(bundle, MODEL) as found:
        assert found.hit


def test_the_quota_evicts_what_nobody_uses(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that another process has leased stays, over quota or not."""
    monkeypatch.setenv("REFIT_AGENT_CACHE_QUOTA", "10K")
    roots = [make_bundle(tmp_path / str(n), seed=n) for n in range(3)]
    with ensure_engine(roots[0], MODEL) as engine:
        first = engine.key
    with leased(Store(str(home / "cache")), first):
        with ensure_engine(roots[1], MODEL) as engine:
            second = engine.key
        assert left(home)["engines"] == sorted([first, second])
        with ensure_engine(roots[2], MODEL) as engine:
            assert left(home)["engines"] == sorted([first, engine.key])


# ---------------------------------------------------------------- many at once

_ENSURE = """
import sys
from refit_agent import ensure_engine
with ensure_engine(sys.argv[1], sys.argv[2]) as engine:
    print(engine.hit, engine.path)
"""


def test_of_many_processes_exactly_one_makes_the_engine(bundle: Path, home: Path) -> None:
    """All get the same path."""
    command, env = python(_ENSURE, bundle, MODEL)
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(hit for hit, _ in answers) == ["False", "True", "True", "True"]
    assert len({path for _, path in answers}) == 1
    assert left(home)["tmp"] == []


def test_of_many_threads_exactly_one_makes_the_engine(bundle: Path, home: Path) -> None:
    """Those that waited were told that they wait, and that it is ready."""
    engines: list[Engine] = []
    waited: list[list[str]] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        steps: list[str] = []
        barrier.wait()
        engines.append(ensure_engine(bundle, MODEL, progress=lambda p: steps.append(p.phase)))
        if "wait" in steps:
            waited.append(steps)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.hit for e in engines].count(False) == 1
    assert len({e.path for e in engines}) == 1
    assert waited
    assert all(steps[0] == "wait" and steps[-1] == "ready" for steps in waited)
    store = Store(str(home / "cache"))
    for engine in engines:
        assert not store.remove(engine.key), "each holds a lease of its own"
        engine.close()
    assert store.remove(engines[0].key)


SLOW = "open(os.path.join(HERE, f'worker-{os.getpid()}'), 'w').close()\ntime.sleep(0.5)\n" + REAL


@pytest.mark.parametrize("hang", ["time.sleep(300)", "ctypes.PyDLL(None).sleep(300)"])
def test_if_the_parent_is_killed_the_worker_goes_too_and_the_next_call_succeeds(
    bundle: Path, home: Path, evil_runtime: Install, hang: str
) -> None:
    """No orphan is left, though native code holds the interpreter; no lock is stuck, and the leftovers are gone."""
    folder = evil_runtime("open(os.path.join(HERE, f'worker-{os.getpid()}'), 'w').close()\n" + hang)
    command, env = python(_ENSURE, bundle, MODEL, path=[folder])
    parent = subprocess.Popen(command, env=env)
    ends = time.monotonic() + 20
    while not (marks := list(folder.glob("worker-*"))) and time.monotonic() < ends:
        time.sleep(0.01)
    worker = psutil.Process(int(marks[0].name.split("-")[1]))
    assert worker.ppid() == parent.pid
    parent.kill()
    parent.wait()
    psutil.wait_procs([worker], timeout=5)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert left(home)["engines"] == []
    assert left(home)["tmp"] != []
    evil_runtime(REAL)
    with ensure_engine(bundle, MODEL) as engine:
        assert not engine.hit
        assert left(home) == {"engines": [engine.key], "tmp": [], "quarantine": []}


def test_if_the_worker_is_killed_the_parent_says_so(bundle: Path, home: Path, evil_runtime: Install) -> None:
    """From outside, in the middle of the work."""
    folder = evil_runtime(SLOW.replace("0.5", "300"))

    def kill() -> None:
        while not (marks := list(folder.glob("worker-*"))):
            time.sleep(0.01)
        os.kill(int(marks[0].name.split("-")[1]), 9)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerCrashed, match="signal SIGKILL during start"):
        ensure_engine(bundle, MODEL)
    killer.join()
    assert nothing_left(home)


def test_nothing_partial_is_ever_visible_whenever_it_is_killed(bundle: Path, home: Path) -> None:
    """Parents are killed at all times of their work; whoever looks sees whole engines or none."""
    engines = home / "cache" / "engines"
    faults: list[object] = []
    seen = 0
    stop = threading.Event()

    def watch() -> None:
        nonlocal seen
        while not stop.is_set():
            for name in os.listdir(engines) if engines.is_dir() else ():
                folder = engines / name
                try:
                    entry = json.loads((folder / "entry.json").read_bytes())
                    faults.extend(f for f in entry["files"] if (folder / f["name"]).stat().st_size != f["size"])
                    seen += 1
                except (OSError, ValueError) as error:
                    if folder.is_dir():  # otherwise it was just removed, whole, by this test
                        faults.append(repr(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    command, env = python(_ENSURE, bundle, MODEL)
    store = Store(str(home / "cache"))
    for number in range(24):
        parent = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        time.sleep(0.1 + 0.02 * number)
        parent.kill()
        parent.wait()
        for key in list(store.list_keys()):
            store.remove(key)
    with ensure_engine(bundle, MODEL) as engine:
        assert not engine.hit
        time.sleep(0.05)
    stop.set()
    watcher.join()
    assert faults == []
    assert seen > 0
    assert left(home) == {"engines": [engine.key], "tmp": [], "quarantine": []}


def test_an_interrupt_goes_to_the_caller_and_leaves_nothing(bundle: Path, home: Path, evil_runtime: Install) -> None:
    """Ctrl+C in the middle."""
    evil_runtime("time.sleep(300)")

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_engine(bundle, MODEL, progress=interrupt)
    assert nothing_left(home)
    assert psutil.Process().children() == []
    assert sys.platform != "linux" or not list((home / "cache" / "tmp").iterdir())


def test_a_plan_that_the_runtime_refuses_is_remembered_under_its_own_key_only(bundle: Path) -> None:
    """A new version of the plan is tried."""
    edit(bundle, lambda d: model_of(d)["golden"][0].update(inputs={"z": model_of(d)["golden"][0]["inputs"]["x"]}))
    with pytest.raises(PlanRefused):
        ensure_engine(bundle, MODEL)
    plan = bundle / "plans/mlp.cpu"
    edit(bundle, lambda d: model_of(d)["golden"][0].update(inputs={"x": model_of(d)["golden"][0]["inputs"]["z"]}))
    plan.write_bytes(plan.read_bytes() + b"\x12\x00")  # an empty producer name, which changes nothing but the hash
    edit(bundle, lambda d: model_of(d)["engines"][0].update(plan_sha256=None, plan_size=plan.stat().st_size))
    rehash(bundle)
    ensure_engine(bundle, MODEL).close()


def test_a_file_that_is_replaced_while_it_is_used_is_not_published(
    bundle: Path, home: Path, evil_runtime: Install
) -> None:
    """An updater's rename between hashing and use must not bring new weights under the old hash."""
    onnx = bundle / "models/mlp.onnx"
    evil_runtime(f"os.replace({str(onnx)!r} + '.new', {str(onnx)!r})\n" + REAL)
    shutil.copyfile(onnx, f"{onnx}.new")
    with pytest.raises(BundleFileMismatch, match="it changed while the engine was made"):
        ensure_engine(bundle, MODEL)
    assert os.listdir(home / "cache/engines") == []


def test_a_wish_to_cancel_is_heard_even_if_it_is_said_once(bundle: Path, evil_runtime: Install) -> None:
    """It is no failure after which the next best engine would be made."""
    evil_runtime("time.sleep(300)")
    answers = iter([True])
    with pytest.raises(Cancelled):
        ensure_engine(bundle, MODEL, cancelled=lambda: next(answers, False))


def test_without_room_a_lesser_engine_that_is_there_already_is_served(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app gets an engine, and is told why it is not the best one."""
    ensure_engine(bundle, MODEL).close()
    add_broken_engine(bundle)

    def full(*_: object, **__: object) -> None:
        raise DiskFull(path="/cache", free_bytes=1, needed_bytes=2)

    monkeypatch.setattr(make_module, "make_room", full)
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
        assert [a.code for a in engine.explanation.attempts] == [DiskFull.code]


def test_a_corrected_manifest_is_tried_at_once(bundle: Path) -> None:
    """A wrong weights_sha256 must not haunt the users after the vendor has mended it."""
    right = model_of(json.loads((bundle / "bundle.json").read_text()))["onnx"]["sha256"]
    edit(bundle, lambda d: model_of(d)["engines"][0].update(refit="identical", weights_sha256="0" * 64))
    with pytest.raises(WeightsNotIdentical):
        ensure_engine(bundle, MODEL)
    edit(bundle, lambda d: model_of(d)["engines"][0].update(weights_sha256=right))
    ensure_engine(bundle, MODEL).close()


def test_what_was_left_under_other_keys_is_cleared_away(bundle: Path, home: Path) -> None:
    """After an update nobody asks for the old key again: its half-made engine would stay for good."""
    left = home / "cache/tmp/old.1-2"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(bytes(1000))
    ensure_engine(bundle, MODEL).close()
    assert not left.exists()


@pytest.mark.parametrize("executable", [None, ""])
def test_a_frozen_app_is_not_started_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    """Without an interpreter there is an error that names the setting; with it the worker runs."""
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(RefitError) as info:
        ensure_engine(bundle, MODEL)
    assert "REFIT_AGENT_PYTHON" in info.value.hint
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setenv("REFIT_AGENT_PYTHON", PYTHON)
    ensure_engine(bundle, MODEL).close()


def test_a_worker_that_prints_without_end_does_not_fill_the_disk(
    bundle: Path, home: Path, evil_runtime: Install
) -> None:
    """It is stopped, and its log goes."""
    evil_runtime("while True: os.write(2, b'x' * 65536)")
    with pytest.raises(WorkerCrashed, match="endless output"):
        ensure_engine(bundle, MODEL)
    assert os.listdir(home / "cache/tmp") == []


@pytest.mark.parametrize("changes", [{"deadline_s": -1}, {"deadline_s": 0}, {"deadline_s": "x"}, {"form": "xyz"}])
def test_senseless_arguments_are_refused_on_a_hit_too(bundle: Path, changes: dict[str, Any]) -> None:
    """They would be noticed at a customer's first miss."""
    ensure_engine(bundle, MODEL).close()
    with pytest.raises(SettingInvalid, match=next(iter(changes))):
        ensure_engine(bundle, MODEL, **changes)
