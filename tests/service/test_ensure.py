"""`POST /v1/engines:ensure` against a real service: hits, streams, single flight, order, cancelling."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from bundles import MODEL, SIZE, make_bundle
from refit_agent.provision import ensure_engine

from .altered import Altered
from .running import Running, read_answer, until


def test_a_miss_streams_progress_and_a_hit_is_one_document(service: Running, bundle: Path) -> None:
    """The same engine both times, and the same as the library's own answer."""
    made = service.ensure(bundle, MODEL)
    assert made.headers["content-type"] == "application/x-ndjson"
    assert made.status == 200
    *progress, last = made.lines
    assert {line["event"] for line in progress} == {"progress"}
    fractions = [line["fraction"] for line in progress]
    assert fractions == sorted(fractions)
    assert last["event"] == "result"
    assert Path(last["path"]).is_file()
    hit = service.ensure(bundle, MODEL)
    assert hit.headers["content-type"] == "application/json"
    assert (hit.document["hit"], last["hit"]) == (True, False)
    same = ("path", "key", "runtime", "runtime_version", "target", "profile", "explanation")
    assert {k: hit.document[k] for k in same} == {k: last[k] for k in same}
    with ensure_engine(bundle, MODEL, service=False) as engine:
        assert (str(engine.path), engine.key, engine.explanation.chosen) == (
            last["path"],
            last["key"],
            last["explanation"]["chosen"],
        )


def test_every_answer_is_signed(service: Running, bundle: Path) -> None:
    """A request's id comes back, and one that is not fit for a log is replaced."""
    for answer in (service.ensure(bundle, MODEL), service.ensure(bundle, "nope"), service.ask("GET", "/nope")):
        assert answer.headers["refit-agent-protocol"] == "1"
        assert len(answer.headers["x-request-id"]) == 16
    assert service.ask("GET", "/v1/health", X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
    assert service.ask("GET", "/v1/health", X_Request_Id='a"b').headers["x-request-id"] != 'a"b'


def test_what_a_request_expects_is_no_reason_for_another_answer(service: Running, bundle: Path) -> None:
    """A client that waits for the word to go on gets it; all else that is expected is passed over."""
    answers = [service.ask("GET", path, Expect="x") for path in ("/v1/health", "/nope")]
    answers.append(service.ask("PUT", "/v1/health", Expect="x"))
    assert [a.status for a in answers] == [200, 404, 405]
    assert answers[2].headers["allow"] == "GET"
    for answer in (*answers, service.ensure(bundle, "nope")):
        assert answer.headers["server"] == "refit-agent"
        assert len(answer.headers["x-request-id"]) == 16
    body = json.dumps({"bundle": str(bundle), "model": MODEL}).encode()
    with service.connect() as sock:
        head = ["POST /v1/engines:ensure HTTP/1.1", "Host: x", "Expect: 100-continue", "Connection: close"]
        sock.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode())
        assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_answer(sock).lines[-1]["event"] == "result"


_ONCE = """
from refit_service import ensure_handler
_real, _calls = ensure_handler._last_line, []
def broken(*given):
    _calls.append(given)
    if len(_calls) <= {times}:
        raise ValueError("nobody foresaw this")
    return _real(*given)
ensure_handler._last_line = broken
"""


def test_a_fault_within_a_stream_is_its_last_line(home: Path, bundle: Path) -> None:
    """And nobody holds the lease that was granted before."""
    with Altered(home, _ONCE.format(times=1)) as service:
        answer = service.ensure(bundle, MODEL)
        assert (answer.status, answer.lines[-1]["event"], answer.lines[-1]["code"]) == (200, "error", "internal")
        assert answer.lines[-1]["request_id"] == answer.headers["x-request-id"]
        assert "nobody foresaw this" in (home / "state/logs/service.log").read_text()
        assert b"refit_agent_leases 0.0" in service.ask("GET", "/metrics").body
        assert service.status["errors"][-1]["code"] == "internal"
        assert service.ensure(bundle, MODEL).document["hit"]


def test_no_second_answer_follows_within_the_first(home: Path, bundle: Path) -> None:
    """If even the last line cannot be written, the connection ends."""
    with Altered(home, _ONCE.format(times=2)) as service, service.begin(bundle, MODEL) as sock:
        data = b""
        try:
            while piece := sock.recv(65536):
                data += piece
        except ConnectionResetError:
            pass
        assert data.count(b"HTTP/1.1") == 1
        assert not data.endswith(b"0\r\n\r\n")
        assert service.status["errors"][-1]["code"] == "internal"
        assert service.ensure(bundle, MODEL).document["hit"]


def test_errors_are_problem_documents(service: Running, bundle: Path) -> None:
    """Known families have their status, code, sentence and hint."""
    answer = service.ensure(bundle, "nope")
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = answer.document
    assert problem["code"] == "unknown-model"
    assert "nope" in problem["detail"] and problem["hint"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert service.ensure("/nowhere", MODEL).document["code"] == "bundle-missing"
    assert service.ensure("relative", MODEL).status == 400
    assert service.ensure("0123456789abcdef", MODEL).document["code"] == "no-such-bundle"
    assert service.ensure(bundle, MODEL, target="cuda:7").document["code"] == "unknown-target"
    assert service.ensure(bundle, MODEL, deadline_s=-1).document["code"] == "bad-request"
    assert service.ask("POST", "/v1/engines:ensure", [1]).status == 400
    assert service.ask("PUT", "/v1/engines:ensure").document["code"] == "method-not-allowed"


def test_a_hundred_requests_are_one_refit(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """One worker, a hundred results with a lease each."""
    service = start(path=[slow_runtime])
    with ThreadPoolExecutor(100) as pool:
        answers = [pool.submit(service.ensure, bundle, MODEL) for _ in range(100)]
        until(lambda: service.status["jobs"] and service.status["jobs"][0]["waiters"] == 100)
        (slow_runtime / "go").touch()
        results = [answer.result().lines[-1] for answer in answers]
    assert {result["event"] for result in results} == {"result"}
    assert len({result["key"] for result in results}) == 1
    assert len({result["lease"]["id"] for result in results}) == 100
    assert (slow_runtime / "count").read_text() == "x"


def test_what_an_app_waits_for_goes_before_background_work(
    start: Callable[..., Running], slow_runtime: Path, sound_bundle: Path, tmp_path: Path
) -> None:
    """One at a time, in the order of need."""
    service = start(path=[slow_runtime])
    bundles = [make_bundle(tmp_path / f"b{seed}", seed=seed) for seed in range(3)]
    running = service.begin(bundles[0], MODEL)
    until(lambda: len(service.status["jobs"]) == 1)
    later = service.begin(bundles[1], MODEL, background=True)
    until(lambda: len(service.status["jobs"]) == 2)
    sooner = service.begin(bundles[2], MODEL)
    jobs = until(lambda: len(service.status["jobs"]) == 3 and service.status["jobs"])
    assert [job["background"] for job in jobs] == [False, True, False]
    assert [job["phase"] for job in jobs[1:]] == ["queue", "queue"]
    assert len(until(service.workers)) == 1
    (slow_runtime / "go").touch()
    for sock in (running, sooner, later):
        assert read_answer(sock).lines[-1]["event"] == "result"
        sock.close()
    log = (service.home / "state/logs/service.log").read_text().splitlines()
    made = [json.loads(line) for line in log if "engine published" in line]
    keys = [service.ensure(b, MODEL).document["key"] for b in (bundles[0], bundles[2], bundles[1])]
    assert [line["key"] for line in made] == keys
    assert all(len(line["request"]) == 16 for line in made)


def test_the_last_waiter_who_goes_stops_the_worker(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """One of two may go; the second one's going ends the worker, and a new request begins anew."""
    service = start(path=[slow_runtime])
    one, two = service.begin(bundle, MODEL), service.begin(bundle, MODEL)
    until(lambda: service.status["jobs"] and service.status["jobs"][0]["waiters"] == 2 and service.workers())
    one.close()
    until(lambda: service.status["jobs"][0]["waiters"] == 1)
    assert service.workers()
    two.close()
    until(lambda: service.status["idle"])
    until(lambda: not service.workers(), 3)
    (slow_runtime / "go").touch()
    assert service.ensure(bundle, MODEL).lines[-1]["event"] == "result"


def test_a_slow_reader_gets_the_result_and_holds_up_nobody(
    start: Callable[..., Running], slow_runtime: Path, bundle: Path
) -> None:
    """Heartbeats come at least every two seconds; one who does not read them is not waited for."""
    service = start(path=[slow_runtime])
    sleeper = service.begin(bundle, MODEL)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(service.ensure, bundle, MODEL)
        time.sleep(4.5)
        (slow_runtime / "go").touch()
        lines = reader.result().lines
    assert len([line for line in lines if line["phase" if "phase" in line else "event"] != "result"]) >= 3
    assert lines[-1]["event"] == "result"
    assert read_answer(sleeper).lines[-1]["event"] == "result"
    sleeper.close()


def test_a_deadline_passes_while_others_go_on(
    start: Callable[..., Running], slow_runtime: Path, tmp_path: Path
) -> None:
    """Who wants to wait for a second only is told after it."""
    service = start(path=[slow_runtime])
    running = service.begin(make_bundle(tmp_path / "one"), MODEL)
    until(service.workers)
    answer = service.ensure(make_bundle(tmp_path / "two", seed=5), MODEL, deadline_s=0.5)
    assert (answer.lines[-1]["event"], answer.lines[-1]["code"]) == ("error", "service-busy")
    (slow_runtime / "go").touch()
    assert read_answer(running).lines[-1]["event"] == "result"
    running.close()


def test_a_failure_is_an_error_event_and_then_remembered(service: Running, bundle: Path) -> None:
    """The stream ends in one error; the next request is refused at once, with the same code."""
    plan = bundle / "plans" / "mlp.cpu"
    plan.write_bytes(bytes(len(plan.read_bytes())))
    first = service.ensure(bundle, MODEL)
    assert first.lines[-1]["event"] == "error"
    code = first.lines[-1]["code"]
    assert service.status["errors"][-1]["code"] == code
    second = service.ensure(bundle, MODEL)
    assert (second.lines[-1]["code"] if second.status == 200 else second.document["code"]) == code


def test_own_weights_are_used(service: Running, bundle: Path, tmp_path: Path) -> None:
    """They are read in the job, not in the event loop."""
    model = onnx.load(bundle / "models" / "mlp.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((SIZE, SIZE), np.float32), "w1"))
    own = str(tmp_path / "own.onnx")
    onnx.save(model, own)
    document = json.loads((bundle / "bundle.json").read_text())
    document["models"][0]["engines"][0]["refit"] = "any"
    document["models"][0]["golden"] = []
    (bundle / "bundle.json").write_text(json.dumps(document))
    keys = {service.ensure(bundle, MODEL, weights=own).lines[-1]["key"] for _ in range(2)}
    assert len(keys) == 1
    assert service.ensure(bundle, MODEL, weights="relative.onnx").status == 400


def test_a_bundle_deleted_while_it_is_used(start: Callable[..., Running], slow_runtime: Path, bundle: Path) -> None:
    """The stream ends in a result or one error, and the service goes on."""
    service = start(path=[slow_runtime])
    sock = service.begin(bundle, MODEL)
    until(service.workers)
    shutil.rmtree(bundle)
    (slow_runtime / "go").touch()
    assert read_answer(sock).lines[-1]["event"] in ("result", "error")
    sock.close()
    assert service.ensure(bundle, MODEL).document["code"] == "bundle-missing"
    assert service.status["idle"]
