from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog

# Before the first import of ONNX Runtime, by the bundles: it would report to its maker, and leave an identifier of the
# machine in the developer's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from bundles import make_bundle, shim
from refit_agent import logs, settings
from refit_agent.cli import stop
from settings_files import SettingsFiles

_SCRUBBED = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CACHE_DIRECTORY", "STATE_DIRECTORY", "XDG_CACHE_HOME", "XDG_STATE_HOME")  # fmt: skip
#: Others are set by libraries, PyTorch for example, when they are imported.
_VARIABLES = ("REFIT_AGENT_", "XDG_", "CUDA_", "PYTHON", "PATH", "HOME", "TMPDIR")
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


def pytest_configure() -> None:
    """A shell that starts the tests in the background tells them to ignore SIGINT, and so every command that a test
    interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test that changes what the whole process has fails itself, and not whichever test comes after it."""
    before = _of_the_process()
    # A command that a test calls in-process makes this process one of our programs, whose logs go to standard error.
    logs._wanted, logs._done = None, False
    structlog.reset_defaults()
    settings._said.clear()
    yield
    assert _of_the_process() == before


class _OfTheProcess(NamedTuple):
    """What all tests of a process share."""

    folder: str
    told_to_stop: bool
    handlers: dict[signal.Signals, Any]
    variables: dict[str, str]


def _of_the_process() -> _OfTheProcess:
    handlers = {number: signal.getsignal(number) for number in signal.Signals if number.name in _ENDING}
    variables = {name: text for name, text in os.environ.items() if name.startswith(_VARIABLES)}
    return _OfTheProcess(os.getcwd(), stop.requested(), handlers, variables)


@pytest.fixture(autouse=True)
def home(nothing_left_behind: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache and a state of its own, and nothing of the tester's shell."""
    for name in [*_SCRUBBED, *(n for n in os.environ if n.startswith("REFIT_AGENT_"))]:
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "home"
    monkeypatch.setenv("REFIT_AGENT_HOME", str(root))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return root


@pytest.fixture
def files(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsFiles:
    """Settings files of the test's own, and a machine without any others."""
    return SettingsFiles(tmp_path / "files").use(monkeypatch)


@pytest.fixture(scope="session")
def sound_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nobody changes."""
    return make_bundle(tmp_path_factory.mktemp("sound") / "bundle")


@pytest.fixture
def bundle(sound_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return Path(shutil.copytree(sound_bundle, tmp_path / "bundle"))


@pytest.fixture
def evil_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a package named onnxruntime first on the path, whose import runs the given code."""

    def install(code: str) -> Path:
        folder = shim(tmp_path / "evil", code)
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(str(folder))
        return folder

    return install


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with the given options; skips where that is not allowed."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root on Linux")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)
