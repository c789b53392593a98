"""The client against the service itself: a process of its own, killed, stopped and asked by many."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from bundles import MODEL, REAL, make_bundle, python
from refit_agent import AsyncClient, Engine, Progress, ServiceClient, ensure_engine
from refit_agent.client.messages import EnsureRequest
from refit_agent.errors import RefitError, ServiceUnreachable, UnknownModel
from refit_agent.service_socket import socket_path

if sys.platform == "win32":
    pytest.skip("the service needs Unix sockets", allow_module_level=True)

EXAMPLES = Path(__file__).parents[2] / "packaging" / "examples"
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the service of this test's home and waits until it answers."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(*path: Path) -> subprocess.Popen[bytes]:
        _, env = python("", path=path)
        with (tmp_path / "service.log").open("ab") as log:
            command = [sys.executable, "-m", "refit_agent", "serve"]
            process = subprocess.Popen(command, env=env | {"REFIT_AGENT_WARM": "0"}, stdout=log, stderr=log)
        running.append(process)
        with ServiceClient() as client:
            for _ in range(200):
                try:
                    client.status()
                    return process
                except ServiceUnreachable:
                    assert process.poll() is None, (tmp_path / "service.log").read_text()
                    time.sleep(0.05)
        raise AssertionError("the service does not answer")

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def slow(evil_runtime: Callable[[str], Path], tmp_path: Path) -> Callable[[bool], Path]:
    """A runtime whose workers hang as long as a file says so; gives the folder that brings it."""
    flag = tmp_path / "hang"
    folder = evil_runtime(f"while os.path.exists({str(flag)!r}): time.sleep(0.02)\n" + REAL)

    def hang(on: bool) -> Path:
        flag.touch() if on else flag.unlink(missing_ok=True)
        return folder

    return hang


def workers(of: int) -> list[psutil.Process]:
    return psutil.Process(of).children(recursive=True)


def begin_ensure(bundle: Path, **options: object) -> tuple[threading.Thread, threading.Event, list[object]]:
    """`ensure_engine` in a thread: the thread, an event at its first progress, and its outcome."""
    begun, outcome = threading.Event(), list[object]()

    def work() -> None:
        def note(step: Progress) -> None:
            if step.phase not in ("queue", "wait"):
                begun.set()

        try:
            outcome.append(ensure_engine(bundle, MODEL, progress=note, **options))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, begun, outcome


def test_an_engine_by_the_service_is_as_one_made_here(start: Start, bundle: Path, tmp_path: Path) -> None:
    """Made by a child of the service, leased by us alone."""
    start()
    steps: list[Progress] = []
    with ensure_engine(bundle, MODEL, service=True, progress=steps.append) as engine:
        assert not engine.hit
        assert engine.path.is_file()
        assert engine.explanation.engine == "plans/mlp.cpu"
    assert (steps[-1].phase, steps[-1].fraction) == ("ready", 1.0)
    assert ensure_engine(bundle, MODEL, service=True).hit
    with pytest.raises(UnknownModel):
        ServiceClient().ensure(EnsureRequest(bundle=str(bundle), model="nonsense"))
    with ensure_engine(make_bundle(tmp_path / "two", seed=3), MODEL, service=True) as other:
        assert other.key != engine.key


def test_many_at_once_cause_one_refit(start: Start, slow: Callable[[bool], Path], bundle: Path) -> None:
    """All wait for the same engine, and get it."""
    service = start(slow(True))
    all_of_them = [begin_ensure(bundle, service=True) for _ in range(20)]
    for _, begun, _ in all_of_them:
        assert begun.wait(10)
    assert len(workers(service.pid)) == 1
    assert [job.waiters for job in ServiceClient().status().jobs] == [20]
    slow(False)
    paths = set()
    for thread, _, outcome in all_of_them:
        thread.join(20)
        assert isinstance(outcome[0], Engine), outcome
        paths.add(os.fspath(outcome[0]))
        outcome[0].close()
    assert len(paths) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_service_that_ends_in_the_middle(
    start: Start, slow: Callable[[bool], Path], bundle: Path, how: signal.Signals
) -> None:
    """The engine comes all the same, made here, and no worker of the service is left."""
    service = start(slow(True))
    thread, begun, outcome = begin_ensure(bundle)
    assert begun.wait(10)
    left = workers(service.pid)
    assert len(left) == 1
    service.send_signal(how)
    service.wait(20)
    gone, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []
    assert len(gone) == 1
    slow(False)
    thread.join(30)
    assert isinstance(outcome[0], Engine), outcome
    assert outcome[0].path.is_file()
    outcome[0].close()
    start()
    assert ensure_engine(bundle, MODEL, service=True).hit


def test_the_last_one_to_leave_stops_the_worker(start: Start, slow: Callable[[bool], Path], bundle: Path) -> None:
    """And the first one does not."""
    service = start(slow(True))
    leave = [threading.Event(), threading.Event()]
    waiting = [begin_ensure(bundle, cancelled=event.is_set) for event in leave]
    for _, begun, _ in waiting:
        assert begun.wait(10)
    leave[0].set()
    waiting[0][0].join(10)
    assert isinstance(waiting[0][2][0], RefitError)
    time.sleep(0.5)
    assert len(workers(service.pid)) == 1
    leave[1].set()
    waiting[1][0].join(10)
    ends = time.monotonic() + 10
    while (ServiceClient().status().jobs or workers(service.pid)) and time.monotonic() < ends:
        time.sleep(0.05)
    assert workers(service.pid) == []


def test_an_asyncio_app(start: Start, bundle: Path) -> None:
    """The other client, through a whole life."""
    start()

    async def main() -> None:
        client = AsyncClient()
        record = await client.add_bundle(bundle)
        assert [b.id for b in await client.bundles()] == [record.id]
        steps: list[Progress] = []
        wish = EnsureRequest(bundle=record.id, model=MODEL, pid=os.getpid())
        result = await client.ensure(wish, steps.append)
        assert not result.hit
        assert steps
        assert (await client.renew(result.lease.id, 5)).ttl_s == 5
        results = await asyncio.gather(*(client.ensure(wish) for _ in range(20)))
        assert all(r.hit and r.path == result.path for r in results)
        for one in [result, *results]:
            await client.release(one.lease.id)
        assert (await client.gpus()).os == "linux"
        assert (await client.verify_cache())["ok"]
        assert (await client.status()).bundles == 1
        await client.remove_bundle(record.id)

    asyncio.run(main())


def test_the_commands(start: Start, bundle: Path) -> None:
    """As a person or an installer uses them."""
    start()

    def run(*arguments: str | Path) -> str:
        return subprocess.run([sys.executable, "-m", "refit_agent", *map(str, arguments)], capture_output=True, text=True, check=True, timeout=30).stdout  # fmt: skip

    assert "registered" in run("status")
    added = run("register", bundle)
    assert str(bundle) in run("registered")
    assert added.split()[0] in run("unregister", bundle)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run("unregister", bundle)
    assert caught.value.returncode == 8 and "'refit-agent registered' lists" in caught.value.stderr
    path = run("path", bundle, MODEL).strip()
    assert path == run("path", bundle, MODEL).strip()
    assert os.path.isfile(path)
    run("watch", "--until-idle")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_every_curl_command_of_the_readme_works(start: Start, bundle: Path, home: Path) -> None:
    """In its order, with ids from the answers before."""
    start()
    text = (EXAMPLES / "README.md").read_text().replace("denoiser", MODEL)
    commands = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert len(commands) == 16
    env = os.environ | {"SOCK": str(home / "run" / "agent.sock"), "BUNDLE": str(bundle), "LEASE": "", "ID": ""}
    for command in commands:
        done = subprocess.run(["sh", "-c", command.strip() + " -f"], env=env, capture_output=True, text=True, timeout=20)  # fmt: skip
        assert done.returncode == 0, (command, done)
        assert done.stdout or "DELETE" in command
        found = re.search(r'"lease":\{"id":"(\w+)"', done.stdout)
        env["LEASE"] = found[1] if found else env["LEASE"]
        found = re.search(r'^\{"id":"(\w+)","path"', done.stdout)
        env["ID"] = found[1] if found else env["ID"]


def _compiled(tmp_path: Path) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler here")
    program = str(tmp_path / "example")
    source = str(EXAMPLES / "c" / "refit_agent_example.c")
    probe = subprocess.run([compiler, "-E", "-x", "c", "-"], input="#include <curl/curl.h>\n", capture_output=True, text=True)  # fmt: skip
    if probe.returncode:
        pytest.skip("libcurl's headers are not here (libcurl4-openssl-dev)")
    command = [compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-o", program, source, "-lcurl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def test_the_c_example(start: Start, bundle: Path, tmp_path: Path) -> None:
    """Compiled without a warning; miss, hit, an error of the bundle, strange names, and no service."""
    program = _compiled(tmp_path)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=30)

    assert run(bundle, MODEL).returncode == 8
    service = start()
    made = run(bundle, MODEL)
    assert made.returncode == 0, made.stderr
    assert "%" in made.stderr
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
        assert made.stdout == f"{engine.path}\n" == run(bundle, MODEL).stdout
    odd = Path(shutil.copytree(bundle, tmp_path / 'a "b"\\ü\n😀'))
    assert run(odd, MODEL).stdout == made.stdout
    wrong = run(odd, "no\tsuch")
    assert wrong.returncode == 1
    assert "has no model" in wrong.stderr
    assert "ü" in wrong.stderr
    assert run("relative", MODEL).returncode == 1
    assert run(os.path.relpath(bundle), MODEL).stdout == made.stdout
    service.kill()
    service.wait()
    assert run(bundle, MODEL).returncode == 8


@pytest.mark.parametrize(
    "variables",
    [
        {"REFIT_AGENT_SOCKET": "/nowhere/my.sock"},
        {"REFIT_AGENT_HOME": "/nowhere"},
        {"XDG_RUNTIME_DIR": "/nowhere/run"},
        {"XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": "/nowhere/state"},
        {"XDG_RUNTIME_DIR": "relative", "HOME": "/nowhere/home"},
    ],
)
def test_the_c_example_looks_where_the_library_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """With and without a login session."""
    for name in ("REFIT_AGENT_SOCKET", "REFIT_AGENT_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([_compiled(tmp_path), "b", "m"], capture_output=True, text=True)
    assert done.returncode == 8
    assert f"no service at {socket_path()}:" in done.stderr
