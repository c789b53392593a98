"""The service at a port of loopback, as on Windows: found by a file, and closed to whoever cannot read that."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from bundles import MODEL, make_bundle
from refit_agent import AsyncClient, ServiceClient, ensure_engine
from refit_agent.client import _windows, loopback
from refit_agent.client.messages import EnsureRequest
from refit_agent.errors import ServiceUnreachable, SocketUnusable
from refit_service import loopback as service_side
from refit_service.gate import Gate
from refit_service.listening import listen

from .running import Running, read_answer, until

PROOF = "refit-agent-proof"


@pytest.fixture(autouse=True)
def place(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where service and clients of this file meet."""
    path = home / "run" / "agent.json"
    monkeypatch.setenv("REFIT_AGENT_SOCKET", str(path))
    return path


@pytest.fixture
def begin(home: Path, place: Path) -> Iterator[Callable[..., Running]]:
    """Starts services at the place."""
    started: list[Running] = []

    def start(**options: str) -> Running:
        started.append(Running(home, REFIT_AGENT_SOCKET=str(place), **options))
        return started[-1].start()

    yield start
    for running in started:
        running.kill()


@pytest.fixture
def service(begin: Callable[..., Running]) -> Running:
    return begin()


# ---------------------------------------------------------------- for its own user


def test_engines_come_by_the_port(service: Running, bundle: Path, tmp_path: Path) -> None:
    """Misses and hits, through everything that speaks to a service."""
    with ensure_engine(bundle, MODEL, service=True) as engine:
        assert not engine.hit
    with ServiceClient() as client:
        got = client.ensure(EnsureRequest(bundle=str(bundle), model=MODEL))
        assert (got.hit, got.path) == (True, str(engine.path))
        made = client.ensure(EnsureRequest(bundle=str(make_bundle(tmp_path / "two", seed=2)), model=MODEL))
        assert not made.hit
        client.release(made.lease.id)
        assert client.status().pid == service.place["pid"]

    async def main() -> None:
        wish = EnsureRequest(bundle=str(make_bundle(tmp_path / "three", seed=3)), model=MODEL)
        results = [await AsyncClient().ensure(wish) for _ in range(2)]
        assert [r.hit for r in results] == [False, True]
        assert results[0].path == results[1].path

    asyncio.run(main())
    status = subprocess.run([sys.executable, "-m", "refit_agent", "status", "--json"], capture_output=True, check=True)
    document = json.loads(status.stdout)
    assert document["socket"] == str(service.socket)
    assert document["cache"]["entries"] == 3


def test_the_file_is_the_users_alone_and_goes_with_the_service(begin: Callable[..., Running], place: Path) -> None:
    """A missing folder is made. Whatever else stands there at the end stays."""
    service = begin()
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in place.parent.iterdir()) == ["agent.json", "agent.json.lock"]
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(10) == 0
    assert not place.exists()
    service = begin()
    place.write_text("somebody else's")
    assert service.process is not None
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(10) == 0
    assert place.read_text() == "somebody else's"


def test_the_files_mode_does_not_depend_on_the_umask(place: Path) -> None:
    """It is the user's alone from its first byte on."""
    before = os.umask(0)
    try:
        listening = listen(str(place))
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert listening.sock.getsockname()[0] == "127.0.0.1"
    listening.close()
    assert not place.exists()


def test_a_killed_services_file_is_taken_over_and_clients_go_on(begin: Callable[..., Running], bundle: Path) -> None:
    """With other secrets, which a client that knew the old ones learns by itself."""
    service = begin()
    with ServiceClient() as client:
        client.status()
        service.kill()
        left = service.place
        with pytest.raises(ServiceUnreachable, match="nothing listens at its port"):
            client.status()
        ensure_engine(bundle, MODEL).close()
        again = begin()
        assert {k for k in left if left[k] == again.place[k]} == set()
        assert client.status().pid == again.place["pid"]


def test_a_second_service_says_so(service: Running) -> None:
    """Exit code 8, and the first goes on; without the lock's file too."""
    before = service.place
    for _ in range(2):
        command = [sys.executable, "-m", "refit_agent", "serve"]
        second = subprocess.run(command, env=service.env, capture_output=True, text=True, timeout=20)
        assert second.returncode == 8
        assert "service-running" in second.stderr
        Path(f"{service.socket}.lock").unlink(missing_ok=True)
    assert service.place == before
    assert service.ask("GET", "/v1/health").document == {"ok": True}


def test_a_full_service_is_not_taken_for_dead(service: Running) -> None:
    """Clients are told what is the matter, and without the lock's file nobody takes its place."""
    with contextlib.ExitStack() as stack:
        for _ in range(256):
            sock = stack.enter_context(service.connect())
            sock.sendall("\r\n".join(["GET /v1/health HTTP/1.1", *_lines(service), "", ""]).encode())
            assert sock.recv(12) == b"HTTP/1.1 200"
        with pytest.raises(ServiceUnreachable, match=r"takes no more connections|reset"):
            ServiceClient().status()
        Path(f"{service.socket}.lock").unlink()
        command = [sys.executable, "-m", "refit_agent", "serve"]
        second = subprocess.run(command, env=service.env, capture_output=True, text=True, timeout=20)
        assert (second.returncode, "service-running" in second.stderr) == (8, True)
    until(lambda: _answers(service))


def _answers(service: Running) -> bool:
    with contextlib.suppress(ConnectionError):  # those that hung up may still be counted
        return service.ask("GET", "/v1/health").status == 200
    return False


def _lines(service: Running) -> list[str]:
    return [f"{name}: {text}" for name, text in raw_headers(service).items()]


def _said(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Said", "Content-Length: 0", *lines, "", ""]).encode()


#: What listens at the port says; whether it may be our service if the process that wrote the file lives, and if not.
SAID = {
    "the proof": (_said(200, f"Refit-Agent-Proof: {'cd' * 32}", "Refit-Agent-Protocol: 1"), True, True),
    "the proof, by another version": (_said(404, f"Refit-Agent-Proof: {'cd' * 32}"), True, True),
    "no place": (_said(503), True, False),
    "nothing": (b"", True, False),
    "no proof": (_said(200, "Refit-Agent-Protocol: 1"), False, False),
    "another proof": (_said(200, f"Refit-Agent-Proof: {'0' * 64}"), False, False),
    "no HTTP": (b"220 mail.example ESMTP\r\n", False, False),
}


@pytest.mark.skipif(os.name != "posix", reason="only there a number tells whether the process lives")
@pytest.mark.parametrize("said", SAID)
def test_who_is_taken_for_a_service(place: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """One that is busy must not be pushed aside; a stranger at the port of a killed one must not keep us out."""
    monkeypatch.setattr(service_side, "_PROBE_S", 0.5)
    data, *expected = SAID[said]
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    place.parent.mkdir(parents=True, mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = []
        for pid in (os.getpid(), dead.pid):
            document = {"port": listener.getsockname()[1], "token": "ab" * 32, "proof": "cd" * 32, "pid": pid}
            place.write_text(json.dumps(document))
            place.chmod(0o600)
            answering = threading.Thread(target=_say, args=(listener, data))
            answering.start()
            found.append(service_side._is_used(str(place)))
            answering.join()
    assert found == expected
    assert not service_side._is_used(str(place))  # nobody listens any more


def _say(listener: socket.socket, data: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(10)
        connection.recv(65536)
        connection.sendall(data)
        while connection.recv(65536):
            pass


@pytest.mark.skipif(os.name != "posix", reason="needs modes")
@pytest.mark.parametrize("name", ["agent.sock", "agent.json"])
def test_a_folder_that_no_client_trusts_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    """The sticky bit keeps others from removing what is there, not from making it first."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    with Running(home, REFIT_AGENT_SOCKET=str(folder / name)).start(wait=False) as running:
        assert running.process is not None
        out = running.process.communicate(timeout=20)[0].decode()
        assert running.process.returncode == 8, out
        assert "socket-unusable" in out and "other users may write to its folder (mode 1777)" in out


@pytest.mark.skipif(os.name != "posix", reason="needs owners")
def test_another_users_folder_is_refused_even_if_it_is_roots(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the clients do."""
    place.parent.mkdir(parents=True, mode=0o755)
    owner = place.parent.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(SocketUnusable, match=f"its folder belongs to user {owner}"):
        listen(str(place))


@pytest.mark.parametrize("what", ["words", "document", "link", "folder"])
def test_what_is_no_file_of_the_service_stays(home: Path, place: Path, what: str) -> None:
    """A path given by mistake must not cost anybody his settings."""
    place.parent.mkdir(parents=True, mode=0o700)
    precious = home / "precious.json"
    precious.write_text('{"port": 80, "token": "t"}' if what == "link" else '{"port": 80}')
    if what == "link":
        place.symlink_to(precious)
    elif what == "folder":
        place.mkdir()
    else:
        place.write_text("precious" if what == "words" else precious.read_text())
    before = None if what == "folder" else place.read_text()
    with Running(home, REFIT_AGENT_SOCKET=str(place)).start(wait=False) as running:
        assert running.process is not None
        out = running.process.communicate(timeout=20)[0].decode()
        assert running.process.returncode == 8, out
        assert "socket-unusable" in out
    assert place.is_dir() if what == "folder" else place.read_text() == before


# ---------------------------------------------------------------- and for nobody else

Change = Callable[[dict[str, str]], object]
STRANGERS: dict[str, Change] = {
    "no token": lambda h: h.pop("Authorization"),
    "an empty token": lambda h: h.update(Authorization="Bearer "),
    "another token": lambda h: h.update(Authorization="Bearer " + "0" * 64),
    "half a token": lambda h: h.update(Authorization=h["Authorization"][:-1]),
    "more than a token": lambda h: h.update(Authorization=h["Authorization"] + "0"),
    "the token alone": lambda h: h.update(Authorization=h["Authorization"].split()[1]),
    "bytes for a token": lambda h: h.update(Authorization="Bearer \xff\xe9"),
    "a name that leads here": lambda h: h.update(Host="evil.example:" + h["Host"].split(":")[1]),
    "another name of here": lambda h: h.update(Host="localhost:" + h["Host"].split(":")[1]),
    "another port": lambda h: h.update(Host="127.0.0.1:1"),
    "no port": lambda h: h.update(Host="127.0.0.1"),
    "a web page": lambda h: h.update(Origin="https://evil.example"),
    "a page of this port": lambda h: h.update(Origin="http://" + h["Host"]),
    "a page of nowhere": lambda h: h.update(Origin="null"),
    "an empty origin": lambda h: h.update(Origin=""),
}  # fmt: skip


def raw_headers(service: Running) -> dict[str, str]:
    place = service.place
    return {"Host": f"127.0.0.1:{place['port']}", "Authorization": f"Bearer {place['token']}"}


def send_raw(service: Running, first: str, *lines: str) -> socket.socket:
    sock = service.connect()
    sock.sendall("\r\n".join([first, *lines, "", ""]).encode("latin-1"))
    return sock


@pytest.mark.parametrize("who", STRANGERS)
def test_strangers_learn_nothing(service: Running, who: str) -> None:
    """Whatever they ask for they get the same answer, and their connection ends."""
    headers = raw_headers(service)
    STRANGERS[who](headers)
    told = set()
    for path in ("/v1/health", "/v1/status", "/metrics", "/v1/openapi.json", "/v1/page", "/v1/nonsense", "/"):
        for method in ("GET", "POST", "OPTIONS"):
            lines = [f"{name}: {text}" for name, text in headers.items()]
            with send_raw(service, f"{method} {path} HTTP/1.1", *lines, "X-Request-Id: r", "Content-Length: 0") as sock:
                answer = read_answer(sock)  # until the service hangs up
            assert (answer.status, answer.headers["content-type"]) == (403, "application/problem+json")
            assert answer.document["code"] == "forbidden"
            assert PROOF not in answer.headers
            assert answer.headers["server"] == "refit-agent"
            told.add(answer.body)
    assert len(told) == 1
    secrets = service.place
    assert secrets["token"].encode() not in told.pop()
    health = service.ask("GET", "/v1/health")
    assert (health.status, health.headers[PROOF]) == (200, secrets["proof"])


@pytest.mark.parametrize("name", ["Host", "Authorization"])
def test_none_and_two_of_a_kind_are_refused(service: Running, name: str) -> None:
    """Somebody else may read the second where we read the first. aiohttp refuses some of them before we can."""
    headers = raw_headers(service)
    lines = [f"{k}: {v}" for k, v in headers.items()]
    same, other = f"{name}: {headers[name]}", f"{name}: x"
    for version in ("1.0", "1.1"):
        for wrong in ([*lines, other], [other, *lines], [*lines, same], [line for line in lines if line != same]):
            with send_raw(service, f"GET /v1/health HTTP/{version}", *wrong) as sock:
                answer = read_answer(sock)
            assert answer.status in (400, 403), answer
            assert PROOF not in answer.headers


@pytest.mark.parametrize("expected", ["x", "100-continue"])
@pytest.mark.parametrize("target", ["GET /v1/health", "POST /v1/engines:ensure", "GET /nowhere", "OPTIONS *"])
def test_what_a_request_expects_is_no_way_past_the_gate(service: Running, target: str, expected: str) -> None:
    """A stranger gets the same answer as ever, and no other before it."""
    lines = ["Host: evil.example", "Origin: http://evil.example", f"Expect: {expected}", "Content-Length: 0"]
    with send_raw(service, f"{target} HTTP/1.1", *lines) as sock:
        answer = read_answer(sock)
    assert (answer.status, answer.headers["server"]) == (403, "refit-agent")
    assert answer.document["code"] == "forbidden"


def test_no_http_is_told_no_more(service: Running) -> None:
    """Neither what we run on nor the proof, which is for those who have shown the token."""
    with send_raw(service, "HELLO") as sock:
        answer = read_answer(sock)
    assert (answer.status, answer.headers["server"]) == (400, "refit-agent")
    assert PROOF not in answer.headers


def test_two_hosts_are_refused_whatever_the_parser_lets_through() -> None:
    """The check does not rest on it."""
    shown = loopback.Place(port=80, token="ab" * 32, proof="cd" * 32)
    host, token = ("Host", "127.0.0.1:80"), ("Authorization", f"Bearer {shown.token}")
    for pairs, passes in (([host, token], True), ([host, host, token], False), ([token], False)):
        request = make_mocked_request("GET", "/", headers=CIMultiDict(pairs))
        assert Gate(shown).passes(request) is passes


def test_a_stranger_has_no_engine_made(service: Running, bundle: Path, home: Path) -> None:
    """Nor is the body of his request looked at."""
    refused = service.ask("POST", "/v1/engines:ensure", {"bundle": str(bundle), "model": MODEL}, Authorization="")
    assert refused.status == 403
    assert service.ask("POST", "/v1/bundles", {"path": str(bundle)}, Origin="null").status == 403
    assert service.status["bundles"] == 0
    assert not (home / "cache" / "engines").exists()


def test_strangers_do_not_take_the_places_of_those_who_may_ask(service: Running) -> None:
    """However many connect, and whether or not they say anything."""
    socks = [service.connect() for _ in range(150)]
    for number, sock in enumerate(socks):
        if number % 2:
            sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    socks += [service.connect() for _ in range(150)]
    try:
        for _ in range(20):
            assert service.ask("GET", "/v1/health").status == 200
    finally:
        for sock in socks:
            sock.close()


def test_the_log_says_why_once_and_no_secret(service: Running) -> None:
    """A web page may ask a thousand times a second."""
    for _ in range(50):
        assert service.ask("GET", "/v1/health", Origin="https://evil.example").status == 403
    log = (service.home / "state/logs/service.log").read_text()
    assert log.count("a request was refused") == 1
    assert "it comes from a web page" in log
    assert '"unsaid": 0' in log
    assert service.place["token"] not in log
    assert service.place["proof"] not in log


def test_a_crowd_is_served(service: Running, bundle: Path) -> None:
    """One refit for all, as on a Unix socket."""

    async def main() -> None:
        wish = EnsureRequest(bundle=str(bundle), model=MODEL)
        results = await asyncio.gather(*(AsyncClient().ensure(wish) for _ in range(20)))
        assert len({r.path for r in results}) == 1

    asyncio.run(main())
    assert 'refit_agent_refit_seconds_count{phase="refit"} 1.0' in service.ask("GET", "/metrics").body.decode()


# ---------------------------------------------------------------- what only Windows has, run here

_AS_ON_WINDOWS = """
import sys
import refit_service
from refit_agent.client import loopback, _windows as client_side
from refit_service import _windows as service_side
sys.modules["refit_service._posix"] = refit_service._posix = service_side
loopback._platform = client_side
from refit_agent.cli.main import main
sys.exit(main(["serve"]))
"""


def _as_on_windows(home: Path, place: Path, profile: Path) -> subprocess.Popen[bytes]:
    env = Running(home, REFIT_AGENT_SOCKET=str(place)).env | {"HOME": str(profile)}
    return subprocess.Popen(
        [sys.executable, "-c", _AS_ON_WINDOWS], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_files_for_windows_hold_together(
    home: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path, how: signal.Signals
) -> None:
    """Not Windows itself: their folder, rename, port and signals in the place of ours, as far as Linux has them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(loopback, "_platform", _windows)
    process = _as_on_windows(home, place, tmp_path)
    assert process.stdout is not None
    try:
        until(place.exists)
        with ensure_engine(bundle, MODEL, service=True) as engine:
            assert not engine.hit
        process.send_signal(how)
        assert process.wait(10) == 0
        assert not place.exists()
    finally:
        process.kill()
        process.communicate()


def test_a_place_outside_the_profile_is_refused_by_both_sides(
    home: Path, place: Path, tmp_path: Path, begin: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows nothing else says that others cannot read or make the file."""
    process = _as_on_windows(home, place, tmp_path / "profile")
    try:
        out = process.communicate(timeout=20)[0].decode()
        assert process.returncode == 8
        assert "not in the user's profile" in out
    finally:
        process.kill()
        process.communicate()
    begin()
    monkeypatch.setenv("HOME", str(tmp_path / "profile"))
    monkeypatch.setattr(loopback, "_platform", _windows)
    with pytest.raises(ServiceUnreachable, match="not in the user's profile"):
        ServiceClient().status()


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_what_is_in_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real path, and by whole names."""
    profile, elsewhere = tmp_path / "me", tmp_path / "me2"
    profile.mkdir()
    elsewhere.mkdir()
    (profile / "link").symlink_to(elsewhere)
    monkeypatch.setenv("HOME", str(profile))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert _windows.in_profile(str(profile / "a" / "b.json"))
    assert not _windows.in_profile(str(elsewhere / "b.json"))
    assert not _windows.in_profile(str(profile / "link" / "b.json"))
    assert not _windows.in_profile(str(profile / ".." / "me2" / "b.json"))
    monkeypatch.setenv("LOCALAPPDATA", str(elsewhere))
    assert _windows.in_profile(str(elsewhere / "b.json"))
    for nothing in ("/", "", "relative"):
        monkeypatch.setenv("HOME", nothing)
        monkeypatch.setenv("LOCALAPPDATA", nothing)
        assert not _windows.in_profile(str(profile / "b.json"))
