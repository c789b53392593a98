"""One refit for all who want the engine, and for each of them the answer to his own question."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bundles import MODEL, REAL, add_broken_engine, edit, make_bundle, model_of, python, shim

from .running import Running, read_answer, until

_IN_PROCESS = """
import sys
from refit_agent import ensure_engine
print("begun", flush=True)
with ensure_engine(sys.argv[1], sys.argv[2], service=False) as engine:
    print(engine.key)
"""


def end(sock: socket.socket) -> dict[str, object]:
    """The last line of the stream."""
    with sock:
        last: dict[str, object] = read_answer(sock).lines[-1]
    return last


def wait_for(service: Running, waiters: int) -> None:
    until(lambda: sum(job["waiters"] for job in service.status["jobs"]) == waiters)


def test_the_service_and_four_processes_make_an_engine_once(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """A hundred clients, and apps that use no service, on one cache."""
    service = start(path=[slow_runtime])
    command, env = python(_IN_PROCESS, bundle, MODEL, path=[slow_runtime])
    apps = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for app in apps[:2]:
            assert app.stdout is not None and app.stdout.readline() == "begun\n"
        with ThreadPoolExecutor(100) as pool:
            answers = [pool.submit(service.ensure, bundle, MODEL) for _ in range(100)]
            wait_for(service, 100)
            for app in apps[2:]:
                assert app.stdout is not None and app.stdout.readline() == "begun\n"
            time.sleep(0.5)
            (slow_runtime / "go").touch()
            results = [answer.result().lines[-1] for answer in answers]
        keys = {app.communicate(timeout=30)[0].strip() for app in apps}
    finally:
        for app in apps:
            app.kill()
            app.wait()
    assert {result["event"] for result in results} == {"result"}
    assert keys == {results[0]["key"]}
    assert {result["key"] for result in results} == keys
    assert (slow_runtime / "count").read_text() == "x"
    assert len(list((service.home / "cache/engines").iterdir())) == 1


@pytest.fixture
def like(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two bundles with the same best engine, which is no good; the first has another one besides."""
    add_broken_engine(bundle)
    poor = Path(shutil.copytree(bundle, tmp_path / "poor"))
    edit(poor, lambda d: model_of(d)["engines"].pop())
    return bundle, poor


@pytest.mark.parametrize("first", [0, 1])
def test_another_bundles_second_choice_is_not_given(
    start: Callable[..., Running], slow_runtime: Path, like: tuple[Path, Path], first: int
) -> None:
    """They wait for one engine, which cannot be made: each gets what its own bundle holds, whoever asked first."""
    service = start(path=[slow_runtime])
    socks = {like[first]: service.begin(like[first], MODEL)}
    wait_for(service, 1)
    socks[like[1 - first]] = service.begin(like[1 - first], MODEL)
    wait_for(service, 2)
    assert len(service.status["jobs"]) == 1
    (slow_runtime / "go").touch()
    rich, poor = (end(socks[bundle]) for bundle in like)
    assert rich["event"] == "result", rich
    assert rich["explanation"]["engine"] == "plans/mlp.cpu"  # type: ignore[index]
    assert [a["code"] for a in rich["explanation"]["attempts"]] == ["onnx-malformed"]  # type: ignore[index]
    assert (poor["event"], poor["code"]) == ("error", "onnx-malformed")


def test_a_bundle_that_shares_the_engine_gets_it(
    start: Callable[..., Running], slow_runtime: Path, like: tuple[Path, Path], tmp_path: Path
) -> None:
    """With its own reasons: the target that it asked for, and the name that the plan has there."""
    rich = like[0]
    edit(rich, lambda d: model_of(d)["engines"].pop(0))
    other = Path(shutil.copytree(rich, tmp_path / "other"))
    (other / "plans/mlp.cpu").rename(other / "plans/renamed.cpu")
    edit(other, lambda d: model_of(d)["engines"][0].update(path="plans/renamed.cpu"))
    service = start(path=[slow_runtime])
    one = service.begin(rich, MODEL)
    wait_for(service, 1)
    two = service.begin(other, MODEL, target="cpu")
    wait_for(service, 2)
    (slow_runtime / "go").touch()
    results = end(one), end(two)
    assert results[0]["path"] == results[1]["path"]
    assert [r["explanation"]["engine"] for r in results] == ["plans/mlp.cpu", "plans/renamed.cpu"]  # type: ignore[index]
    assert [r["hit"] for r in results] == [False, False]
    assert (slow_runtime / "count").read_text() == "x"


_SLOW_CHECK = """
import onnxruntime
Real = onnxruntime.InferenceSession
def slow(*args, **options):
    open(os.path.join(HERE, "checks"), "a").write("x")
    ends = time.monotonic() + 60
    while not os.path.exists(os.path.join(HERE, "go")) and time.monotonic() < ends:
        time.sleep(0.02)
    return Real(*args, **options)
onnxruntime.InferenceSession = slow
"""


@pytest.mark.parametrize("sound", [True, False])
def test_weights_that_were_replaced_are_asked_for_anew(
    start: Callable[..., Running], tmp_path: Path, sound: bool
) -> None:
    """Who asked after that does not get the error of the one who asked before; one more job is for all of them, also
    if it fails."""
    runtime = shim(tmp_path / "slow_check", REAL + _SLOW_CHECK)
    bundle, other = (make_bundle(tmp_path / name, seed=seed, external=True) for seed, name in enumerate("ab"))
    own = tmp_path / "own"
    shutil.copytree(bundle / "models", own)
    service = start(path=[runtime])
    before = service.begin(bundle, MODEL, weights=str(own / "mlp.onnx"))
    until((runtime / "checks").exists)
    (own / "new").write_bytes((other / "models/w1.bin").read_bytes() if sound else b"short")
    (own / "new").replace(own / "w1.bin")
    after = [service.begin(bundle, MODEL, weights=str(own / "mlp.onnx")) for _ in range(3)]
    wait_for(service, 4)
    assert len(service.status["jobs"]) == 1
    (runtime / "go").touch()
    assert end(before)["code"] == "bundle-file-mismatch"
    results = [end(sock) for sock in after]
    assert [result["event"] for result in results] == ["result" if sound else "error"] * 3, results
    assert len({str(result["path"] if sound else result["detail"]) for result in results}) == 1
    assert len(service.status["errors"]) == (1 if sound else 2)


def test_the_deadline_of_one_is_not_anothers(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """A worker that was stopped for one who would not wait works again for the other."""
    service = start(path=[slow_runtime])
    hasty = service.begin(bundle, MODEL, deadline_s=1.5)
    wait_for(service, 1)
    patient = service.begin(bundle, MODEL)
    wait_for(service, 2)
    assert end(hasty)["code"] == "worker-timeout"
    (slow_runtime / "go").touch()
    assert end(patient)["event"] == "result"
    assert (slow_runtime / "count").read_text() == "xx"


def test_a_worker_has_as_long_as_the_most_patient_wants(
    start: Callable[..., Running], slow_runtime: Path, sound_bundle: Path, tmp_path: Path
) -> None:
    """Whoever asked first, if both came before it began."""
    other = make_bundle(tmp_path / "other", seed=8)
    service = start(path=[slow_runtime])
    running = service.begin(sound_bundle, MODEL)
    wait_for(service, 1)
    hasty, patient = service.begin(other, MODEL, deadline_s=3), service.begin(other, MODEL, deadline_s=1000)
    wait_for(service, 3)
    (slow_runtime / "go").touch()
    assert end(running)["event"] == "result"
    (slow_runtime / "go").unlink()
    time.sleep(4)
    (slow_runtime / "go").touch()
    assert [end(sock)["event"] for sock in (hasty, patient)] == ["result"] * 2
    assert (slow_runtime / "count").read_text() == "xx"
