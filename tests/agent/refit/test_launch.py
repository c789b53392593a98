from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from bundles import REAL
from jobs import job_for
from refit_agent.errors import (
    BundleFileMissing,
    CacheUnwritable,
    Cancelled,
    PlanInvalid,
    RefitAgentError,
    RefitError,
    WorkerCrashed,
    WorkerTimeout,
)
from refit_agent.refit.launch import run_worker
from refit_agent.refit.messages import Done, Job, Phase

Install = Callable[[str], Path]


@pytest.fixture
def job(sound_bundle: Path, tmp_path: Path) -> Job:
    return job_for(sound_bundle, tmp_path / "staging")


def run(job: Job, tmp_path: Path, deadline_s: float = 30.0, **more: Any) -> Done:
    return run_worker(job, str(tmp_path / "log"), deadline_s, more.pop("on_phase", lambda _: None), **more)


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie that its new parent has not reaped does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(path: Path) -> bool:
    """Whether all processes whose numbers are in the file end within a moment."""
    pids = [int(line) for line in path.read_text().split()]
    assert pids
    ends = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < ends:
        time.sleep(0.01)
    return not any(map(alive, pids))


def _tells_pids(path: Path) -> str:
    return f"import subprocess\nchild = subprocess.Popen(['sleep', '300'])\nopen({str(path)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"


def test_a_worker_makes_the_engine_and_reports_its_phases(job: Job, tmp_path: Path) -> None:
    """All files are there with the sizes that it tells, and nobody is left over."""
    phases: list[Phase] = []
    done = run(job, tmp_path, on_phase=phases.append)
    assert done.check == "golden"
    assert done.golden_error is not None
    assert done.golden_error < 1e-5
    assert {f.name: f.size for f in done.files} == {f.name: f.stat().st_size for f in Path(job.staging).iterdir()}
    names = list(dict.fromkeys(p.phase for p in phases))
    assert names == ["start", "unpack", "open", "map", "refit", "verify", "write", "check"]
    assert psutil.Process().children() == []


def test_the_worker_s_own_errors_arrive_as_they_were_raised(job: Job, tmp_path: Path) -> None:
    """Class and facts cross the pipe."""
    engine = msgspec.structs.replace(job.engine, plan_sha256="0" * 64)
    with pytest.raises(PlanInvalid, match="unpacked, its SHA-256 is not 0000"):
        run(msgspec.structs.replace(job, engine=engine), tmp_path)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("print('about to fall', file=sys.stderr, flush=True); ctypes.string_at(0)", "signal SIGSEGV"),
        ("print('about to fall', flush=True); os.abort()", "signal SIGABRT"),
        ("print('about to fall', flush=True); os.kill(os.getpid(), 9)", "signal SIGKILL"),
        ("os.write(1, b'about to fall'); os._exit(0)", "exit code 0"),
        ("os.write(2, b'about to fall'); sys.exit(7)", "exit code 7"),
    ],
)
def test_a_worker_that_dies_is_reported_with_its_last_words(
    job: Job, tmp_path: Path, evil_runtime: Install, code: str, how: str
) -> None:
    """How it ended, in which phase, and what it printed, on standard output too."""
    evil_runtime(code)
    with pytest.raises(WorkerCrashed) as info:
        run(job, tmp_path)
    assert info.value.facts["how"] == how
    assert info.value.facts["phase"] == "start"
    assert "about to fall" in str(info.value)


def test_of_a_long_log_the_end_is_told(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """Twenty lines, whatever bytes are in them."""
    evil_runtime("os.write(2, b'\\xff\\n' * 100_000 + b'the end'); os.abort()")
    with pytest.raises(WorkerCrashed) as info:
        run(job, tmp_path)
    lines = str(info.value.facts["log"]).splitlines()
    assert len(lines) == 20
    assert lines[-1] == "the end"


def test_prints_of_a_native_library_do_not_disturb(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """Standard output of the worker is its log."""
    from bundles import REAL

    evil_runtime("print('garbage'); os.system('echo more garbage'); os.write(1, b'{]\\n' * 100_000)\n" + REAL)
    assert run(job, tmp_path).check == "golden"
    assert "more garbage" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("nonsense", ["os.write(fd, b'no event\\n')", "os.close(fd)", "os.write(fd, b'x' * 3_000_000)"])
@pytest.mark.timeout(60)
def test_a_worker_that_breaks_the_protocol_and_goes_on_is_stopped(
    job: Job, tmp_path: Path, evil_runtime: Install, nonsense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller does not wait for it beyond a moment, let alone beyond the deadline."""
    monkeypatch.setattr("refit_agent.refit.worker_process.LAST_BREATH_S", 0.3)
    pids = tmp_path / "pids"
    find = "fd = next(f for f in range(3, 30) if os.path.realpath(f'/proc/self/fd/{f}').startswith('/proc') and 'pipe' in os.readlink(f'/proc/self/fd/{f}') and os.access(f'/proc/self/fd/{f}', os.W_OK) and (__import__('fcntl').fcntl(f, 3) & 3) == 1)\n"
    evil_runtime(_tells_pids(pids) + find + nonsense + "\ntime.sleep(300)")
    start = time.monotonic()
    with pytest.raises(WorkerCrashed, match=r"output that makes no sense \(it was stopped\)"):
        run(job, tmp_path, 30)
    assert time.monotonic() - start < 10
    assert gone(pids)


@pytest.mark.parametrize(
    "hang", ["time.sleep(300)", "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(300)"]
)
def test_a_worker_that_hangs_is_stopped_at_the_deadline_with_its_children(
    job: Job, tmp_path: Path, evil_runtime: Install, hang: str
) -> None:
    """The error says how long, in which phase, and what it printed."""
    pids = tmp_path / "pids"
    evil_runtime(_tells_pids(pids) + "print('hanging now', flush=True)\n" + hang)
    start = time.monotonic()
    with pytest.raises(WorkerTimeout) as info:
        run(job, tmp_path, 1.0)
    assert 1.0 <= time.monotonic() - start < 5
    assert info.value.facts["seconds"] == 1.0
    assert "start" in str(info.value)
    assert "hanging now" in str(info.value)
    assert "--deadline" in info.value.hint
    assert gone(pids)


def test_children_of_a_worker_that_died_are_stopped_too(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """A crashed runtime does not leave its helpers behind."""
    pids = tmp_path / "pids"
    evil_runtime(_tells_pids(pids) + "os.abort()")
    with pytest.raises(WorkerCrashed):
        run(job, tmp_path)
    assert gone(pids)


@pytest.mark.timeout(60)
def test_a_worker_that_never_reads_a_large_job_is_stopped_at_the_deadline(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job larger than a pipe holds does not hold the caller."""
    early = tmp_path / "early"
    early.mkdir()
    (early / "sitecustomize.py").write_text("import time; time.sleep(300)")
    monkeypatch.setenv("PYTHONPATH", str(early))
    engine = msgspec.structs.replace(job.engine, weight_map={"x" * 1_000_000: {}})
    with pytest.raises(WorkerTimeout):
        run(msgspec.structs.replace(job, engine=engine), tmp_path, 0.5)
    assert psutil.Process().children() == []


def test_cancelling_stops_the_worker_at_once(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """The error is no failure of the engine's, and says what to do."""
    pids = tmp_path / "pids"
    evil_runtime(_tells_pids(pids) + "time.sleep(300)")
    start = time.monotonic()
    with pytest.raises(Cancelled):
        run(job, tmp_path, cancelled=pids.exists)
    assert time.monotonic() - start < 5
    assert gone(pids)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_callback_stops_the_worker(
    job: Job, tmp_path: Path, evil_runtime: Install, error: type[BaseException]
) -> None:
    """It goes to the caller, and nobody is left over."""
    evil_runtime("time.sleep(300)")

    def fail(_: Phase) -> None:
        raise error

    with pytest.raises(error):
        run(job, tmp_path, on_phase=fail)
    assert psutil.Process().children() == []


def test_a_python_error_in_a_runtime_arrives_in_words(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """The traceback is in the log."""
    evil_runtime("raise LookupError('what is this')")
    with pytest.raises(RefitError, match="LookupError: what is this") as info:
        run(job, tmp_path)
    assert info.value.code == RefitError.code
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_runtime_that_cannot_be_imported_is_called_missing(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """The hint says why the import failed."""
    evil_runtime("raise ImportError('libsomething.so.1: cannot open')")
    with pytest.raises(RefitAgentError, match="not installed") as info:
        run(job, tmp_path)
    assert info.value.code == "runtime-missing"
    assert "libsomething.so.1" in info.value.hint


def test_running_out_of_memory_is_said_in_words(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """Python notices it where there is a limit."""
    evil_runtime("import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)); bytearray(4 << 30)")
    with pytest.raises(RefitError, match="ran out of memory"):
        run(job, tmp_path)


def test_a_file_that_vanished_before_it_was_opened_is_missing(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """As it would be if it had been missing from the beginning."""
    vanish = "lambda *_, **__: open('/opt/app/bundle/model.onnx')"
    code = f"from refit_agent.refit import inputs\ninputs.OnnxWeights = {vanish}\n"
    evil_runtime(code + REAL)
    with pytest.raises(BundleFileMissing, match=r"/opt/app/bundle/model\.onnx"):
        run(job, tmp_path)


def test_a_cache_that_is_deleted_meanwhile_is_an_error_of_the_cache(
    job: Job, tmp_path: Path, evil_runtime: Install
) -> None:
    """The log lies in it."""
    evil_runtime(f"os.unlink({str(tmp_path / 'log')!r}); time.sleep(300)")
    with pytest.raises(CacheUnwritable):
        run(job, tmp_path)


def test_a_worker_that_reports_without_a_pause_fills_no_memory(
    job: Job, tmp_path: Path, evil_runtime: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow listener gets fewer steps, and all events that count."""
    flood = """
    from refit_agent.refit.messages import Phase, encoder
    frame = sys._getframe()
    while frame.f_code.co_name != "_perform":
        frame = frame.f_back
    for n in range(3000):
        os.write(frame.f_locals["out"], encoder.encode(Phase(phase="flood", done=n)) + b"\\n")
    raise LookupError("the end")
    """
    evil_runtime(textwrap.dedent(flood))
    seen: list[int] = []

    def listen(event: Phase) -> None:
        if event.phase == "flood":
            seen.append(event.done)
            time.sleep(0.01)

    with pytest.raises(RefitError, match="the end"):
        run(job, tmp_path, on_phase=listen)
    assert seen == sorted(seen) and 0 < len(seen) < 500


def test_a_worker_that_cannot_be_started_is_an_error_of_ours(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a log that cannot be written."""
    with pytest.raises(CacheUnwritable, match="none/log"):
        run(job, tmp_path / "none")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(RefitError, match="could not be started"):
        run(job, tmp_path)


def test_the_worker_searches_the_parent_s_path_also_with_colons_in_it(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name may hold what separates folders elsewhere."""
    from bundles import shim

    monkeypatch.syspath_prepend(str(shim(tmp_path / "a:b", "os.write(2, b'from the colon'); os.abort()")))
    with pytest.raises(WorkerCrashed, match="from the colon"):
        run(job, tmp_path)


def test_the_worker_does_not_look_for_modules_where_the_app_was_started(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file planted in a downloads folder is not imported."""
    (tmp_path / "onnxruntime.py").write_text("import os; os.abort()")
    monkeypatch.chdir(tmp_path)
    assert run(job, tmp_path).check == "golden"


def _open_things() -> set[tuple[str, str]]:
    """Each descriptor of this process, with what it is of; pipes and sockets have names of their own there."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def test_runs_leave_no_threads_and_no_descriptors(job: Job, tmp_path: Path, evil_runtime: Install) -> None:
    """A service does this for months."""
    evil_runtime("os._exit(0)")
    before = _open_things()
    for _ in range(5):
        with pytest.raises(WorkerCrashed):
            run(job, tmp_path)
    ends = time.monotonic() + 5
    while any(t.name == "worker-events" for t in threading.enumerate()) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not any(t.name == "worker-events" for t in threading.enumerate())
    assert _open_things() <= before, "what others left open may go meanwhile"
