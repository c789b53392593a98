"""The Inno Setup script: compiled by the real compiler, and the Setup program run, both under Wine.

The agent there is a stand-in, a batch file behind the real launcher of `build.py`. Wine's PowerShell does nothing, so
that the scheduled task is not part of this. Needs a folder made by `wine_root.sh`, and root for chroot.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

WINDOWS = Path(__file__).resolve().parents[2] / "packaging" / "windows"
#: Another installer, with events of its own, that includes ours from within its [Code].
EXISTING = r"""
[Setup]
AppId=com.example.tool
AppName=Tool
AppVersion=1
DefaultDirName={localappdata}\Programs\A Tool
PrivilegesRequired=lowest
OutputBaseFilename=tool-setup
[Code]
procedure CurStepChanged(CurStep: TSetupStep);
begin
  Log('the tool''s own step');
end;
procedure InitializeWizard;
begin
  Log('the tool''s own wizard');
end;
#define RefitAgentGrace "1"
#define RefitAgentFolder "agent"
#define RefitAgentBundle "bundle"
#include "refit-agent.inc.iss"
"""
#: Says what it was called with; of provision, what the test put into say.txt, with a pause for every line "PAUSE".
AGENT = r"""@echo off
echo %* >>Z:\job\calls.txt
rem Longer than what was stopped would have gone on.
if "%2"=="register" if exist Z:\job\hang.txt ping -n 8 127.0.0.1 >NUL
if not "%2"=="provision" exit 0
type Z:\job\said1.txt
ping -n 2 127.0.0.1 >NUL
type Z:\job\said2.txt
if exist Z:\job\hang.txt ping -n 5 127.0.0.1 >NUL
if exist Z:\job\hang.txt echo survived >>Z:\job\calls.txt
set /p code=<Z:\job\code.txt
exit %code%
"""


class Wine:
    """A job folder, which is Z:\\job for the programs that run in it."""

    def __init__(self, root: Path, job: Path) -> None:
        self.root, self.job = root, job

    def run(self, *words: str, screen: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a Windows program in the job's folder. Wine's own processes are gone when it returns."""
        inside = "xvfb-run -a wine" if screen else "wine"
        # Mounts of its own, which end with the process.
        script = f"""
            mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --bind "$1" "$0/job"
            shift
            exec chroot "$0" sh -c 'cd /job; {inside} "$@"; code=$?; wineserver -k; wineserver -w; exit $code' sh "$@"
        """
        (self.root / "job").mkdir(exist_ok=True)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/job",
            "WINEPREFIX": "/job/prefix",
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
        }
        command = ["unshare", "--mount", "sh", "-ec", script, str(self.root), str(self.job), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=240)

    @property
    def installed(self) -> Path:
        """The folder of the app, once it is installed."""
        return self.job / "prefix" / "drive_c" / "users" / "root" / "AppData" / "Local" / "Programs" / "A Tool"

    def calls(self) -> list[str]:
        """The command lines that the agent got, without its own path."""
        path = self.job / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split('refit-agent.exe" ')[-1].strip() for line in lines]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    """With the existing installer compiled, as tool-setup.exe."""
    given = os.environ.get("REFIT_AGENT_WINE_ROOT")
    if not given or not (Path(given) / "done").exists():
        pytest.skip("REFIT_AGENT_WINE_ROOT names no folder made by tests/packaging/wine_root.sh")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    stub = importlib.util.find_spec("distlib")
    if stub is None or stub.origin is None:
        pytest.skip("distlib is not installed")
    wine = Wine(Path(given).resolve(), tmp_path_factory.mktemp("wine"))
    agent = wine.job / "agent"
    for folder in (agent / "windows", agent / "python", agent / "lib", wine.job / "bundle"):
        folder.mkdir(parents=True)
    for path in [*WINDOWS.glob("*.ps1"), *WINDOWS.glob("*.psm1")]:
        shutil.copyfile(path, agent / "windows" / path.name)
    for path in WINDOWS.glob("*.iss"):
        shutil.copyfile(path, wine.job / path.name)
    (wine.job / "bundle" / "bundle.json").write_text("{}")
    (agent / "lib" / "of-this-version.txt").write_text("x")
    # The launcher starts what lies at python\python.exe: here a command processor, which runs the batch file.
    shutil.copyfile(wine.root / "usr/lib/i386-linux-gnu/wine/i386-windows/cmd.exe", agent / "python" / "python.exe")
    spec = importlib.util.spec_from_file_location("windows_build", WINDOWS / "build.py")
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(build)
    sys.path[:] = before
    shebang = build._SHEBANG.replace("-B", "/d /c call Z:\\job\\agent.cmd")
    build.write_launcher(agent / "refit-agent.exe", Path(stub.origin).with_name("t32.exe"), shebang, "")
    (wine.job / "agent.cmd").write_text(AGENT.replace("\n", "\r\n"))
    (wine.job / "existing.iss").write_text(EXISTING)
    done = compile_script(wine, "existing.iss")
    assert done.returncode == 0, done.stdout + done.stderr
    yield wine
    shutil.rmtree(wine.job, ignore_errors=True)


def compile_script(wine: Wine, name: str, *defines: str) -> subprocess.CompletedProcess[str]:
    return wine.run(r"Z:\inno\bin\ISCC.exe", "/Q", *defines, name)


def install(wine: Wine, first: str, second: str, code: int, *words: str, hang: bool = False) -> str:
    """Install anew with an agent that says this; gives Setup's log."""
    for name in ("calls.txt", "setup.log", "hang.txt"):
        (wine.job / name).unlink(missing_ok=True)
    (wine.job / "said1.txt").write_text(first)
    (wine.job / "said2.txt").write_text(second)
    (wine.job / "code.txt").write_text(f"{code}\r\n")
    if hang:
        (wine.job / "hang.txt").touch()
    done = wine.run(
        r"Output\tool-setup.exe",
        "/VERYSILENT",
        "/SUPPRESSMSGBOXES",
        "/NORESTART",
        r"/LOG=Z:\job\setup.log",
        *words,
        screen=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (wine.job / "setup.log").read_text("utf-8-sig")


def line(event: str, **fields: object) -> str:
    return json.dumps({"event": event, **fields}) + "\r\n"


def test_the_example_compiles(compiled: Wine) -> None:
    done = compile_script(compiled, "refit-agent.iss", "/DRefitAgentFolder=agent", "/DRefitAgentBundle=bundle")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (compiled.job / "Output" / "photo-1.0.0-setup.exe").read_bytes()[:2] == b"MZ"


def test_the_compiler_notices_a_fault(compiled: Wine) -> None:
    """Otherwise the test above would mean nothing."""
    text = (WINDOWS / "refit-agent.iss").read_text("ascii")
    (compiled.job / "broken.iss").write_text(text + "\n[Code]\nprocedure Broken;\nbegin\n  NoSuchThing(1);\nend;\n")
    done = compile_script(compiled, "broken.iss", "/DRefitAgentFolder=agent", "/DRefitAgentBundle=bundle")
    assert done.returncode != 0
    assert "NoSuchThing" in (done.stdout + done.stderr) or "Unknown identifier" in (done.stdout + done.stderr)


def test_without_a_folder_it_says_what_to_define(compiled: Wine) -> None:
    (compiled.job / "bare.iss").write_text(
        '[Setup]\nAppName=A\nAppVersion=1\nDefaultDirName=A\n#include "refit-agent.inc.iss"\n'
    )
    done = compile_script(compiled, "bare.iss")
    assert done.returncode != 0
    assert "Define RefitAgentFolder" in done.stdout + done.stderr


def test_install_provisions_and_uninstall_takes_everything_away(compiled: Wine) -> None:
    """Files, the calls in their order, the lines of the protocol, the installer's own events, and nothing left."""
    log = install(
        compiled,
        line("start", protocol=1) + line("progress", percent=12.5, eta_s=3.2, text='putting the "weights" in'),
        line("progress", percent=99.0, eta_s=None, text="done") + line("result", ok=True, exit_code=0),
        0,
    )
    assert (compiled.installed / "bundle" / "bundle.json").is_file()
    assert (compiled.installed / "refit-agent" / "windows" / "Register-RefitAgent.ps1").is_file()
    bundle = r'"C:\users\root\AppData\Local\Programs\A Tool\bundle"'
    assert compiled.calls() == [f"provision {bundle} --progress=json --deadline 600", f"register {bundle}"]
    assert '"event": "start"' in log and '"event": "result"' in log
    assert "cannot be read" not in log
    assert "could not be fitted" not in log
    assert log.index('Register-RefitAgent.ps1" -WaitSeconds') < log.index("--progress=json")
    assert "the tool's own step" in log and "the tool's own wizard" in log

    # An upgrade stops what runs, before any file is replaced, and leaves no module of the old version.
    stale = compiled.installed / "refit-agent" / "lib" / "of-an-old-version.txt"
    stale.write_text("x")
    log = install(compiled, "", line("result", ok=True, exit_code=0), 0)
    assert log.index(r"Unregister-RefitAgent.ps1") < log.index("Starting the installation process")
    assert not stale.exists()
    assert (compiled.installed / "refit-agent" / "lib" / "of-this-version.txt").is_file()

    (compiled.job / "calls.txt").unlink()
    uninstaller = r"C:\users\root\AppData\Local\Programs\A Tool\unins000.exe"
    done = compiled.run(
        uninstaller, "/VERYSILENT", "/SUPPRESSMSGBOXES", "/NORESTART", r"/LOG=Z:\job\uninstall.log", screen=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = (compiled.job / "uninstall.log").read_text("utf-8-sig")
    assert compiled.calls() == [f"unregister {bundle}"]
    assert "its service is removed" in said
    # Silent: the cache is other apps' too, and nobody was asked.
    assert "Defaulting to No" in said
    assert not (compiled.installed / "refit-agent").exists()
    assert not (compiled.installed / "bundle").exists()


def test_a_failed_provision_does_not_fail_the_install(compiled: Wine) -> None:
    log = install(compiled, "", line("result", ok=False, exit_code=5), 5)
    assert "could not be fitted to your graphics card now (code 5)" in log
    assert "Installation process succeeded" in log
    assert [c.split()[0] for c in compiled.calls()] == ["provision", "register"]


def test_an_agent_that_hangs_is_ended_with_its_children(compiled: Wine) -> None:
    """The wizard does not wait longer than the deadline and a little, and nothing goes on behind its back."""
    log = install(compiled, line("start", protocol=1), "no JSON\r\n", 0, "/REFITAGENTDEADLINE=1", hang=True)
    assert "Refit Agent: stopped" in log
    assert [c.split()[0] for c in compiled.calls()] == ["provision", "register"]
    assert "--deadline 1" in compiled.calls()[0]


def test_fleets_may_leave_provisioning_out(compiled: Wine) -> None:
    install(compiled, "", "", 0, "/REFITAGENTDEADLINE=0")
    assert [c.split()[0] for c in compiled.calls()] == ["register"]
