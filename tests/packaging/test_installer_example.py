"""The example installer, run: what it says, what it leaves, and how it goes on after being killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from several_models import WaitingRuntime, several_models

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script")
SCRIPT = Path(__file__).parents[2] / "packaging/installer/install.sh"
SHELLS = [shell for shell in (["sh"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]


def _until(condition: Callable[[], Any], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


class Machine:
    """A user's machine with a payload to install: an app, a bundle of two models, and an agent that is this one."""

    def __init__(self, folder: Path) -> None:
        self.payload, self.prefix, self.home = folder / "payload", folder / "installed here", folder / "home"
        (self.payload / "app").mkdir(parents=True)
        (self.payload / "app/photo").write_text("the app")
        self.bundle = several_models(self.payload / "bundle", 2)
        self.agent = self.payload / "refit-agent/bin/refit-agent"
        self.agent.parent.mkdir(parents=True)
        self.run_first("")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT_", "CUDA_"))}
        self.env |= {"REFIT_AGENT_HOME": str(self.home), "HOME": str(folder), "TMPDIR": str(folder)}

    def run_first(self, commands: str) -> None:
        """Have the installed agent run these shell commands each time before it does its work."""
        self.agent.write_text(f'#!/bin/sh\n{commands}\nexec "{sys.executable}" -m refit_agent "$@"\n')
        self.agent.chmod(0o755)

    def command(self, *arguments: str, shell: tuple[str, ...] = ("sh",)) -> list[str]:
        prefix = ["--prefix", str(self.prefix)]
        payload = [] if "--uninstall" in arguments else ["--payload", str(self.payload)]
        return [*shell, str(SCRIPT), *prefix, *payload, *arguments]

    def __call__(self, *arguments: str, shell: tuple[str, ...] = ("sh",)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, shell=shell), env=self.env, capture_output=True, text=True, timeout=120
        )

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    def waiting(self, folder: Path, waits_from: int) -> WaitingRuntime:
        runtime = WaitingRuntime(folder, waits_from)
        self.env["PYTHONPATH"] = str(runtime.folder)
        return runtime

    def engines(self) -> int:
        return len([*(self.home / "cache/engines").glob("*")])

    def leftovers(self) -> list[str]:
        """What an installation does not leave in its folder, or in that for temporary files."""
        kept = ("app", "bundle", "refit-agent", "install.log")
        strange = [p.name for p in self.prefix.iterdir() if p.name not in kept]
        return strange + [p.name for p in self.home.parent.iterdir() if p.name.startswith("tmp.")]

    def processes(self) -> list[psutil.Process]:
        """The agent's, which have this home in their environment."""
        home = str(self.home)
        found = psutil.process_iter(["environ", "cmdline"])
        return [p for p in found if (p.info["environ"] or {}).get("REFIT_AGENT_HOME") == home]

    def agents(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "refit_agent" in p.info["cmdline"]]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def percents(out: str) -> list[int]:
    return [int(number) for number in re.findall(r"Preparing the models: +(\d+) %", out)]


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_install_again_and_remove(machine: Machine, shell: list[str]) -> None:
    """The files, the engines, progress that never goes back; the second time at once; at the end only the cache."""
    first = machine(shell=(*shell,))
    assert (first.returncode, first.stderr) == (0, "")
    assert machine.engines() == 2 and "The models are ready." in first.stdout
    shown = percents(first.stdout)
    assert len(shown) > 5 and shown == sorted(shown) and shown[-1] == 100 and "\r" not in first.stdout
    assert sorted(p.name for p in machine.prefix.iterdir()) == ["app", "bundle", "install.log", "refit-agent"]
    assert (machine.prefix / "install.log").read_text() == ""

    again = machine(shell=(*shell,))
    assert again.returncode == 0 and "The models are ready." in again.stdout and len(percents(again.stdout)) == 1
    assert machine.leftovers() == []

    (machine.prefix / "install.pipe").touch()
    removed = machine("--uninstall", shell=(*shell,))
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "Removed.\n", "")
    assert not machine.prefix.exists() and machine.engines() == 2


def test_purge(machine: Machine) -> None:
    """The cache goes as well; a file of somebody else's stays."""
    assert machine().returncode == 0
    (machine.prefix / "mine").write_text("x")
    removed = machine("--uninstall", "--purge")
    assert removed.returncode == 0 and "there are other files" in removed.stdout
    assert [p.name for p in machine.prefix.iterdir()] == ["mine"] and machine.engines() == 0


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_purge_after_the_agent_is_gone(machine: Machine, shell: list[str]) -> None:
    """What stays is named, with what to do; once it is removed there is nothing more to say."""
    assert machine().returncode == 0 and machine("--uninstall").stderr == ""
    late = machine("--uninstall", "--purge", shell=(*shell,))
    assert (late.returncode, late.stdout) == (0, "Removed.\n") and machine.engines() == 2
    *places, advice = late.stderr.splitlines()
    assert [line.partition(": ")[2] for line in places] == [str(machine.home / "cache"), str(machine.home / "state")]
    assert advice.startswith("Delete it") and "--uninstall --purge" in advice
    for line in places:
        shutil.rmtree(line.partition(": ")[2])
    assert machine("--uninstall", "--purge", shell=(*shell,)).stderr == ""


def test_purge_after_the_agent_is_gone_from_the_user_s_own_folders(machine: Machine, tmp_path: Path) -> None:
    """Where the user's variables have moved them."""
    del machine.env["REFIT_AGENT_HOME"]
    machine.env |= {"XDG_CACHE_HOME": str(tmp_path / "my cache"), "HOME": str(tmp_path)}
    machine.env.pop("XDG_STATE_HOME", None)
    (tmp_path / "my cache/refit-agent").mkdir(parents=True)
    said = machine("--uninstall", "--purge").stderr
    assert f": {tmp_path}/my cache/refit-agent\n" in said and ".local/state" not in said


@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="what it says to root")
def test_root_installs_for_all_only_where_all_can_look(machine: Machine, tmp_path: Path) -> None:
    """Without --prefix it is below root's own home, which nobody else may enter."""
    del machine.env["REFIT_AGENT_HOME"]
    machine.env.pop("XDG_DATA_HOME", None)
    for_all = machine()
    assert "Installed for all;" in for_all.stdout and for_all.stdout.endswith(f"Installed: {machine.prefix}\n")
    command = ["sh", str(SCRIPT), "--payload", str(machine.payload)]
    own = subprocess.run(command, env=machine.env, capture_output=True, text=True, check=True).stdout
    place = tmp_path / ".local/share/example-photo"
    assert (place / "app/photo").is_file() and own.endswith(f"Installed: {place}\n")
    assert "Installed for all" not in own and "at its first launch" in own and "The models are ready" not in own


def test_an_update_replaces_all_of_it(machine: Machine) -> None:
    """Nothing of the old version stays between the new one's files."""
    assert machine().returncode == 0
    (machine.prefix / "app/old-plugin").write_text("x")
    (machine.payload / "app/photo").write_text("the new app")
    assert machine().returncode == 0
    assert [(p.name, p.read_text()) for p in (machine.prefix / "app").iterdir()] == [("photo", "the new app")]


def test_damaged_on_the_way(machine: Machine) -> None:
    """A copy of the bundle that went wrong is made again, once."""
    bundle = machine.prefix / "bundle"
    machine.run_first(
        f'if [ ! -e "{machine.home}.once" ]; then : >"{machine.home}.once"; : >"{bundle}/m2/models/mlp.onnx"; fi'
    )
    ran = machine()
    assert ran.returncode == 0 and "The models are ready." in ran.stdout and machine.engines() == 2


def test_a_damaged_payload(machine: Machine) -> None:
    """There is no sense in such an installation; the reason is said in one line."""
    (machine.bundle / "m2/models/mlp.onnx").write_bytes(b"x")
    ran = machine()
    assert ran.returncode == 3 and machine.engines() == 1
    assert re.fullmatch(r"The app's files are damaged: .*mlp\.onnx.*\n", ran.stderr)


def test_the_engines_cannot_be_made(machine: Machine, tmp_path: Path) -> None:
    """The app is installed all the same, and tries it itself; the reason is said, whatever stands in it."""
    package = tmp_path / "broken/onnxruntime"
    package.mkdir(parents=True)
    import onnxruntime

    (package / "__init__.py").write_text(f"__version__ = {onnxruntime.__version__!r}\nimport os\nos._exit(3)")
    machine.env["PYTHONPATH"] = str(package.parent)
    ran = machine()
    assert ran.returncode == 0 and machine.engines() == 0
    assert "exit code 3" in ran.stderr and "at its first launch" in ran.stdout and "Installed: " in ran.stdout
    assert "error [worker-crashed]" not in ran.stderr


def test_nothing_fits(machine: Machine) -> None:
    """That is no fault of the installation, and the user is told."""
    document = json.loads((machine.bundle / "bundle.json").read_text())
    for model in document["models"]:
        (engine,) = model["engines"]
        engine |= {"runtime": "tensorrt", "os": ["linux"], "compute_capabilities": ["9.9"], "built_with": "10.1.0"}
    (machine.bundle / "bundle.json").write_text(json.dumps(document))
    ran = machine()
    assert ran.returncode == 0 and "This computer cannot run the models: The only engine of model" in ran.stderr


def test_the_time_is_over(machine: Machine, tmp_path: Path) -> None:
    """The installation ends, the models are left to the app; what is ready is used by the next run."""
    waiting = machine.waiting(tmp_path / "waiting", waits_from=2)
    ran = machine("--deadline", "4")
    assert ran.returncode == 0 and machine.engines() == 1 and "at its first launch" in ran.stdout
    waiting.go()
    machine.env.pop("PYTHONPATH")
    again = machine()
    assert again.returncode == 0 and machine.engines() == 2


def test_the_disk_is_full(machine: Machine, mounted: Callable[[str], Path]) -> None:
    """It is said once, and the app is installed."""
    machine.env["REFIT_AGENT_HOME"] = str(mounted("size=64k"))
    ran = machine()
    assert ran.returncode == 0 and "at its first launch" in ran.stdout
    assert ran.stderr.startswith("The disk or the cache: ") and ran.stderr.count("\n") == 1


def test_killed_and_run_again(machine: Machine, tmp_path: Path) -> None:
    """SIGKILL of the installer: the agent notices and ends; the next run goes on, and leaves no temporary folder."""
    waiting = machine.waiting(tmp_path / "waiting", waits_from=2)
    process = machine.start()
    _until(lambda: waiting.imports() == 2)
    process.kill()
    process.communicate()
    _until(lambda: machine.agents() == [])
    assert machine.engines() == 1
    waiting.go()
    again = machine()
    assert again.returncode == 0 and machine.engines() == 2 and machine.leftovers() == []
    assert [*(machine.home / "cache/tmp").iterdir()] == []


def test_the_agent_is_killed(machine: Machine, tmp_path: Path) -> None:
    """The installer tries again by itself, and what was ready stays."""
    waiting = machine.waiting(tmp_path / "waiting", waits_from=2)
    process = machine.start()
    _until(lambda: waiting.imports() == 2)
    (agent,) = (p for p in machine.agents() if "provision" in p.info["cmdline"])
    waiting.go()
    agent.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "The models are ready." in out, err
    assert machine.engines() == 2 and machine.leftovers() == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped(machine: Machine, tmp_path: Path, signum: int, code: int) -> None:
    """The signal is passed on, the agent ends cleanly, and the next run goes on."""
    waiting = machine.waiting(tmp_path / "waiting", waits_from=2)
    process = machine.start()
    _until(lambda: waiting.imports() == 2)
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code and out.endswith("Stopped. Run it again, it goes on from there.\n")
    assert machine.processes() == [] and machine.engines() == 1
    assert [*(machine.home / "cache/tmp").iterdir()] == []
    waiting.go()
    assert machine().returncode == 0 and machine.engines() == 2


@pytest.mark.skipif(not shutil.which("script"), reason="needs script (util-linux) for a terminal")
def test_on_a_terminal(machine: Machine, tmp_path: Path) -> None:
    """One line that is drawn again and again, and Ctrl+C ends it."""
    quoted = " ".join(f"'{part}'" for part in machine.command())
    waiting = machine.waiting(tmp_path / "waiting", waits_from=2)
    process = subprocess.Popen(
        ["script", "-qec", quoted, "/dev/null"],
        env=machine.env | {"SHELL": "/bin/sh"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    _until(lambda: waiting.imports() == 2)
    assert process.stdin is not None
    process.stdin.write(b"\x03")
    process.stdin.flush()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert b"\r\x1b[KPreparing the models:  50 %" in out and b"Stopped. Run it again" in out
    assert machine.engines() == 1


@pytest.mark.parametrize(
    "arguments", [["--frobnicate"], ["--prefix"], ["--deadline", "soon"], ["--deadline", ""], ["--deadline", "08"]]
)
def test_usage(machine: Machine, arguments: list[str]) -> None:
    """Exit code 2, what it takes, and nothing done."""
    ran = machine(*arguments)
    assert ran.returncode == 2 and "install.sh --uninstall" in ran.stderr
    assert not machine.prefix.exists()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_payload_is_beside_the_script_wherever_cd_looks(machine: Machine, shell: list[str]) -> None:
    """With CDPATH, cd prints where it went, or goes to a folder of the same name somewhere else."""
    shutil.copyfile(SCRIPT, machine.payload / "install.sh")
    (machine.home / "payload").mkdir(parents=True)
    for places in (machine.payload.parent, machine.home):
        ran = subprocess.run(
            [*shell, "payload/install.sh", "--prefix", str(machine.prefix), "--deadline", "0"],
            cwd=machine.payload.parent, env=machine.env | {"CDPATH": str(places)}, capture_output=True, text=True,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, "") and "Installed: " in ran.stdout
        assert (machine.prefix / "app/photo").is_file()
        shutil.rmtree(machine.prefix)


def test_nothing_to_copy(machine: Machine) -> None:
    """A payload that lacks a part."""
    shutil.rmtree(machine.payload / "app")
    ran = machine()
    assert ran.returncode == 1 and "Could not be copied: app" in ran.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck() -> None:
    """Clean, as POSIX sh."""
    ran = subprocess.run(["shellcheck", "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")
