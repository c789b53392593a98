"""Weights that are elsewhere: a real HTTP server with every bad habit, and fsspec."""

from __future__ import annotations

import errno
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, edit, make_bundle, model_of
from refit_agent import ensure_engine, fetch
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import clear, list_entries
from refit_agent.cache.verify import verify
from refit_agent.errors import (
    BundleFileMissing,
    BundleFileUnreadable,
    Cancelled,
    FetchFailed,
    FetchForbidden,
    FetchLibraryMissing,
    FetchMismatch,
    ManifestInvalid,
    RefitAgentError,
    RefitError,
    WorkerCrashed,
    WorkerTimeout,
)
from refit_agent.fetch import forget_fetched
from refit_agent.progress import Progress
from refit_agent.refit import transfer
from refit_agent.refit.messages import FetchJob
from refit_agent.shown_url import shown

ONNX = "models/mlp.onnx"


class Peer:
    """What the server has and does, and what it was asked."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.answer: Callable[[Any, bytes], bool] = lambda handler, data: False
        self.supports_ranges = True


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A server on loopback; http is allowed in the test, and pauses between tries are short."""
    monkeypatch.setenv("REFIT_AGENT_FETCH", "http,memory")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served.files.get(self.path)
            served.ranges.append(self.headers.get("Range"))
            if data is None:
                self.send_error(404)
                return
            if served.answer(self, data):
                return
            send(self, data, ranges=served.supports_ranges)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Peer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def send(handler: Any, data: bytes, *, ranges: bool = True, only: int | None = None) -> None:
    """Answer with the data from the wanted byte on; ``only`` so many of them, and then hang up."""
    begin = 0
    wanted = handler.headers.get("Range")
    if wanted and ranges:
        begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        if begin >= len(data):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
    else:
        handler.send_response(200)
    body = data[begin:]
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body if only is None else body[:only])


@pytest.fixture
def remote(bundle: Path, peer: Peer) -> Path:
    """A bundle whose ONNX file is at the server only."""
    return move_away(bundle, peer, ONNX)


def move_away(bundle: Path, peer: Peer, *paths: str) -> Path:
    for path in paths:
        peer.files[f"/{path}"] = (bundle / path).read_bytes()
        (bundle / path).unlink()

    def change(document: dict[str, Any]) -> None:
        model = model_of(document)
        for ref in (model["onnx"], *model["external"]):
            if ref["path"] in paths:
                ref["url"] = f"{peer.url}/{ref['path']}"

    edit(bundle, change)
    return bundle


def partial(home: Path) -> list[Path]:
    folder = home / "cache" / "partial"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_it_is_fetched_once_and_the_engine_is_right(remote: Path, peer: Peer, home: Path) -> None:
    """With golden data; the next engine of these weights, and every hit, ask nobody."""
    with ensure_engine(remote, MODEL) as engine:
        assert (engine.hit, engine.check) == (False, "golden")
    assert peer.ranges == [None]
    with ensure_engine(remote, MODEL) as engine:
        assert engine.hit
    shutil.rmtree(home / "cache" / "engines" / engine.key)
    with ensure_engine(remote, MODEL) as engine:
        assert not engine.hit
    assert peer.ranges == [None] and partial(home) == []


def test_with_everything_present_the_network_is_not_touched(bundle: Path, peer: Peer) -> None:
    """A URL in the manifest is a last resort."""
    edit(bundle, lambda d: model_of(d)["onnx"].update(url=f"{peer.url}/{ONNX}"))
    ensure_engine(bundle, MODEL).close()
    assert peer.ranges == []


@pytest.mark.parametrize("away", [("models/w1.bin",), (ONNX,), (ONNX, "models/w1.bin")])
def test_external_data_may_be_elsewhere_too(tmp_path: Path, peer: Peer, away: tuple[str, ...]) -> None:
    """The ONNX file here and its data there, the other way round, and both there."""
    bundle = move_away(make_bundle(tmp_path / "external", external=True), peer, *away)
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.check == "golden"
    assert len(peer.ranges) == len(away)


def test_a_broken_transfer_is_resumed(remote: Path, peer: Peer) -> None:
    """Nothing that has come is asked for again."""
    cuts = [1000, 2000]

    def cut(handler: Any, data: bytes) -> bool:
        if not cuts:
            return False
        send(handler, data, only=cuts.pop(0))
        return True

    peer.answer = cut
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_what_has_come_outlives_the_process(remote: Path, peer: Peer, home: Path) -> None:
    """The next call goes on where the first was stopped, and nothing was published by then."""

    def cut(handler: Any, data: bytes) -> bool:
        if handler.headers.get("Range"):
            handler.send_error(403)
        else:
            send(handler, data, only=5000)
        return True

    peer.answer = cut
    with pytest.raises(FetchFailed, match="403"):
        ensure_engine(remote, MODEL)
    assert [p.stat().st_size for p in partial(home)] == [5000]
    assert list((home / "cache" / "engines").iterdir()) == []
    peer.answer, peer.ranges = lambda handler, data: False, []
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == ["bytes=5000-"] and partial(home) == []


def test_a_failed_fetch_is_not_remembered_as_a_failure_of_the_engine(remote: Path, peer: Peer) -> None:
    """The network is back a minute later."""
    files, peer.files = peer.files, {}
    with pytest.raises(FetchFailed, match="404"):
        ensure_engine(remote, MODEL)
    peer.files = files
    ensure_engine(remote, MODEL).close()


@pytest.mark.parametrize(
    "error",
    [
        WorkerTimeout(seconds=1.0, phase="fetch", log="https://x/y?token=secret"),
        WorkerCrashed(how="signal SIGKILL", phase="fetch", log="https://x/y?token=secret"),
        RefitError(detail="The refit failed: OSError: no route to https://me:secret@x/y."),
    ],
)
def test_a_worker_that_did_not_end_well_is_trouble_of_the_source(
    remote: Path, monkeypatch: pytest.MonkeyPatch, error: RefitAgentError
) -> None:
    """Remembered as the engine's, the download would not be gone on with; and what it said may be a secret."""

    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patched, pytest.raises(FetchFailed, match=r"0 of .* bytes have come") as caught:
        patched.setattr(fetch, "run_worker", fail)
        ensure_engine(remote, MODEL)
    assert "secret" not in str(caught.value)
    ensure_engine(remote, MODEL).close()


def test_a_slow_download_goes_on_with_the_next_call(remote: Path, peer: Peer, home: Path) -> None:
    """However little of it comes before the deadline."""
    stop = threading.Event()

    def hang(handler: Any, data: bytes) -> bool:
        if handler.headers.get("Range"):
            return False
        send(handler, data, only=4000)
        handler.wfile.flush()
        stop.wait(20)
        return True

    peer.answer = hang
    try:
        with pytest.raises(FetchFailed, match=r"4000 of .* bytes have come") as caught:
            ensure_engine(remote, MODEL, deadline_s=3)
    finally:
        stop.set()
    assert "--deadline" in caught.value.hint
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == [None, "bytes=4000-"]


def test_a_source_that_cannot_go_on_sends_it_all_again(remote: Path, peer: Peer) -> None:
    """Without ranges the beginning is not taken twice."""
    peer.supports_ranges = False
    first = [True]

    def cut(handler: Any, data: bytes) -> bool:
        if not first:
            return False
        first.clear()
        send(handler, data, ranges=False, only=4000)
        return True

    peer.answer = cut
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == [None, "bytes=4000-"]


def test_a_leftover_of_something_else_is_thrown_away(remote: Path, peer: Peer, home: Path) -> None:
    """The hash of the whole decides, and then it is fetched from the beginning."""

    def cut(handler: Any, data: bytes) -> bool:
        if handler.headers.get("Range"):
            handler.send_error(403)
        else:
            send(handler, b"\0" * len(data), only=3000)
        return True

    peer.answer = cut
    with pytest.raises(FetchFailed):
        ensure_engine(remote, MODEL)
    peer.answer, peer.ranges = lambda handler, data: False, []
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == ["bytes=3000-", None]


@pytest.mark.parametrize("change", [lambda d: b"x" + d[1:], lambda d: d + b"x", lambda d: d * 100])
def test_another_file_never_gets_into_the_cache(remote: Path, peer: Peer, home: Path, change: Any) -> None:
    """Changed, longer, and endless; nothing of it is kept."""
    peer.files = {name: change(data) for name, data in peer.files.items()}
    with pytest.raises(FetchMismatch):
        ensure_engine(remote, MODEL)
    assert sum(p.stat().st_size for p in partial(home)) == 0
    assert list((home / "cache" / "engines").iterdir()) == []


def test_a_shorter_file_is_an_error(remote: Path, peer: Peer) -> None:
    """Known before it is fetched, where the source says how long it is."""
    peer.files = {name: data[:-1] for name, data in peer.files.items()}
    with pytest.raises(FetchMismatch, match="should have"):
        ensure_engine(remote, MODEL)


def test_a_source_that_always_breaks_off_at_the_same_place_is_given_up(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it sends everything from the beginning each time."""
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_S", 0.0)
    peer.files["/f"] = bytes(5000)

    def cut(handler: Any, data: bytes) -> bool:
        send(handler, data, ranges=False, only=3000)
        return True

    peer.answer = cut
    job = FetchJob(staging=str(tmp_path), target=str(tmp_path / "f"), url=f"{peer.url}/f", size=5000, sha256="0" * 64)
    with pytest.raises(FetchFailed, match=r"broke|3000 of 5000"):
        transfer.transfer(job, lambda phase: None)
    assert len(peer.ranges) == 6


def test_trouble_of_the_server_passes(remote: Path, peer: Peer) -> None:
    """503 is asked again, 403 is not."""
    codes = [503, 429]

    def fail(handler: Any, data: bytes) -> bool:
        if not codes:
            return False
        handler.send_error(codes.pop(0))
        return True

    peer.answer = fail
    ensure_engine(remote, MODEL).close()
    assert len(peer.ranges) == 3


def test_a_refusal_is_final(remote: Path, peer: Peer) -> None:
    """And the error does not repeat what may be a secret."""
    edit(remote, lambda d: model_of(d)["onnx"].update(url=f"{peer.url}/{ONNX}?token=secret"))

    def forbid(handler: Any, data: bytes) -> bool:
        handler.send_error(403)
        return True

    peer.answer = forbid
    peer.files[f"/{ONNX}?token=secret"] = b""
    with pytest.raises(FetchFailed, match="403") as caught:
        ensure_engine(remote, MODEL)
    assert len(peer.ranges) == 1 and "secret" not in str(caught.value)


def test_a_redirection_to_another_kind_of_address_is_not_followed(remote: Path, peer: Peer) -> None:
    """Such as from https to http, or here from http to a file."""

    def redirect(handler: Any, data: bytes) -> bool:
        handler.send_response(302)
        handler.send_header("Location", "https://127.0.0.1:1/other")
        handler.end_headers()
        return True

    peer.answer = redirect
    with pytest.raises(FetchFailed, match="another kind of address"):
        ensure_engine(remote, MODEL)


def test_what_is_not_allowed_is_not_fetched(remote: Path, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default nothing unencrypted, no local files; and with an empty setting nothing at all."""
    monkeypatch.delenv("REFIT_AGENT_FETCH")
    with pytest.raises(FetchForbidden, match="http"):
        ensure_engine(remote, MODEL)
    for url in ("file:///etc/passwd", "ssh://host/file", "local://x", "simplecache://x"):
        edit(remote, lambda d, url=url: model_of(d)["onnx"].update(url=url))  # type: ignore[misc]
        with pytest.raises(FetchForbidden):
            ensure_engine(remote, MODEL)
    monkeypatch.setenv("REFIT_AGENT_FETCH", "")
    edit(remote, lambda d: model_of(d)["onnx"].update(url="https://example.org/x"))
    with pytest.raises(FetchForbidden, match="none"):
        ensure_engine(remote, MODEL)
    assert peer.ranges == []


def test_progress_never_goes_back_and_counts_bytes(tmp_path: Path, peer: Peer) -> None:
    """Over two files, and on into the refit."""
    bundle = move_away(make_bundle(tmp_path / "external", external=True), peer, ONNX, "models/w1.bin")
    steps: list[Progress] = []
    ensure_engine(bundle, MODEL, progress=steps.append).close()
    fractions = [s.fraction for s in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    fetched = [s for s in steps if s.phase == "fetch"]
    assert fetched[-1].done == fetched[-1].total == sum(len(d) for d in peer.files.values())
    assert fetched[-1].fraction == 0.6 and steps[-1].phase == "ready"


def test_it_can_be_cancelled(remote: Path, peer: Peer, home: Path) -> None:
    """In the middle of a transfer that hangs; what has come stays."""
    stop = threading.Event()

    def hang(handler: Any, data: bytes) -> bool:
        send(handler, data, only=4000)
        handler.wfile.flush()
        stop.wait(20)
        return True

    peer.answer = hang
    came: list[int] = []
    try:
        with pytest.raises(Cancelled):
            ensure_engine(
                remote,
                MODEL,
                progress=lambda s: came.append(s.done),
                cancelled=lambda: sum(p.stat().st_size for p in partial(home)) >= 4000,
            )
    finally:
        stop.set()
    assert [p.stat().st_size for p in partial(home)] == [4000]


def test_many_callers_fetch_it_once(remote: Path, peer: Peer) -> None:
    """They wait for the first one."""
    errors: list[Exception] = []

    def call() -> None:
        try:
            ensure_engine(remote, MODEL).close()
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and peer.ranges == [None]


def test_fetched_files_are_looked_after_like_engines(remote: Path, home: Path) -> None:
    """Listed, verified, and cleared away; a damaged one is fetched anew."""
    ensure_engine(remote, MODEL).close()
    store = Store(str(home / "cache"))
    weights = next(c for c in list_entries(store) if c.entry is not None and c.entry.runtime == "fetched")
    path = Path(store.folder(weights.key)) / "weights"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [v.fault for v in verify(store, [weights.key])] != [""]
    removed, kept = clear(store)
    assert len(removed) == 1 and kept == []
    ensure_engine(remote, MODEL).close()


def test_a_fetched_file_that_rotted_unseen_is_forgotten(remote: Path, peer: Peer, home: Path) -> None:
    """No look-up finds it, so every engine of it would fail; a sound one stays, and so does an engine."""
    engine = ensure_engine(remote, MODEL)
    engine.close()
    store = Store(str(home / "cache"))
    weights = next(c.key for c in list_entries(store) if c.entry is not None and c.entry.runtime == "fetched")
    path = Path(store.folder(weights)) / "weights"
    assert forget_fetched(store, str(path)) and path.exists()
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not forget_fetched(store, str(engine.path)) and not forget_fetched(store, str(remote / "weights"))
    assert forget_fetched(store, str(path)) and not path.exists()
    shutil.rmtree(store.folder(engine.key))
    ensure_engine(remote, MODEL).close()
    assert len(peer.ranges) == 2


def test_what_has_come_counts_once(remote: Path, peer: Peer, home: Path) -> None:
    """In quota and disk; it goes on although nobody went on with it for long, since it is under a lock."""
    folder = home / "cache" / "partial"
    ensure_engine(remote, MODEL).close()
    store = Store(str(home / "cache"))
    weights = next(c.key for c in list_entries(store) if c.entry is not None and c.entry.runtime == "fetched")
    clear(store)
    data = peer.files[f"/{ONNX}"]
    for name in (weights, "0" * len(weights)):
        (folder / name).write_bytes(data[:6000])
        os.utime(folder / name, (1.0, 1.0))
    ensure_engine(remote, MODEL).close()
    assert peer.ranges == [None, "bytes=6000-"] and partial(home) == []


@pytest.mark.parametrize("url", ["https://me:pass@h:x/p?token=abcd1", "https://[h/p?token=abcd1", "nothing", ""])
def test_an_address_that_is_none_can_be_shown(url: str) -> None:
    """An error while an error is told would hide it."""
    assert not any(secret in shown(url) for secret in ("pass", "abcd1"))


@pytest.mark.parametrize(
    "text",
    [
        "nonnumeric port: 'pa%40ss@host'",
        "no access with pa@ss",
        "GET /f?token=ab%2Bcd&x=1 failed",
        "ab+cd is expired",
        "it leads to https://you:other@else/f?sig=other",
        f"{'x' * 295} ab%2Bcd",
    ],
)
def test_what_others_say_is_told_without_secrets(text: str) -> None:
    """As the address says them and as they are decoded; those of other addresses too."""
    told = transfer.scrubbed(text, "https://me:pa%40ss@host/f?token=ab%2Bcd&x=1")
    assert not any(secret in told for secret in ("pa%40", "pa@", "ab%2B", "ab+", "other"))


def test_a_redirection_to_nonsense_is_final_and_tells_no_secret(remote: Path, peer: Peer) -> None:
    """The standard library's words quote what it was asked for."""

    def redirect(handler: Any, data: bytes) -> bool:
        handler.send_response(302)
        handler.send_header("Location", "http://me:secret@127.0.0.1:no/x?token=secret")
        handler.end_headers()
        return True

    peer.answer = redirect
    with pytest.raises(FetchFailed, match=r"InvalidURL|ValueError") as caught:
        ensure_engine(remote, MODEL)
    assert len(peer.ranges) == 1 and "secret" not in str(caught.value)


def test_no_address_within_an_address(tmp_path: Path) -> None:
    """fsspec would open the second, whose scheme nobody compared with what is allowed."""
    (tmp_path / "there").write_bytes(b"12345")
    url = f"memory://x::file://{tmp_path}/there"
    job = FetchJob(staging=str(tmp_path), target=str(tmp_path / "f"), url=url, size=5, sha256="0" * 64)
    with pytest.raises(FetchFailed, match="::"):
        transfer.transfer(job, lambda phase: None)


def test_a_missing_file_without_a_url_is_what_it_was(bundle: Path) -> None:
    """And an engine plan cannot be elsewhere."""
    (bundle / ONNX).unlink()
    with pytest.raises(BundleFileMissing):
        ensure_engine(bundle, MODEL)
    edit(bundle, lambda d: model_of(d)["engines"][0].update(url="https://example.org/plan"))
    with pytest.raises(ManifestInvalid, match="only the ONNX file"):
        ensure_engine(bundle, MODEL)


def test_a_file_that_is_there_and_cannot_be_read_now_is_not_fetched(
    remote: Path, peer: Peer, sound_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes over the network mend neither a failing disk nor a process with too many files open."""
    shutil.copy(sound_bundle / ONNX, remote / ONNX)
    real = os.path.realpath

    def fail(path: Any, *args: Any, **options: Any) -> str:
        if str(path).endswith(ONNX) and options:
            raise OSError(errno.EIO, "Input/output error", path)
        return str(real(path, *args, **options))

    monkeypatch.setattr(os.path, "realpath", fail)
    with pytest.raises(BundleFileUnreadable, match="Input/output error"):
        ensure_engine(remote, MODEL, service=False)
    assert peer.ranges == []


def test_nothing_is_fetched_for_a_bundle_that_lacks_something_else(remote: Path, peer: Peer) -> None:
    """Gigabytes for an error that was there before."""
    (remote / "golden" / "x.npy").unlink()
    with pytest.raises(BundleFileMissing):
        ensure_engine(remote, MODEL)
    assert peer.ranges == []


@pytest.mark.parametrize("url", ["no url", "https://", "HTTPS://x/y", "https://x/\u00e9", "https://x/ y", "x" * 3000])
def test_what_is_no_url_is_refused_with_the_manifest(bundle: Path, url: str) -> None:
    """Before anything is opened."""
    edit(bundle, lambda d: model_of(d)["onnx"].update(url=url))
    with pytest.raises(ManifestInvalid):
        ensure_engine(bundle, MODEL)


def test_other_sources_go_through_fsspec(
    remote: Path, peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source of fsspec's own, made known to the worker as an installed package would be; and one that is not."""
    folder = tmp_path / "plugin"
    folder.mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mlp.onnx").write_bytes(peer.files[f"/{ONNX}"])
    (folder / "sitecustomize.py").write_text(
        "import fsspec\nfrom fsspec.implementations.local import LocalFileSystem\n"
        "class Shelf(LocalFileSystem):\n    protocol = 'shelf'\n"
        "    @classmethod\n    def _strip_protocol(cls, path):\n"
        f"        return path.replace('shelf://box', {str(tmp_path / 'there')!r})\n"
        "fsspec.register_implementation('shelf', Shelf)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("REFIT_AGENT_FETCH", "shelf,s3")
    edit(remote, lambda d: model_of(d)["onnx"].update(url="shelf://box/mlp.onnx"))
    with ensure_engine(remote, MODEL) as engine:
        assert engine.check == "golden"
    assert peer.ranges == []
    edit(remote, lambda d: model_of(d)["onnx"].update(url="s3://bucket/mlp.onnx"))
    shutil.rmtree(Path(os.environ["REFIT_AGENT_HOME"]) / "cache")
    with pytest.raises(FetchLibraryMissing, match="s3fs"):
        ensure_engine(remote, MODEL)


def test_a_fetched_file_that_went_bad_is_fetched_once_more(remote: Path, peer: Peer, home: Path) -> None:
    """Its size and time are right; nobody has to reinstall the app for it."""
    engine = ensure_engine(remote, MODEL)
    engine.close()
    store = Store(str(home / "cache"))
    weights = next(c.key for c in list_entries(store) if c.entry is not None and c.entry.runtime == "fetched")
    path = Path(store.folder(weights)) / "weights"
    status = path.stat()
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.rmtree(store.folder(engine.key))
    with ensure_engine(remote, MODEL) as again:
        assert again.check == "golden"
    assert len(peer.ranges) == 2
