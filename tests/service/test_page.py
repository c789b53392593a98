"""The status page over plain HTTP: who gets in, what is said to the browser, and when nothing listens any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

import refit_service
from bundles import MODEL, edit, make_bundle, model_of, shim
from refit_agent import AsyncClient, ServiceClient, paths
from refit_agent.cache.store import Store
from refit_service.jobs import Jobs
from refit_service.leases import LeaseBook
from refit_service.metrics import Tally
from refit_service.page import door as door_module
from refit_service.page import feed as feed_module
from refit_service.page.door import Door
from refit_service.page.feed import Feed
from refit_service.page.keys import Sessions, Tickets
from refit_service.page.on_demand import PageOnDemand
from refit_service.peers import tcp_peer_uid
from refit_service.protocol import SeenError
from refit_service.registry import Registry
from refit_service.state import Service
from refit_service.warm import Warmer

from .running import Running, read_answer, until
from .visitor import Visitor

FILES = ("", "page.css", "page.js", "view.js", "bundles.js", "elements.js", "words.js", "icon.svg")


@pytest.fixture
def visitor(service: Running) -> Visitor:
    """One whose link was used."""
    visitor = Visitor.of(service)
    assert visitor.open().status == 200
    return visitor


def listeners(service: Running) -> list[str]:
    """The addresses on which the service listens over TCP."""
    assert service.process is not None
    found = psutil.Process(service.process.pid).net_connections("inet")
    return [c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN]


# ---------------------------------------------------------------- who gets in


def test_nothing_listens_on_tcp_before_somebody_asks(service: Running) -> None:
    """And then one port, on loopback alone, for all who ask."""
    assert listeners(service) == []
    ports = {Visitor.of(service).port for _ in range(3)}
    assert len(ports) == 1
    assert listeners(service) == ["127.0.0.1"]


def test_a_link_opens_the_page_once(service: Running) -> None:
    """The second time, and with a wrong token, a page says what to do."""
    visitor = Visitor.of(service)
    opened = visitor.open()
    assert opened.status == 200
    name, *rules = opened.headers["set-cookie"].split("; ")
    assert len(name.partition("=")[2]) >= 43
    assert visitor.place.strip("/") in name.partition("=")[0]
    assert set(rules) == {"HttpOnly", "SameSite=Strict", f"Path={visitor.place}"}
    for name in FILES:
        assert visitor.ask(visitor.place + name).status == 200
    again = Visitor(f"http://{visitor.host}/{visitor.opening}").open()
    assert again.status == 403
    assert b"refit-agent ui" in again.body
    assert "set-cookie" not in again.headers
    for token in ("", "x" * 43, "%00", "%ff", "%c3%a9", visitor.opening.partition("=")[2][:-1]):
        assert Visitor(f"http://{visitor.host}/open?token={token}").open().status == 403


def test_without_the_sessions_own_cookie_there_is_nothing(service: Running, visitor: Visitor) -> None:
    """None, a wrong one, another session's, at this place or another; and it is not told which it was."""
    other = Visitor.of(service)
    other.open()
    answers = {
        visitor.ask(path, Cookie=cookie).body
        for cookie in (
            None,
            "refit-agent=x",
            visitor.cookie[:-1],
            other.cookie,
            visitor.cookie.partition("=")[0] + "=" + other.cookie.partition("=")[2],
            visitor.cookie.partition("=")[0] + "=\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        )
        for path in (*(visitor.place + name for name in FILES), visitor.place + "events")
    }
    paths_of_nothing = ("/", "/page.js", "/x/", visitor.place + "none", visitor.place + "../page.js", "/v1/status")
    answers |= {visitor.ask(path).body for path in paths_of_nothing}
    assert len(answers) == 1
    assert b"refit-agent ui" in answers.pop()
    assert visitor.ask(visitor.place, Cookie=other.cookie).status == 403
    assert visitor.ask(visitor.place).status == 200


def test_no_other_server_of_this_machine_locks_the_page_out(visitor: Visitor) -> None:
    """Cookies know no ports: what a server at another one sets comes to us too, before or after ours."""
    other = "refit-agent=bad; refit-agent-bad=bad; a[]=1"
    for cookies in (f"{other}; {visitor.cookie}", f"{visitor.cookie}; {other}"):
        assert visitor.ask(visitor.place, Cookie=cookies).status == 200


def test_what_a_request_expects_changes_nothing(visitor: Visitor) -> None:
    """The guard is asked first, at addresses that lead nowhere too, and the answer says no more than all others."""
    assert visitor.ask(visitor.place, Expect="x").status == 200
    for path in (visitor.place, "/", "/nowhere/at/all", "*"):
        method = "OPTIONS" if path == "*" else "GET"
        answer = visitor.ask(path, method, Expect="x", Host="evil.example")
        assert (answer.status, answer.headers["server"]) == (403, "refit-agent")
        assert "content-security-policy" in answer.headers
    assert visitor.ask(visitor.place, "POST", Expect="x", Content_Length="0").status == 405


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1", "127.0.0.1:1", "evil.example:{port}", "[::1]:{port}", "", None])  # fmt: skip
def test_another_host_is_refused(service: Running, visitor: Visitor, host: str | None) -> None:
    """A name that somebody points to this machine (DNS rebinding) is not ours. It uses no link up."""
    named = None if host is None else host.format(port=visitor.port)
    assert visitor.ask(visitor.place, Host=named).status in (400, 403)
    newcomer = Visitor.of(service)
    assert newcomer.open(Host=named).status in (400, 403)
    assert newcomer.open().status == 200


def test_two_hosts_are_refused(visitor: Visitor) -> None:
    """Whichever comes first."""
    for first, second in ((visitor.host, "evil.example"), ("evil.example", visitor.host)):
        with visitor.connect() as sock:
            head = f"GET {visitor.place} HTTP/1.1\r\nHost: {first}\r\nHost: {second}\r\nCookie: {visitor.cookie}\r\nConnection: close\r\n\r\n"
            sock.sendall(head.encode())
            assert read_answer(sock).status in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:{port}", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "file://"])  # fmt: skip
def test_another_origin_is_refused(service: Running, visitor: Visitor, origin: str) -> None:
    """With the cookie too, and for a link; our own is fine."""
    given = origin.format(port=visitor.port)
    assert visitor.ask(visitor.place + "events", Origin=given).status == 403
    newcomer = Visitor.of(service)
    assert newcomer.open(Origin=given).status == 403
    assert newcomer.open().status == 200
    assert visitor.ask(visitor.place, Origin=f"http://{visitor.host}").status == 200


def test_what_other_pages_cause_is_refused(service: Running, visitor: Visitor) -> None:
    """By what the browser says of it. Another port of this machine is "same-site"; only a whole page may come by a
    link from elsewhere, and one that is fetched in advance uses no link up."""
    for site in ("same-site", "cross-site", "nonsense"):
        assert visitor.ask(visitor.place, Sec_Fetch_Site=site).status == 403
    for site in ("none", "same-origin"):
        assert visitor.ask(visitor.place, Sec_Fetch_Site=site).status == 200
    newcomer = Visitor.of(service)
    image = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    frame = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}
    whole = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    for headers in (image, frame, whole | {"Sec_Purpose": "prefetch;prerender"}):
        assert newcomer.open(**headers).status == 403
    assert newcomer.open(**whole).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_it_can_only_be_read(service: Running, visitor: Visitor, method: str) -> None:
    """No request changes anything."""
    for path in (visitor.place, visitor.place + "events"):
        assert visitor.ask(path, method, Content_Length="0").status == 405
    newcomer = Visitor.of(service)
    assert newcomer.ask("/" + newcomer.opening, method, Content_Length="0").status == 405
    assert newcomer.open().status == 200


def test_every_answer_tells_the_browser_to_be_careful(service: Running, visitor: Visitor) -> None:
    """Pages, files, the stream, refusals, and what is answered to no HTTP."""
    newcomer = Visitor.of(service)
    answers = [newcomer.open(), newcomer.open(), visitor.ask("/")]
    answers += [visitor.ask(visitor.place, "POST", Content_Length="0")]
    answers += [visitor.ask(visitor.place + name) for name in FILES]
    answers += [visitor.ask("/", Host="evil.example")]
    with visitor.connect() as sock:
        sock.sendall(b"HELLO\r\n\r\n")
        answers.append(read_answer(sock))
    heads = [answer.headers for answer in answers]
    with visitor.stream() as stream:
        heads.append({k.lower(): v for k, v in re.findall(r"([\w-]+): (.*)\r\n", stream.head.decode())})
    for headers in heads:
        policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert policy.pop("style-src").startswith("'self' 'sha256-")
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "aiohttp" not in headers["server"].lower()
    assert [a.status for a in answers[:4]] == [200, 403, 403, 405]


_AS_NOBODY = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
s = socket.socket(); s.settimeout(10); s.connect(("127.0.0.1", int(sys.argv[1])))
try:
    s.sendall(sys.argv[2].encode())
    data = s.recv(1000)
except (BrokenPipeError, ConnectionResetError):
    data = b""
sys.exit(0 if data == b"" else 1)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becoming another user needs root, on Linux")
def test_another_user_gets_nothing_for_a_link_or_a_cookie(service: Running, visitor: Visitor) -> None:
    """Whoever reads the address in the list of processes: the kernel says whose the connection is."""
    newcomer = Visitor.of(service)
    for request in (newcomer.request("/" + newcomer.opening), visitor.request(visitor.place)):
        command = [sys.executable, "-c", _AS_NOBODY, str(visitor.port), request.decode()]
        child = subprocess.run(command, cwd="/", capture_output=True, text=True)
        assert child.returncode == 0, child.stderr
    assert newcomer.open().status == 200
    log = (service.home / "state/logs/service.log").read_text()
    assert '"uid": 65534' in log
    assert log.count("another user asked for the page") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a TCP connection is")
def test_whose_a_connection_is() -> None:
    """A socket that is closed is nobody's: the kernel would name root."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as theirs:
            ours, _ = server.accept()
            ends = ours.getsockname(), ours.getpeername()
            assert tcp_peer_uid(*ends) == os.geteuid()
            assert tcp_peer_uid(*reversed(ends)) == os.geteuid()
            theirs.sendall(b"x")
        with ours, pytest.raises(ConnectionError):
            tcp_peer_uid(*ends)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a TCP connection is")
def test_a_table_that_cannot_be_read_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when no descriptor is left, which another user may bring about. Where there is no table nobody is told."""
    from refit_service import peers_linux

    ends = ("127.0.0.1", 1), ("127.0.0.1", 2)
    monkeypatch.setattr(peers_linux, "_TCP_TABLE", str(tmp_path))
    with pytest.raises(IsADirectoryError):
        tcp_peer_uid(*ends)
    monkeypatch.setattr(peers_linux, "_TCP_TABLE", str(tmp_path / "none"))
    assert tcp_peer_uid(*ends) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a TCP connection is")
@pytest.mark.parametrize(("state", "reads"), [("01", 3), ("08", 1), (None, 1)])
def test_the_table_is_read_again_only_for_who_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str | None, reads: int
) -> None:
    """By our own end of the connection: it is connected, closed by the other side, or gone."""
    from refit_service import peers_linux

    opened: list[str] = []

    def counted(path: str, mode: str) -> object:
        opened.append(path)
        return open(path, mode)

    table = tmp_path / "tcp"
    table.write_text(f"  sl\n   0: 0100007F:0001 0100007F:0002 {state} 0:0 00:0 0 0 0 5\n" if state else "  sl\n")
    monkeypatch.setattr(peers_linux, "_TCP_TABLE", str(table))
    monkeypatch.setattr(peers_linux, "open", counted, raising=False)
    with pytest.raises(ConnectionError):
        tcp_peer_uid(("127.0.0.1", 1), ("127.0.0.1", 2))
    assert len(opened) == reads


# ---------------------------------------------------------------- how many, and for how long


def test_tickets_and_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket after its time, and each when there are too many of them."""
    now = 100.0
    tickets = Tickets(60.0, lambda: now)
    first, second = tickets.issue(), tickets.issue()
    now = 159.9
    assert tickets.redeem(first)
    assert not tickets.redeem(first)
    now = 160.1
    assert not tickets.redeem(second)
    many = [tickets.issue() for _ in range(17)]
    assert [tickets.redeem(token) for token in many] == [False] + [True] * 16

    sessions = Sessions()
    begun = [sessions.begin() for _ in range(16)]
    assert sessions.find(begun[0].place, begun[0].secret) is begun[0]
    sessions.begin()
    assert sessions.find(begun[0].place, begun[0].secret) is begun[0]
    assert sessions.find(begun[1].place, begun[1].secret) is None


def test_there_are_only_so_many_connections(visitor: Visitor) -> None:
    """Those who connect and say nothing keep nobody out, whatever their number; of the others there are 32."""
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(visitor.connect())
        assert visitor.ask(visitor.place).status == 200
    with contextlib.ExitStack() as stack:
        statuses = []
        for _ in range(34):
            sock = stack.enter_context(visitor.connect())
            sock.sendall(visitor.request(visitor.place, Connection="keep-alive"))
            statuses.append(int(sock.recv(12).split()[1]))
        assert statuses == [200] * 32 + [503] * 2


def parts(report: Callable[[BaseException, str], None]) -> Service:
    """A service of real parts in this process."""
    home = paths.home()
    registry, leases = Registry(home.state), LeaseBook(asyncio.get_running_loop())
    jobs = Jobs(leases, lambda job: None)
    warmer = Warmer(registry, jobs, home.state, report)
    return Service(home, Store(home.cache), registry, leases, jobs, warmer, Tally(), 1.0, 1.0, lambda: 0, report, PageOnDemand())  # fmt: skip


async def asked(visitor: Visitor, path: str) -> int:
    """The status of an answer, by the event loop that gives it too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
    writer.write(visitor.request(path))
    head = await reader.read(12)
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1])


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[tuple[Door, Visitor]]:
    """A door in this process, and one whose link was used."""
    service = parts(lambda error, number: None)
    door = await Door.open(service)
    visitor = Visitor(door.link().url)
    answer = await asyncio.to_thread(visitor.open)
    assert answer.status == 200
    try:
        yield door, visitor
    finally:
        await door.close()
        service.leases.close()


def test_only_for_who_may_see_the_page_it_is_looked_whose_a_connection_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look is long where there are many sockets, which anybody can make: one at a time, beside the event loop."""
    under_way, most, looks = 0, 0, 0
    lock = threading.Lock()

    def slow(ours: object, theirs: object) -> int | None:
        nonlocal under_way, most, looks
        assert threading.current_thread() is not threading.main_thread()
        with lock:
            under_way, looks = under_way + 1, looks + 1
            most = max(most, under_way)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return None

    monkeypatch.setattr(door_module, "tcp_peer_uid", slow)

    async def main() -> None:
        nonlocal looks
        async with opened() as (_, visitor):
            looks = 0
            stranger = Visitor(f"http://{visitor.host}/open?token=x")
            for path in ("/" + stranger.opening, "/", visitor.place, visitor.place + "events"):
                assert await asked(stranger, path) == 403
            assert looks == 0
            statuses = await asyncio.gather(*(asked(visitor, visitor.place) for _ in range(8)))
            assert statuses == [200] * 8
            assert (looks, most) == (8, 1)
            reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
            for _ in range(3):  # once for each connection
                writer.write(visitor.request(visitor.place + "icon.svg", Connection="keep-alive"))
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.close()
            assert looks == 9

    asyncio.run(main())


def test_so_many_of_whom_nothing_is_known_come_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond are ended at once; whoever has shown what opens the page does not count."""
    monkeypatch.setattr(door_module, "_MOST_UNKNOWN", 5)
    monkeypatch.setattr(door_module, "_WINDOW_S", 3600.0)

    async def main() -> None:
        async with opened() as (_, visitor):
            for _ in range(10):
                assert await asked(visitor, visitor.place) == 200
            ends = [await asyncio.open_connection("127.0.0.1", visitor.port) for _ in range(8)]
            for reader, _ in ends[5:]:
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 10) == b""
            assert not any(reader.at_eof() or reader.exception() for reader, _ in ends[:5])
            for _, writer in ends:
                writer.transport.abort()

    asyncio.run(main())


def test_one_survey_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the page is loaded anew meanwhile."""
    under_way, most, begun = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def slow(service: Service, records: object) -> dict[str, object]:
        nonlocal under_way, most, begun
        with lock:
            under_way, begun = under_way + 1, begun + 1
            most = max(most, under_way)
        go.wait(30)
        with lock:
            under_way -= 1
        return {"machine": begun}

    monkeypatch.setattr(feed_module, "survey", slow)

    async def main() -> None:
        service = parts(lambda error, number: None)
        feed = Feed(service)
        for _ in range(5):
            with feed.watched():
                await asyncio.sleep(0.05)
        assert (begun, most) == (1, 1)
        with feed.watched():
            await asyncio.sleep(0.05)
            go.set()
            for _ in range(500):
                if b'"machine"' in feed.news(0)[1]:
                    break
                await asyncio.sleep(0.02)
            assert b'"machine"' in feed.news(0)[1]
        assert most == 1 and begun >= 2
        service.leases.close()

    asyncio.run(main())


def test_the_door_closes_when_nobody_comes() -> None:
    """Not while a page is open. A link that has run out opens nothing, and who asks later gets another door."""
    faults: list[BaseException] = []

    async def main() -> None:
        service = parts(lambda error, number: faults.append(error))
        door = await Door.open(service, ticket_s=0.2, idle_s=0.6)
        late = Visitor(door.link().url)
        await asyncio.sleep(0.3)
        assert await asked(late, "/" + late.opening) == 403

        visitor = Visitor(door.link().url)
        reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
        writer.write(visitor.request("/" + visitor.opening))
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        visitor.cookie = re.findall(r"Set-Cookie: ([^;]+)", head)[0]
        place = re.findall(r"url=(/[\w-]+/)", body)[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", visitor.port)
        writer.write(visitor.request(place + "events"))
        await reader.readuntil(b'"part"')
        await asyncio.sleep(1.2)
        assert not door.closed
        assert await asked(visitor, place) == 200
        writer.close()
        for _ in range(100):
            await asyncio.sleep(0.05)
            if door.closed:
                break
        assert door.closed
        await door.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", visitor.port)

        on_demand = service.page
        first = Visitor((await on_demand.link(service)).url)
        await on_demand._door.close()  # type: ignore[union-attr]
        assert Visitor((await on_demand.link(service)).url).port != first.port
        await on_demand.close()
        service.leases.close()

    asyncio.run(main())
    assert faults == []


def test_sigterm_says_good_bye(service: Running, visitor: Visitor) -> None:
    """To the page that is open, at once, and the service ends as it always does."""
    with visitor.stream() as stream:
        stream.until("service")
        assert service.process is not None
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert stream.until("end") == "stopped"
        assert service.process.wait(10) == 0
        assert time.monotonic() - begun < 8


# ---------------------------------------------------------------- what it tells


def test_the_stream_tells_all_and_then_what_changes(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """Service, machine, cache, bundles with the choice and its reason, jobs, errors."""
    service = start(path=[slow_runtime])
    visitor = Visitor.of(service)
    visitor.open()
    with visitor.stream() as stream:
        assert stream.until("service")["pid"] == service.process.pid  # type: ignore[union-attr]
        assert stream.until("machine")["os"] == sys.platform
        record = service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document
        shown = stream.until("bundles", bool)
        assert shown[0]["record"] == record
        (model,) = shown[0]["models"]
        (choice,) = model["choices"]
        chosen = choice["chosen"]
        assert (chosen["engine"], chosen["target"], chosen["cached"]) == ("plans/mlp.cpu", "cpu", False)
        assert chosen["reason"].startswith("runs on the CPU")
        with service.begin(record["id"], MODEL) as waiting, service.begin(record["id"], MODEL) as second:
            (job,) = stream.until("jobs", lambda jobs: jobs and jobs[0]["waiters"] == 2)
            assert (job["model"], job["app"], job["key"]) == (MODEL, "Test", chosen["key"])
            (slow_runtime / "go").touch()
            assert stream.until("jobs", lambda jobs: not jobs) == []
            for sock in (waiting, second):
                assert read_answer(sock).lines[-1]["event"] == "result"
        stream.until("cache", lambda cache: cache["entries"] == 1)
        stream.until("bundles", lambda shown: shown[0]["models"][0]["choices"][0]["chosen"]["cached"])
        service.ensure(bundle, "nope")
        assert stream.until("errors", bool)[0]["code"] == "unknown-model"


def test_failures_and_refusals_are_told(start: Callable[..., Running], bundle: Path, tmp_path: Path) -> None:
    """What failed before is passed over, as by `ensure_engine`; what cannot fit says why, and a bundle that is
    gone stands there with its error."""

    def change(document: dict[str, object]) -> None:
        (engine,) = model_of(document)["engines"]  # type: ignore[arg-type]
        gpu = {"runtime": "tensorrt", "built_with": "10.16.1", "os": ["linux"], "compute_capabilities": ["9.0"]}
        model_of(document)["engines"].append(engine | gpu | {"path": "plans/gpu.plan"})  # type: ignore[arg-type]

    edit(bundle, change)
    service = start(path=[shim(tmp_path / "evil", "os.abort()")])
    assert service.ensure(bundle, MODEL).lines[-1]["code"] == "worker-crashed"
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    other = make_bundle(tmp_path / "other", seed=5)
    visitor = Visitor.of(service)
    visitor.open()
    with visitor.stream() as stream:
        model = stream.until("bundles", bool)[0]["models"][0]
        assert [r["engine"] for r in model["refusals"]] == ["plans/gpu.plan"]
        assert "GPU" in model["refusals"][0]["reason"]
        (choice,) = model["choices"]
        assert choice["chosen"] is None
        assert [(a["engine"], a["code"]) for a in choice["attempts"]] == [("plans/mlp.cpu", "worker-crashed")]
        (bundle / "bundle.json").unlink()
        record = service.ask("POST", "/v1/bundles", {"path": str(other)}).document
        gone, there = stream.until("bundles", lambda shown: len(shown) == 2)
        assert (gone["models"], gone["error"]["code"]) == ([], "bundle-missing")
        assert len(there["models"]) == 1
        service.ask("DELETE", f"/v1/bundles/{record['id']}")
        stream.until("bundles", lambda shown: len(shown) == 1)


def test_what_is_under_way_has_not_failed(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """Background work notes a failure before it begins, for the case that it takes the service with it."""
    service = start(REFIT_AGENT_WARM="1", path=[slow_runtime])
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    until(service.workers)
    visitor = Visitor.of(service)
    visitor.open()
    with visitor.stream() as stream:
        assert stream.until("jobs")[0]["background"]
        assert stream.until("background") == {"state": "working", "reason": "", "failures": []}
    assert len(service.status["warm"]["failures"]) == 1


def test_the_newer_stream_of_a_session_goes_on(visitor: Visitor) -> None:
    """The older tab is told; two sessions have one each."""
    with visitor.stream() as first:
        first.until("service")
        with visitor.stream() as second:
            second.until("service")
            assert first.until("end") == "elsewhere"
            assert visitor.ask(visitor.place).status == 200


def test_a_slow_reader_gets_the_newest_alone() -> None:
    """However much has happened, there is one line for each part."""

    async def main() -> None:
        service = parts(lambda error, number: None)
        feed = Feed(service)
        with feed.watched():
            for number in range(500):
                service.tally.errors.append(SeenError(when=float(number), code="x", message="y" * 1000))
                seen, _ = feed.news(0)
                feed._publish({"errors": tuple(service.tally.errors)})
            _, lines = feed.news(0)
            assert lines.count(b'"part": "errors"') == 1
            assert len(lines) < 40_000
            assert feed.news(feed._version)[1] == b""
            assert seen < feed._version
        service.leases.close()

    asyncio.run(main())


def test_nobody_looks_and_nothing_runs(service: Running, visitor: Visitor) -> None:
    """When the last stream has ended the service is as quiet as before."""
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    with visitor.stream() as stream:
        stream.until("bundles")
    until(lambda: process.num_threads() == 1)
    time.sleep(0.5)
    before = process.num_ctx_switches().voluntary
    time.sleep(2.5)
    assert process.num_ctx_switches().voluntary - before <= 2
    print(f"resident after the page was shown: {process.memory_info().rss / 1e6:.1f} MB")


# ---------------------------------------------------------------- how one gets there


def run_ui(service: Running, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refit_agent", "ui", *options]
    bare = {k: v for k, v in service.env.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    return subprocess.run(command, env=bare | env, capture_output=True, text=True, timeout=60)


def test_the_command_prints_a_link_that_works(service: Running, tmp_path: Path) -> None:
    """Alone with --no-open, in a document with --json; where there is no screen it is said what to do with it, and
    no browser for terminals takes it."""
    (tmp_path / "lynx").write_text("#!/bin/sh\n")
    (tmp_path / "lynx").chmod(0o755)
    assert "Example:" in run_ui(service, "-h").stdout
    alone = run_ui(service, "--no-open")
    assert (alone.returncode, alone.stdout.count("\n"), alone.stderr) == (0, 1, "")
    assert Visitor(alone.stdout.strip()).open().status == 200
    unseen = run_ui(service, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "open it in a browser of this machine" in unseen.stdout
    assert Visitor(unseen.stdout.splitlines()[0]).open().status == 200
    document = run_ui(service, "--json", "--no-open").stdout
    assert re.fullmatch(r'\{\s*"url": "http://127[^"]*",\s*"ttl_s": 60.0,\s*"opened": false\s*\}\s*', document)


def test_the_command_opens_the_browser(service: Running, tmp_path: Path) -> None:
    """Which is told the address, and cannot hold or write to the command's output."""
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho noise\necho "$1" > {tmp_path}/url\n')
    program.chmod(0o755)
    ran = run_ui(service, BROWSER=f"{program} %s")
    assert "opened in the browser" in ran.stdout and "noise" not in ran.stdout
    url = until(lambda: (tmp_path / "url").exists() and (tmp_path / "url").read_text().strip())
    assert url == ran.stdout.splitlines()[0]
    assert Visitor(url).open().status == 200


def test_the_command_does_not_wait_for_a_browser_that_stays(service: Running, tmp_path: Path) -> None:
    """The address is there before; and a browser that cannot show it is no browser."""
    program = tmp_path / "browser"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 300\n")
    program.chmod(0o755)
    ran = run_ui(service, BROWSER=f"{program} %s")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert ran.returncode == 0
    assert Visitor(ran.stdout.splitlines()[0]).open().status == 200
    assert "opened in the browser" in ran.stdout
    failed = run_ui(service, BROWSER="/bin/false %s", PATH=str(tmp_path / "nothing"))
    assert "open it in a browser of this machine" in failed.stdout


def test_without_a_service_the_command_says_so(home: Path) -> None:
    """Exit code 8, and how to start it."""
    ran = run_ui(Running(home))
    assert ran.returncode == 8
    assert "service-unreachable" in ran.stderr and "refit-agent serve" in ran.stderr


def test_both_clients_get_a_link(service: Running) -> None:
    """From Python."""
    with ServiceClient(str(service.socket)) as client:
        link = client.page()
    assert link.ttl_s == 60.0
    assert Visitor(link.url).open().status == 200
    assert Visitor(asyncio.run(AsyncClient(str(service.socket)).page()).url).open().status == 200


def test_the_files_of_the_page_are_in_the_wheel(tmp_path: Path) -> None:
    """They are no Python, and the page is nothing without them."""
    root = Path(refit_service.__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"refit_service/page/{name or 'page.html'}" for name in FILES} <= names
