"""Starting, stopping, socket activation, and what a service at rest costs."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bundles import MODEL

from .running import Running, until


def test_folder_and_socket_are_the_users_alone(service: Running) -> None:
    """A missing runtime folder is made."""
    assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600


def test_a_second_service_says_so(service: Running) -> None:
    """Exit code 8, and the first goes on; without the lock's file too."""
    for _ in range(2):
        second = subprocess.run(
            [sys.executable, "-m", "refit_agent", "serve"], env=service.env, capture_output=True, text=True, timeout=20
        )
        assert second.returncode == 8
        assert "service-running" in second.stderr
        (service.home / "run/agent.sock.lock").unlink(missing_ok=True)
    assert service.ask("GET", "/v1/health").document == {"ok": True}


def test_a_path_too_long_is_a_clear_error(home: Path) -> None:
    """With its length, what is allowed, and what to do."""
    running = Running(home, REFIT_AGENT_SOCKET=f"/tmp/{'x' * 120}/agent.sock").start(wait=False)
    assert running.process is not None
    out = running.process.communicate(timeout=20)[0].decode()
    assert running.process.returncode == 8
    assert "socket-unusable" in out and "107" in out and "REFIT_AGENT_SOCKET" in out


def test_a_file_in_the_sockets_place_stays(home: Path) -> None:
    """It is no leftover of ours."""
    (home / "run").mkdir(parents=True)
    (home / "run/agent.sock").write_text("precious")
    running = Running(home).start(wait=False)
    assert running.process is not None
    out = running.process.communicate(timeout=20)[0]
    assert running.process.returncode == 8, out
    assert (home / "run/agent.sock").read_text() == "precious"


_ACTIVATE = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(16)
os.dup2(s.fileno(), 3); os.set_inheritable(3, True)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
os.execv(sys.executable, [sys.executable, "-m", "refit_agent", "serve"])
"""


def test_socket_activation_readiness_and_watchdog(home: Path, tmp_path: Path, bundle: Path) -> None:
    """The socket that systemd gives is used and left in its place; READY, WATCHDOG and STOPPING are told."""
    (home / "run").mkdir(parents=True)
    running = Running(home)
    notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notes.bind(str(tmp_path / "notify"))
    notes.settimeout(15)
    env = running.env | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    process = subprocess.Popen([sys.executable, "-c", _ACTIVATE, str(running.socket)], env=env)
    try:
        until(running.socket.exists)
        heard = {notes.recv(100) for _ in range(3)}
        assert heard == {b"READY=1", b"WATCHDOG=1"}
        assert running.ensure(bundle, MODEL).lines[-1]["event"] == "result"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        notes.settimeout(1)
        while (note := notes.recv(100)) == b"WATCHDOG=1":
            pass
        assert note == b"STOPPING=1"
        assert running.socket.exists()
    finally:
        process.kill()
        process.wait()
        notes.close()


def test_at_rest_it_is_small_and_asleep(service: Running, bundle: Path) -> None:
    """After a refit too: under 45 MB, no CUDA, TensorRT, NumPy or ONNX Runtime mapped, no processor time."""
    service.ensure(bundle, MODEL, ttl_s=0.5)
    service.ensure(bundle, MODEL, ttl_s=0.5)
    assert service.process is not None
    process = psutil.Process(service.process.pid)
    rss = process.memory_info().rss
    print(f"resident at rest: {rss / 1e6:.1f} MB")
    assert rss < 45e6
    maps = Path(f"/proc/{process.pid}/maps").read_text().lower()
    for name in ("cuda", "nvinfer", "tensorrt", "numpy", "onnxruntime", "nvidia-ml", "libssl"):
        assert name not in maps
    time.sleep(2.5)
    assert process.num_threads() == 1
    before = process.cpu_times(), process.num_ctx_switches().voluntary
    time.sleep(1.5)
    assert process.num_ctx_switches().voluntary - before[1] <= 1
    after = process.cpu_times()
    assert after.user + after.system == before[0].user + before[0].system


def test_registration_survives_a_restart(start: Callable[..., Running], bundle: Path, tmp_path: Path) -> None:
    """By path or by id, once however often; removed for good; a damaged file does not keep the service down."""
    service = start()
    made = service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    assert made.status == 201
    (tmp_path / "link").symlink_to(bundle)
    assert service.ask("POST", "/v1/bundles", {"path": str(tmp_path / "link")}).status == 200
    record = made.document
    assert record["models"] == [MODEL]
    service.kill()
    again = start()
    assert again.ask("GET", "/v1/bundles").document == {"bundles": [record]}
    assert again.ensure(record["id"], MODEL).lines[-1]["event"] == "result"
    assert again.ask("DELETE", f"/v1/bundles/{record['id']}").status == 204
    assert again.ask("DELETE", f"/v1/bundles/{record['id']}").document["code"] == "no-such-bundle"
    again.kill()
    (again.home / "state/bundles.json").write_text("{")
    last = start()
    assert last.ask("GET", "/v1/bundles").document == {"bundles": []}
    assert (last.home / "state/bundles.json.damaged").exists()


def test_the_other_addresses_answer(service: Running, bundle: Path) -> None:
    """GPUs, explain, cache, metrics."""
    key = service.ensure(bundle, MODEL).lines[-1]["key"]
    service.ensure(bundle, MODEL)
    assert service.ask("GET", "/v1/gpus").document["machine"]["os"] == "linux"
    explained = service.ask("GET", f"/v1/explain?bundle={bundle}&model={MODEL}").document
    assert explained["models"][0]["candidates"][0]["cached"] is True
    assert service.ask("GET", "/v1/explain").status == 400
    assert [e["key"] for e in service.ask("GET", "/v1/cache").document["entries"]] == [key]
    assert service.ask("POST", "/v1/cache:verify", {}).document["ok"] is True
    metrics = service.ask("GET", "/metrics").body.decode()
    assert "refit_agent_hits_total 1.0" in metrics
    assert "refit_agent_misses_total 1.0" in metrics
    assert 'refit_agent_refit_seconds_count{phase="refit"} 1.0' in metrics
    engine = service.home / "cache/engines" / key / "model.onnx"
    status = engine.stat()
    engine.chmod(0o600)
    engine.write_bytes(bytes(status.st_size))
    os.utime(engine, ns=(status.st_atime_ns, status.st_mtime_ns))
    verdict = service.ask("POST", "/v1/cache:verify").document
    assert verdict["ok"] is False and verdict["entries"][0]["set_aside"]
    assert service.ensure(bundle, MODEL).lines[-1]["hit"] is False


def test_without_the_extra_it_says_what_to_install(home: Path) -> None:
    """The library works without aiohttp; only this command needs it."""
    code = "import sys; sys.modules['aiohttp'] = None; from refit_agent.cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=Running(home).env)
    assert done.returncode == 8
    assert "refit-agent[service]" in done.stderr
