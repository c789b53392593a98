"""Every call, by both clients, against a service that keeps the contract."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, python
from refit_agent import AsyncClient, Progress, ServiceClient, ensure_engine_async
from refit_agent.client.messages import EnsureRequest, Step
from refit_agent.client.wire import Cancelled
from refit_agent.errors import (
    RefitAgentError,
    RefitError,
    ServiceError,
    ServiceRefused,
    ServiceUnreachable,
    SettingInvalid,
)

from .conftest import Serve
from .fake_service import Asked, Peer


class Both:
    """Calls the asynchronous client as if it were the other one."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kw: asyncio.run(getattr(self._client, name)(*args, **kw))


@pytest.fixture(params=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, socket_file: Path) -> Any:
    options = {"answer_s": 1.0, "silence_s": 1.0}
    if request.param == "asyncio":
        return Both(AsyncClient(**options))
    sync = ServiceClient(**options)
    request.addfinalizer(sync.close)
    return sync


def test_a_path_that_json_cannot_hold_is_refused(client: Any) -> None:
    """With the path, and without a service."""
    with pytest.raises(SettingInvalid, match="UTF-8") as caught:
        client.add_bundle("/app/\udcff")
    assert caught.value.facts["value"] == "/app/\udcff"


def test_every_call_arrives_and_is_understood(serve: Serve, client: Any, bundle: Path) -> None:
    """In the order of a small life: register, make, renew, release, look round, remove."""
    service = serve()
    record = client.add_bundle(bundle)
    assert [b.id for b in client.bundles()] == [record.id]
    steps: list[Progress] = []
    result = client.ensure(EnsureRequest(bundle=str(bundle), model=MODEL, ttl_s=30), steps.append)
    assert os.path.exists(result.path)
    assert not result.hit
    assert all(isinstance(s, Step) for s in steps)
    assert steps[-1].fraction == 1.0
    assert client.renew(result.lease.id, 90.0).ttl_s == 90.0
    client.release(result.lease.id)
    with pytest.raises(ServiceError):
        client.renew(result.lease.id)
    status = client.status()
    assert (status.pid, status.bundles, status.cache.quota) == (os.getpid(), 1, 4096)
    assert client.gpus().os == "linux"
    assert client.explain("/b", MODEL)["target"] == "/v1/explain?bundle=%2Fb&model=mlp"
    assert client.cache()["target"] == "/v1/cache"
    assert client.verify_cache(["k"])["body"] == {"keys": ["k"]}
    assert client.prune_cache(5)["body"] == {"max_bytes": 5}
    client.remove_bundle(record.id)
    with pytest.raises(ServiceRefused, match=r"not-found.*It failed"):
        client.remove_bundle(record.id)
    assert service.bundles == {}


def test_an_error_at_the_end_of_a_stream_is_raised(serve: Serve, client: Any, bundle: Path) -> None:
    """With the class of its code."""
    serve()
    with pytest.raises(RefitAgentError) as caught:
        client.ensure(EnsureRequest(bundle=str(bundle), model="nonsense"))
    assert (caught.value.code, caught.value.hint) == ("unknown-model", "said by the service")


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n", b"\x16\x03\x01", b"HTTP/1.1 200 OK\r\nRefit-Agent-Protocol: 1\r\nContent-Length: 1\r\n\r\n{"])  # fmt: skip
def test_a_bad_answer_is_one_clear_error(serve: Serve, client: Any, data: bytes) -> None:
    """And none of the transport's own."""

    def misbehave(peer: Peer, asked: Asked) -> None:
        peer.send(data)
        peer.socket.close()
        raise OSError

    serve(misbehave)
    with pytest.raises(ServiceUnreachable, match=r"agent\.sock cannot be used"):
        client.status()


def test_silence_ends(serve: Serve, client: Any) -> None:
    """Also in the middle of a stream."""

    def stop_talking(peer: Peer, asked: Asked) -> None:
        peer.begin_stream()
        peer.step()
        peer.wait_for_hang_up()

    serve(stop_talking)
    with pytest.raises(ServiceUnreachable, match="did not answer in time"):
        client.ensure(EnsureRequest(bundle="/b", model=MODEL))


def test_no_service_is_said_in_words(client: Any) -> None:
    """With what to do."""
    with pytest.raises(ServiceUnreachable, match="nothing listens there") as caught:
        client.status()
    assert "refit-agent serve" in caught.value.hint
    assert caught.value.exit_code == 8


@pytest.mark.parametrize("kind", [ServiceClient, lambda: Both(AsyncClient())], ids=["threads", "asyncio"])
def test_an_empty_variable_is_not_called_a_missing_service(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[], Any]
) -> None:
    """To start one would not help: it is asked nowhere."""
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    with pytest.raises(ServiceUnreachable) as caught:
        kind().status()
    assert str(caught.value) == "No service is used: REFIT_AGENT_SOCKET is empty."
    assert caught.value.hint.startswith("Unset REFIT_AGENT_SOCKET")


def test_a_path_that_is_too_long_for_a_socket_is_no_crash(tmp_path: Path) -> None:
    """Linux allows 107 bytes."""
    path = str(tmp_path / ("x" * 150))
    with pytest.raises(ServiceUnreachable):
        ServiceClient(path).status()
    with pytest.raises(ServiceUnreachable):
        asyncio.run(AsyncClient(path).status())


# ---------------------------------------------------------------- connections


def test_a_connection_is_kept_for_the_next_call(serve: Serve) -> None:
    """And given up for a new one when the service has closed it meanwhile."""
    service = serve()
    with ServiceClient() as client:
        for _ in range(5):
            client.status()
        assert service.connections == 1
        service._open[0].shutdown(2)
        client.status()
        assert service.connections == 2


def test_a_service_that_was_started_anew_is_found(serve: Serve, socket_file: Path) -> None:
    """By a client that had talked to the one before."""
    with ServiceClient() as client:
        first = serve()
        client.status()
        first.close()
        socket_file.unlink()
        serve()
        assert client.status().version == "0.1.0"


def test_a_client_may_be_shared_between_threads(serve: Serve) -> None:
    """No answer goes to the wrong one."""
    serve()
    wrong: list[object] = []
    with ServiceClient() as client:

        def call(number: int) -> None:
            wanted = [f"{number}-{i}" for i in range(50)]
            got = [client.explain(name)["target"].rpartition("=")[2] for name in wanted]
            wrong.extend([pair for pair in zip(wanted, got, strict=True) if pair[0] != pair[1]])

        threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_forked_child_has_connections_of_its_own(serve: Serve) -> None:
    """It would read the parent's answers otherwise."""
    service = serve()
    code = """
        import os, sys
        from refit_agent import ServiceClient
        client = ServiceClient(sys.argv[1])
        client.status()
        child = os.fork()
        client.status()
        if child == 0:
            os._exit(0)
        sys.exit(os.waitpid(child, 0)[1])
    """
    command, env = python(code, service.path)
    assert subprocess.run(command, env=env, timeout=20).returncode == 0
    assert service.connections == 2


def test_cancelled_ends_a_wait(serve: Serve) -> None:
    """Within a fraction of a second."""
    serve(lambda peer, asked: peer.wait_for_hang_up() and None)
    began = time.monotonic()
    with ServiceClient() as client, pytest.raises(Cancelled):
        client.ensure(EnsureRequest(bundle="/b", model=MODEL), cancelled=lambda: time.monotonic() - began > 0.2)
    assert time.monotonic() - began < 1


# ---------------------------------------------------------------- asyncio


def _work(left: threading.Event) -> Any:
    def work(peer: Peer, asked: Asked) -> None:
        peer.begin_stream()
        peer.step()
        if peer.wait_for_hang_up():
            left.set()

    return work


def test_a_cancelled_task_hangs_up(serve: Serve) -> None:
    """The service stops what nobody waits for."""
    left = threading.Event()
    serve(_work(left))

    async def main() -> None:
        begun = asyncio.Event()
        wish = EnsureRequest(bundle="/b", model=MODEL)
        task = asyncio.create_task(AsyncClient().ensure(wish, lambda step: begun.set()))
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert left.wait(2)


def test_an_asyncio_app_gets_the_same_engine(serve: Serve, bundle: Path) -> None:
    """With progress in its loop, a lease of its own, and one refit for all who ask at once."""
    service = serve()
    steps: list[tuple[int, Progress]] = []

    async def main() -> None:
        def note(step: Progress) -> None:
            steps.append((threading.get_ident(), step))

        with await ensure_engine_async(bundle, MODEL, progress=note) as engine:
            assert not engine.hit
            assert engine.path.is_file()
        engines = await asyncio.gather(*(ensure_engine_async(bundle, MODEL) for _ in range(20)))
        assert all(e.hit for e in engines)
        for engine in engines:
            engine.close()
        with pytest.raises(RefitAgentError):
            await ensure_engine_async(bundle, "nonsense")

    asyncio.run(main())
    assert {thread for thread, _ in steps} == {threading.get_ident()}
    assert [a.target for a in service.asked] == ["/v1/engines:ensure", "/v1/leases/lease-1"]


def test_a_cancelled_asyncio_app_stops_the_work(serve: Serve, bundle: Path) -> None:
    """Though the thread cannot be cancelled."""
    left = threading.Event()
    serve(_work(left))

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ensure_engine_async(bundle, MODEL), 0.5)
        with pytest.raises(RefitError):
            await ensure_engine_async(bundle, MODEL, cancelled=lambda: True)

    asyncio.run(main())
    assert left.wait(2)
