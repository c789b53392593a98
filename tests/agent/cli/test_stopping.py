"""Ctrl+C and SIGTERM in the middle of the work: nothing half-done, and the right exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Store
from refit_agent.cli import stop

from .command import Cli

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose provisioning takes long enough to be met in the middle."""
    root = tmp_path_factory.mktemp("large")
    write_demo_bundle(str(root), width=256)
    return root


def _stop(process: subprocess.Popen[str], signum: int, after: str) -> tuple[str, str]:
    """Send the signal when a line with ``after`` has come; gives the two outputs."""
    seen = _read_until(process, after)
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    return out, seen + err


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    seen = ""
    while words not in seen:
        line = process.stderr.readline()
        assert line, f"ended before {words!r}: {seen}"
        seen += line
    return seen


def _assert_clean(cli: Cli) -> None:
    assert cli.leftovers() == []
    assert list((cli.cache / "engines").iterdir()) == []
    for lock in (cli.cache / "locks").iterdir():
        with key_lock(Store(str(cli.cache)), lock.name.removesuffix(".lock"), 0):
            pass  # nobody holds it


@pytest.mark.parametrize("phase", ["starting the worker", "putting the weights in", "writing the engine"])
def test_ctrl_c(cli: Cli, large: Path, phase: str) -> None:
    """At every stage: exit code 130, no temporary folder, no lock, no worker; and the next run succeeds."""
    process = cli.start("provision", large)
    out, err = _stop(process, signal.SIGINT, phase)
    assert (process.returncode, out) == (130, ""), err
    assert err.endswith("Stopped. Nothing half-done was left behind.\n") and "Traceback" not in err
    _assert_clean(cli)
    workers = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("REFIT_AGENT_HOME") == str(cli.home)]  # fmt: skip
    assert [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE] == []
    assert not (cli.home / "state" / "failures").exists(), "a stop is no failure of the engine"


def test_sigterm(cli: Cli, large: Path) -> None:
    """As Ctrl+C, with 143; under --json the document says so."""
    process = cli.start("provision", large, "--json")
    out, _ = _stop(process, signal.SIGTERM, "putting the weights in")
    assert process.returncode == 143
    assert json.loads(out)["error"] | {"message": ""} == {"code": "stopped", "message": "", "hint": "", "facts": {"signal": "SIGTERM"}}  # fmt: skip
    _assert_clean(cli)
    assert cli("provision", large).code == 0


def test_an_impatient_finger(cli: Cli, large: Path) -> None:
    """Ctrl+C again and again does not strike into the clean-up."""
    process = cli.start("provision", large)
    _read_until(process, "writing the engine")
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        time.sleep(0.005)
    process.communicate(timeout=20)
    assert process.returncode == 130
    _assert_clean(cli)


def test_a_worker_that_says_nothing(cli: Cli, large: Path) -> None:
    """Ctrl+C does not depend on the worker's answers: a hanging one is ended, too."""
    process = cli.start("provision", large)
    _read_until(process, "starting the worker")
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - start < 2
    assert not worker.is_running()
    _assert_clean(cli)


@pytest.fixture
def restored_handlers() -> Iterator[None]:
    """Leaves the signals of the test process as they were, and none noted."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    with stop.listening():  # forgets what was heard
        pass
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_handlers")
def test_patience() -> None:
    """A first signal is noted while somebody is patient and raised otherwise; each raises at most once in a while."""
    with stop.listening():
        with stop.patiently():
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested()
        with pytest.raises(stop.Stopped) as stopped:
            stop.check()
        assert stopped.value.signum == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)  # the same impatient finger
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "nothing may strike into the end of the process"


@pytest.mark.usefixtures("restored_handlers")
def test_without_patience() -> None:
    """The first signal raises, and none after it."""
    with stop.listening():
        with pytest.raises(stop.Stopped):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested()


def test_while_waiting_for_another_process(cli: Cli, large: Path) -> None:
    """Whoever only waits is stopped at once, and the lock of the other is not touched."""
    key = cli("explain", large, "--json").document["models"][0]["candidates"][0]["key"]
    store = Store(str(cli.cache))
    store.prepare()
    with key_lock(store, key, 0):
        process = cli.start("path", large, "classifier")
        start = time.monotonic()
        out, err = _stop(process, signal.SIGINT, "another process is making this engine")
        assert (process.returncode, out) == (130, ""), err
        assert time.monotonic() - start < 5
    _assert_clean(cli)


def test_demo_is_stopped_cleanly(cli: Cli) -> None:
    """A demo stopped early leaves a whole bundle or none."""
    process = cli.start("demo")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    left = sorted(p.name for p in (cli.home / "state" / "demo").glob("*"))
    assert left in ([], ["bundle"])
    assert left == [] or cli("verify", cli.home / "state" / "demo" / "bundle").code == 0


def test_an_ignored_signal_stays_ignored(cli: Cli, bundle: Path) -> None:
    """Under nohup the end of the terminal does not stop the work."""
    process = cli.start("provision", bundle, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    _stop(process, signal.SIGHUP, "starting the worker")
    assert process.returncode == 0
