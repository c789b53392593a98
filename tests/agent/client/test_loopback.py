"""The client at a port of loopback: which file it believes, and what it makes of strangers at the port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, python
from refit_agent import AsyncClient, ServiceClient, ensure_engine
from refit_agent.client import loopback
from refit_agent.client.http import Head, Malformed
from refit_agent.errors import ServiceUnreachable

from .fake_service import STATUS

TOKEN, PROOF = "ab" * 32, "cd" * 32
Reply = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def place(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the clients of this file look."""
    path = home / "run" / "agent.json"
    path.parent.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("REFIT_AGENT_SOCKET", str(path))
    return path


def write(place: Path, port: int, *, token: str = TOKEN, proof: str = PROOF, mode: int = 0o600) -> None:
    temporary = place.with_suffix(".tmp")
    temporary.write_text(json.dumps({"port": port, "token": token, "proof": proof, "pid": 1, "later": []}))
    temporary.chmod(mode)
    temporary.replace(place)


class AtPort:
    """Answers each connection's first request with ``reply``; ``heads`` is what they sent."""

    def __init__(self, reply: Reply) -> None:
        self.heads: list[bytes] = []
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                self.heads.append(connection.recv(65536))
                connection.sendall(self._reply(self.heads[-1]))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def listen() -> Iterator[Callable[[Reply], AtPort]]:
    """Starts what listens at a port."""
    with contextlib.ExitStack() as stack:

        def start(reply: Reply) -> AtPort:
            return stack.enter_context(contextlib.closing(AtPort(reply)))

        yield start


Listen = Callable[[Reply], AtPort]


def answer(document: object, *lines: str, status: int = 200) -> bytes:
    body = json.dumps(document).encode()
    head = [f"HTTP/1.1 {status} Said", "Content-Type: application/json", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


GOOD = answer(STATUS, "Refit-Agent-Protocol: 1", f"Refit-Agent-Proof: {PROOF}", "Connection: close")


def status_by_threads() -> Any:
    with ServiceClient(answer_s=1.0, silence_s=1.0) as client:
        return client.status()


def status_by_asyncio() -> Any:
    return asyncio.run(AsyncClient(answer_s=1.0, silence_s=1.0).status())


BOTH = pytest.mark.parametrize("ask", [status_by_threads, status_by_asyncio])
Ask = Callable[[], Any]


@BOTH
def test_every_request_shows_host_and_token(listen: Listen, place: Path, ask: Ask) -> None:
    """And an answer with the proof is believed."""
    server = listen(lambda head: GOOD)
    write(place, server.port)
    assert ask().version == STATUS["version"]
    lines = server.heads[0].split(b"\r\n")
    assert [line for line in lines if line.lower().startswith((b"host", b"auth", b"origin"))] == [
        f"Host: 127.0.0.1:{server.port}".encode(),
        f"Authorization: Bearer {TOKEN}".encode(),
    ]


# ---------------------------------------------------------------- somebody else at the port

NONSENSE: dict[str, Reply] = {
    "a web server": lambda head: b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
    "an old web server": lambda head: b"HTTP/1.0 404 Not Found\r\n\r\n",
    "no web server": lambda head: b"220 mail.example ESMTP\r\n",
    "a sound answer without the proof": lambda head: answer(STATUS, "Refit-Agent-Protocol: 1"),
    "another proof": lambda head: answer(STATUS, "Refit-Agent-Protocol: 1", "Refit-Agent-Proof: " + "0" * 64),
    "the token for a proof": lambda head: answer(STATUS, "Refit-Agent-Protocol: 1", f"Refit-Agent-Proof: {TOKEN}"),
    "bytes for a proof": lambda head: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRefit-Agent-Proof: \xff\xe9\r\n\r\n",
    "a service that refuses": lambda head: answer({"code": "forbidden"}, "Refit-Agent-Protocol: 1", status=403),
    "a full service": lambda head: answer({"code": "too-many-connections"}, "Refit-Agent-Protocol: 1", status=503),
    "one that hangs up": lambda head: b"",
}


@pytest.mark.parametrize("who", NONSENSE)
def test_a_stranger_at_the_port_is_not_believed(listen: Listen, place: Path, bundle: Path, who: str) -> None:
    """He took the port of a service that was killed. The engine is made here, and the stranger is asked once."""
    server = listen(NONSENSE[who])
    write(place, server.port)
    ensure_engine(bundle, MODEL).close()
    assert len(server.heads) == 1
    for ask in (status_by_threads, status_by_asyncio):
        with pytest.raises(ServiceUnreachable, match=r"agent\.json cannot be used: "):
            ask()
    assert len(server.heads) == 3


def test_an_error_of_a_stranger_is_not_the_users(listen: Listen, place: Path, bundle: Path) -> None:
    """He could have the app say whatever he likes, and do without its engine."""
    problem = {"code": "disk-full", "status": 507, "hint": "Call 555.", "facts": {"path": "/", "free_bytes": 0, "needed_bytes": 1}}  # fmt: skip
    write(place, listen(lambda head: answer(problem, "Refit-Agent-Protocol: 1", status=507)).port)
    ensure_engine(bundle, MODEL).close()


def test_a_full_service_is_called_so(listen: Listen, place: Path) -> None:
    """It has not seen who asks, and shows no proof."""
    write(place, listen(NONSENSE["a full service"]).port)
    for ask in (status_by_threads, status_by_asyncio):
        with pytest.raises(ServiceUnreachable, match="takes no more connections"):
            ask()


def test_nothing_at_the_port(place: Path, bundle: Path) -> None:
    """The file was left behind."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    write(place, port)
    for ask in (status_by_threads, status_by_asyncio):
        with pytest.raises(ServiceUnreachable, match=r"nothing listens at its port \(Connect"):
            ask()
    ensure_engine(bundle, MODEL).close()


# ---------------------------------------------------------------- a service that was started anew meanwhile


@BOTH
def test_a_service_that_came_back_at_another_port_is_found(
    listen: Listen, place: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """Between our look at the file and our knock at the port."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        write(place, gone.getsockname()[1], token="0" * 64)
    server = listen(lambda head: GOOD)
    real = loopback.read_place

    def read(path: str) -> loopback.Place:
        seen = real(path)
        write(place, server.port)
        return seen

    monkeypatch.setattr(loopback, "read_place", read)
    assert ask().version == STATUS["version"]


@BOTH
def test_a_service_that_came_back_at_the_same_port_is_found(listen: Listen, place: Path, ask: Ask) -> None:
    """It refuses the token of the one before."""

    def reply(head: bytes) -> bytes:
        if f"Bearer {TOKEN}".encode() in head:
            return GOOD
        write(place, server.port)
        return answer({"code": "forbidden"}, "Refit-Agent-Protocol: 1", status=403)

    server = listen(reply)
    write(place, server.port, token="0" * 64, proof="1" * 64)
    assert ask().version == STATUS["version"]
    assert len(server.heads) == 2


@BOTH
def test_nobody_runs_after_a_file_that_changes_for_ever(listen: Listen, place: Path, ask: Ask) -> None:
    """Twice is enough."""

    def reply(head: bytes) -> bytes:
        write(place, server.port, token=os.urandom(32).hex())
        return answer({"code": "forbidden"}, "Refit-Agent-Protocol: 1", status=403)

    server = listen(reply)
    write(place, server.port)
    with pytest.raises(ServiceUnreachable, match="is not this service"):
        ask()
    assert len(server.heads) == 2


def test_the_file_is_read_twice_at_most(place: Path) -> None:
    """And not tried again if it says the same."""
    write(place, 1)
    same = list(loopback.places(str(place)))
    assert [p.port for p in same] == [1]
    found = []
    for number, one in enumerate(loopback.places(str(place)), 2):
        found.append(one.port)
        write(place, number)
    assert found == [1, 2]


# ---------------------------------------------------------------- which file is believed


@pytest.mark.skipif(os.name != "posix", reason="needs owners and modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_a_file_that_others_may_use_is_not_believed(listen: Listen, place: Path, bundle: Path, mode: int) -> None:
    """Who may read it can ask in our name; who may write it can name another port."""
    server = listen(lambda head: GOOD)
    write(place, server.port, mode=mode)
    for ask in (status_by_threads, status_by_asyncio):
        with pytest.raises(ServiceUnreachable, match=rf"other users may read or write it \(mode {mode:o}\)"):
            ask()
    ensure_engine(bundle, MODEL).close()
    assert server.heads == []


@pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and modes")
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "open folder", "missing"])
def test_what_is_no_file_of_ours_is_not_believed(listen: Listen, place: Path, bundle: Path, what: str) -> None:
    """Nor waited for."""
    server = listen(lambda head: GOOD)
    if what == "link":
        write(place.with_name("elsewhere.json"), server.port)
        place.symlink_to("elsewhere.json")
    elif what == "pipe":
        os.mkfifo(place, 0o600)
    elif what == "folder":
        place.mkdir(mode=0o700)
    elif what == "open folder":
        write(place, server.port)
        place.parent.chmod(0o777)
    words = {"pipe": "it is not a file", "folder": "it is not a file", "open folder": "may write to its folder"}
    with pytest.raises(ServiceUnreachable, match=words.get(what, "nothing listens there")):
        status_by_threads()
    ensure_engine(bundle, MODEL).close()
    assert server.heads == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_another_users_file_is_not_believed(listen: Listen, place: Path, bundle: Path, what: str) -> None:
    """Whoever could write to the folder before us."""
    server = listen(lambda head: GOOD)
    write(place, server.port)
    os.chown(place if what == "file" else place.parent, 65534, 65534)
    with pytest.raises(ServiceUnreachable, match="belongs to user 65534"):
        status_by_threads()
    ensure_engine(bundle, MODEL).close()
    assert server.heads == []


SOUND = {"port": 1, "token": TOKEN, "proof": PROOF, "pid": 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        json.dumps(SOUND | {"port": 0}),
        json.dumps(SOUND | {"port": 65536}),
        json.dumps(SOUND | {"port": "1"}),
        json.dumps(SOUND | {"token": ""}),
        json.dumps(SOUND | {"token": TOKEN + "\r\nX: y"}),
        json.dumps(SOUND | {"token": TOKEN + "\n"}),
        json.dumps(SOUND | {"proof": ""}),
        json.dumps({k: v for k, v in SOUND.items() if k != "proof"}),
        json.dumps(SOUND) + " " * 4096,
        "[" * 2000,
    ],
)
def test_a_file_that_makes_no_sense_is_one_clear_error(place: Path, bundle: Path, text: str) -> None:
    """Above all nothing in it gets into a request's head."""
    place.write_bytes(text.encode("latin-1"))
    place.chmod(0o600)
    with pytest.raises(ServiceUnreachable, match="the file "):
        status_by_threads()
    ensure_engine(bundle, MODEL).close()


def test_a_proof_is_compared_whole() -> None:
    """Not its beginning."""
    whom = loopback.AtPort("/nowhere.json", loopback.Place(port=1, token=TOKEN, proof=PROOF))
    whom.check(Head(200, {"refit-agent-proof": PROOF, "refit-agent-protocol": "1"}))
    with pytest.raises(Malformed, match="protocol"):
        whom.check(Head(200, {"refit-agent-proof": PROOF}))
    for shown in ("", PROOF[:-1], PROOF + "0", PROOF.upper()):
        with pytest.raises(ServiceUnreachable):
            whom.check(Head(200, {"refit-agent-proof": shown, "refit-agent-protocol": "1"}))


# ---------------------------------------------------------------- what it costs


def test_a_unix_socket_pays_nothing_for_it(tmp_path: Path) -> None:
    """And at a port no HTTP library is loaded either."""
    code = """
        import sys
        from refit_agent import ServiceClient
        from refit_agent.errors import ServiceUnreachable
        try:
            ServiceClient(sys.argv[1]).status()
        except ServiceUnreachable:
            pass
        print(*sys.modules, sep="\\n")
    """
    for name, used in (("agent.sock", False), ("agent.json", True)):
        command, env = python(code, tmp_path / name)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        loaded = set(done.stdout.split())
        assert ("refit_agent.client.loopback" in loaded) is used
        assert ("hmac" in loaded) is used
        assert loaded.isdisjoint({"asyncio", "http.client", "ssl", "aiohttp", "json", "logging"})
