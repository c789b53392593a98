"""`ensure_engine` with a service: it is asked on a miss, and nothing that it does costs an app its engine."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, edit, model_of, other_onnx_weights, python
from refit_agent import Progress, ensure_engine
from refit_agent.cache.store import Store
from refit_agent.client import ask, wire
from refit_agent.errors import (
    DiskFull,
    RefitAgentError,
    RefitError,
    ServiceUnreachable,
    WorkerCrashed,
)
from refit_agent.machine import Gpu, InstalledRuntime, Machine

from .conftest import Serve
from .fake_service import Asked, FakeService, Peer

Misbehave = Callable[[Peer], None]


def asked_for(service: FakeService) -> list[str]:
    return [f"{a.method} {a.target}" for a in service.asked]


def test_a_miss_is_made_by_the_service_and_leased_in_this_process(serve: Serve, bundle: Path, home: Path) -> None:
    """The engine is as one made in-process: in our cache, under our lock, with its reasons; the service's lease ends."""
    service = serve()
    steps: list[Progress] = []
    with ensure_engine(bundle, MODEL, progress=steps.append) as engine:
        assert not engine.hit
        assert engine.path.is_file()
        assert engine.explanation.engine == "plans/mlp.cpu"
        assert asked_for(service) == ["POST /v1/engines:ensure", "DELETE /v1/leases/lease-1"]
        assert service.leases == set()
        assert not Store(str(home / "cache")).remove(engine.key), "our own lease keeps it"
    wish = service.asked[0].body
    assert (wish["bundle"], wish["model"], wish["pid"]) == (str(bundle), MODEL, os.getpid())
    assert [type(s) for s in steps] == [Progress] * len(steps)
    assert (steps[0].phase, steps[-1].phase, steps[-1].fraction) == ("start", "ready", 1.0)
    assert service.connections == 1


def test_a_hit_does_not_bother_the_service(serve: Serve, bundle: Path) -> None:
    """Every launch of an app but the first is a hit."""
    ensure_engine(bundle, MODEL, service=False).close()
    service = serve()
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.hit
    assert service.connections == 0


@pytest.mark.parametrize("how", ["variable", "in-service", "keyword"])
def test_no_service_where_none_is_wanted(serve: Serve, bundle: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The service itself must not ask the service, and a user may switch it off."""
    service = serve()
    if how == "variable":
        monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    elif how == "in-service":
        monkeypatch.setenv("REFIT_AGENT_IN_SERVICE", "1")
    ensure_engine(bundle, MODEL, service=False if how == "keyword" else None).close()
    assert service.connections == 0


def test_insisting_on_a_service_that_is_not_there_is_an_error(
    bundle: Path, socket_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only for a miss: what is in the cache needs no service."""
    with pytest.raises(ServiceUnreachable, match=r"agent\.sock cannot be used: nothing listens there"):
        ensure_engine(bundle, MODEL, service=True)
    monkeypatch.setenv("REFIT_AGENT_IN_SERVICE", "1")
    with pytest.raises(ServiceUnreachable, match="No service is used: this process is not to use one") as info:
        ensure_engine(bundle, MODEL, service=True)
    assert "serve" not in info.value.hint
    monkeypatch.delenv("REFIT_AGENT_IN_SERVICE")
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    with pytest.raises(ServiceUnreachable, match="No service is used: REFIT_AGENT_SOCKET is empty") as info:
        ensure_engine(bundle, MODEL, service=True)
    assert "Unset REFIT_AGENT_SOCKET" in info.value.hint
    ensure_engine(bundle, MODEL, service=False).close()
    assert ensure_engine(bundle, MODEL, service=True).hit


def test_own_weights_and_options_reach_the_service(serve: Serve, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an absolute path: its working folder is another."""
    service = serve()
    monkeypatch.chdir(bundle)
    ensure_engine(".", MODEL, target="cpu", weights="models/mlp.onnx", deadline_s=float("inf"), retry_failed=True, background=True).close()  # fmt: skip
    wish = service.asked[0].body
    assert wish["weights"] == str(bundle / "models/mlp.onnx")
    assert (wish["bundle"], wish["target"], wish["deadline_s"]) == (str(bundle), "cpu", 86400.0)
    assert wish["retry_failed"] and wish["background"]


def _machine(*indexes: int) -> Machine:
    """The GPUs of one computer that CUDA_VISIBLE_DEVICES leaves in sight, in its order."""
    gpus = [Gpu(index=i, name="NVIDIA L4", uuid=f"GPU-{n}", compute_capability="8.9") for i, n in enumerate(indexes)]
    runtimes = (InstalledRuntime(module="onnxruntime", version="1.20.0"), InstalledRuntime(module="tensorrt_lean", version="10.16.1.11", cuda_major=12))  # fmt: skip
    return Machine(os="linux", arch="x86_64", gpus=tuple(gpus), driver="580.1", cuda="13.0", runtimes=runtimes)


@pytest.mark.parametrize(
    ("visible", "target", "sent"),
    [
        ((), None, "cpu"),
        ((7,), None, None),
        ((7,), "gpu", "GPU-7"),
        ((7, 3), "cuda:1", "GPU-3"),
        ((7, 3), "gpu", "gpu"),
        ((7, 3), None, None),
    ],
)
def test_the_service_is_told_targets_that_mean_the_same_there(
    serve: Serve,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: tuple[int, ...],
    target: str | None,
    sent: str | None,
) -> None:
    """Numbers of GPUs depend on CUDA_VISIBLE_DEVICES, and a process that hides all of them wants none used."""
    engine = {
        "runtime": "tensorrt",
        "built_with": "10.16.1.11",
        "version_compatible": True,
        "os": ["linux"],
        "compute_capabilities": ["8.9"],
    }
    edit(bundle, lambda d: model_of(d)["engines"].insert(0, model_of(d)["engines"][0] | engine))
    monkeypatch.setattr("refit_agent.provision.detect", lambda home=None, fresh=False: _machine(*visible))
    service = serve(lambda peer, asked: peer.problem("disk-full", 507, path="/", free_bytes=0, needed_bytes=1))
    with pytest.raises(DiskFull):
        ensure_engine(bundle, MODEL, target=target)
    assert service.asked[0].body["target"] == sent


def test_what_brings_code_of_its_own_is_not_the_service_s_to_allow(
    serve: Serve, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the bundle is trusted is known to the process that was given its key."""
    engine = {"runtime": "tensorrt", "built_with": "10.16.1.11", "version_compatible": True, "os": ["linux"], "compute_capabilities": ["8.9"], "host_code": True}  # fmt: skip
    edit(bundle, lambda d: model_of(d)["engines"].append(model_of(d)["engines"][0] | engine))
    monkeypatch.setattr("refit_agent.provision.detect", lambda home=None, fresh=False: _machine(7))
    service = serve()
    with pytest.raises(ServiceUnreachable, match="code of its own"):
        ensure_engine(bundle, MODEL, service=True)
    assert service.connections == 0


# ---------------------------------------------------------------- a bad service


def silent(peer: Peer) -> None:
    peer.wait_for_hang_up()


def dies_at_once(peer: Peer) -> None:
    peer.socket.close()


def resets(peer: Peer) -> None:
    peer.begin_stream()
    peer.step()
    peer.socket.shutdown(socket.SHUT_RDWR)


def dies_in_an_event(peer: Peer) -> None:
    peer.begin_stream()
    peer.step()
    peer.send(b'20\r\n{"event":"res')
    peer.socket.shutdown(socket.SHUT_RDWR)


def ends_without_a_result(peer: Peer) -> None:
    peer.begin_stream()
    peer.step()
    peer.send(b"0\r\n\r\n")


def goes_silent(peer: Peer) -> None:
    peer.begin_stream()
    peer.step()
    peer.wait_for_hang_up()


def half_a_head(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Ty")
    peer.socket.shutdown(socket.SHUT_RDWR)


def drips(peer: Peer) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x" * 1000:
        peer.send(bytes([byte]))
        time.sleep(0.05)


def garbage(peer: Peer) -> None:
    peer.send(os.urandom(4096))


def another_protocol(peer: Peer) -> None:
    peer.json({"path": "/etc/passwd"}, protocol="2")


def no_protocol(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def an_endless_head(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        peer.send(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def an_endless_line(peer: Peer) -> None:
    peer.begin_stream()
    while True:
        peer.chunk(b"x" * 60000)


def an_endless_stream(peer: Peer) -> None:
    peer.begin_stream()
    while True:
        peer.chunk(b'{"event":"progress","phase":"a","text":"","fraction":0.1}\n' * 1000)


def a_huge_length(peer: Peer) -> None:
    peer.head(Content_Length="999999999999")
    while True:
        peer.send(b"x" * 60000)


def json_that_is_none(peer: Peer) -> None:
    peer.head(Content_Length="9")
    peer.send(b"[[[[[[[[[")


def an_unknown_event(peer: Peer) -> None:
    peer.begin_stream()
    peer.event("surprise")
    peer.send(b"0\r\n\r\n")


def result(**fields: object) -> dict[str, Any]:
    lease = {"id": "lease-1", "ttl_s": 60.0, "expires": 1.0}
    why = {"engine": "e", "tier": "cpu", "chosen": "because"}
    return {"path": "/tmp/x", "key": "0" * 64, "runtime": "onnxruntime", "runtime_version": "1", "target": "cpu", "hit": True, "explanation": why, "lease": lease} | fields  # fmt: skip


def another_engine(peer: Peer) -> None:
    peer.json(result())


def two_results(peer: Peer) -> None:
    peer.begin_stream()
    peer.event("result", **result())
    peer.event("result", **result())
    peer.send(b"0\r\n\r\n")


def stopping(peer: Peer) -> None:
    peer.problem("service-error", 503)


def without_the_call(peer: Peer) -> None:
    peer.problem("not-found", 404)


def a_fault_of_its_own(peer: Peer) -> None:
    peer.problem("internal", 500)


def blind(peer: Peer) -> None:
    peer.problem("bundle-missing", 422, bundle="/app", detail="no such folder in its container")


def out_of_files(peer: Peer) -> None:
    peer.problem("bundle-file-unreadable", 503, path="/app/bundle.json", detail="Too many open files")


BAD = [silent, dies_at_once, resets, dies_in_an_event, ends_without_a_result, goes_silent, half_a_head, drips, garbage, another_protocol, no_protocol, an_endless_head, an_endless_line, an_endless_stream, a_huge_length, json_that_is_none, an_unknown_event, another_engine, two_results, stopping, without_the_call, a_fault_of_its_own, blind, out_of_files]  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ask.ServiceClient

    def client(path: str) -> Any:
        return original(path, answer_s=0.4, silence_s=0.4)

    monkeypatch.setattr(ask, "ServiceClient", client)
    monkeypatch.setattr(wire, "MOST_BODY_BYTES", 4 << 20)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bad", BAD, ids=lambda f: f.__name__)
def test_a_service_that_misbehaves_costs_no_app_its_engine(serve: Serve, bundle: Path, bad: Misbehave) -> None:
    """The work is done in-process, soon; and insisting on the service gives an error, never a hang."""

    def misbehave(peer: Peer, asked: Asked) -> None:
        bad(peer)

    service = serve(misbehave)
    with pytest.raises(RefitAgentError):
        ensure_engine(bundle, MODEL, service=True)
    steps: list[Progress] = []
    began = time.monotonic()
    with ensure_engine(bundle, MODEL, progress=steps.append) as engine:
        assert engine.path.is_file()
        assert not engine.hit
    assert time.monotonic() - began < 5
    assert service.connections >= 2
    fractions = [s.fraction for s in steps]
    assert fractions == sorted(fractions), "it does not go back where in-process work takes over"


def test_a_service_killed_in_the_middle_is_replaced_by_in_process_work(serve: Serve, bundle: Path) -> None:
    """As a kill -9 of the daemon looks from here."""
    begun = threading.Event()

    def work_for_ever(peer: Peer, asked: Asked) -> None:
        peer.begin_stream()
        while True:
            peer.step()
            begun.set()
            time.sleep(0.05)

    service = serve(work_for_ever)
    killer = threading.Thread(target=lambda: (begun.wait(5), service.close()))
    killer.start()
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.path.is_file()
    killer.join()


def test_a_stale_socket_is_no_service(bundle: Path, socket_file: Path) -> None:
    """What a killed daemon leaves behind."""
    socket_file.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_file))
    socket_file.chmod(0o600)
    began = time.monotonic()
    ensure_engine(bundle, MODEL).close()
    assert time.monotonic() - began < 5


def test_a_service_that_takes_no_connections_is_given_up_on(bundle: Path, socket_file: Path) -> None:
    """Its queue is full, because it hangs: after a fifth of a second the work is done here."""
    socket_file.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as hung, socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:  # fmt: skip
        hung.bind(str(socket_file))
        socket_file.chmod(0o600)
        hung.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(str(socket_file))
        began = time.monotonic()
        with pytest.raises(ServiceUnreachable, match="takes no connections"):
            ensure_engine(bundle, MODEL, service=True)
        assert 0.15 < time.monotonic() - began < 1.5


# ---------------------------------------------------------------- somebody else's


@pytest.mark.parametrize("what", ["socket", "folder", "file"])
def test_what_others_may_write_to_is_not_trusted(serve: Serve, bundle: Path, socket_file: Path, what: str) -> None:
    """Another user could listen there, and hand us an engine of his."""
    service = serve()
    if what == "socket":
        socket_file.chmod(0o666)
    elif what == "folder":
        socket_file.parent.chmod(0o777)
    else:
        socket_file.unlink()
        socket_file.write_text("no socket")
    with pytest.raises(ServiceUnreachable, match="it is not a socket" if what == "file" else "other users may write"):
        ensure_engine(bundle, MODEL, service=True)
    ensure_engine(bundle, MODEL).close()
    assert service.connections == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("what", ["socket", "folder"])
def test_another_user_s_socket_is_not_trusted(serve: Serve, bundle: Path, socket_file: Path, what: str) -> None:
    """Whoever could write to the folder before us."""
    service = serve()
    os.chown(socket_file if what == "socket" else socket_file.parent, 65534, 65534)
    with pytest.raises(ServiceUnreachable, match="belongs to user 65534"):
        ensure_engine(bundle, MODEL, service=True)
    ensure_engine(bundle, MODEL).close()
    assert service.connections == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to run a process as another user")
def test_another_user_s_program_behind_our_socket_is_not_trusted(bundle: Path, socket_file: Path) -> None:
    """The files are ours, and who listens is not: it was let in by mistake, or took the place in time."""
    socket_file.parent.mkdir(parents=True, mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(socket_file))
        socket_file.chmod(0o600)
        code = "import os, socket, sys; os.setuid(65534); s = socket.socket(fileno=int(sys.argv[1])); s.listen(5); print('up', flush=True); sys.stdin.read()"
        command, env = python(code, str(listener.fileno()))
        process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()])  # fmt: skip
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            with pytest.raises(ServiceUnreachable, match="user 65534 listens there"):
                ensure_engine(bundle, MODEL, service=True)
            ensure_engine(bundle, MODEL).close()


# ---------------------------------------------------------------- errors and endings


def test_what_the_service_reports_is_raised_as_in_process(serve: Serve, bundle: Path) -> None:
    """Same class, same facts, with the service's hint, and not tried again in-process."""
    other_onnx_weights(bundle)
    service = serve()
    with pytest.raises(RefitAgentError) as caught:
        ensure_engine(bundle, MODEL)
    assert caught.value.hint == "said by the service"
    assert asked_for(service) == ["POST /v1/engines:ensure"]
    with pytest.raises(type(caught.value)) as own:
        ensure_engine(bundle, MODEL, service=False, retry_failed=True)
    assert str(own.value) == str(caught.value)
    assert type(own.value) is not RefitAgentError


@pytest.mark.parametrize(("code", "kind"), [("disk-full", DiskFull), ("worker-crashed", WorkerCrashed)])
def test_a_problem_document_becomes_its_error(serve: Serve, bundle: Path, code: str, kind: type[Exception]) -> None:
    """Whether it comes as the answer or as the last event of a stream."""
    serve(lambda peer, asked: peer.problem(code, 507, path="/x", free_bytes=1, needed_bytes=2, how="h", phase="p", log="l"))  # fmt: skip
    with pytest.raises(kind) as caught:
        ensure_engine(bundle, MODEL)
    assert isinstance(caught.value, RefitAgentError)
    assert caught.value.hint == "Do something."


def _work_until_left(left: threading.Event) -> Callable[[Peer, Asked], None]:
    def work(peer: Peer, asked: Asked) -> None:
        peer.begin_stream()
        peer.step()
        if peer.wait_for_hang_up():
            left.set()

    return work


def test_cancelling_hangs_up_and_does_nothing_else(serve: Serve, bundle: Path, home: Path) -> None:
    """The service stops the worker when nobody waits; in-process work would be the opposite of what was asked."""
    left = threading.Event()
    serve(_work_until_left(left))
    began = time.monotonic()
    with pytest.raises(RefitError, match="cancelled"):
        ensure_engine(bundle, MODEL, cancelled=lambda: time.monotonic() - began > 0.3)
    assert left.wait(2)
    assert not (home / "cache").exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError, ConnectionResetError])
def test_an_exception_of_the_callback_hangs_up_at_once(serve: Serve, bundle: Path, kind: type[BaseException]) -> None:
    """Also while its traceback, and with it every frame, is kept; and none is taken for a fault of the service."""
    left = threading.Event()
    serve(_work_until_left(left))

    def fail(step: Progress) -> None:
        raise kind

    gc.disable()
    try:
        with pytest.raises(kind) as caught:
            ensure_engine(bundle, MODEL, progress=fail)
        assert left.wait(2), caught
    finally:
        gc.enable()
