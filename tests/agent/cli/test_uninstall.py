"""`refit-agent uninstall`: all that is ours goes, nothing else does, and it can be said twice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from refit_agent import ServiceClient, paths
from refit_agent.cache.locks import key_lock
from refit_agent.cache.store import Store
from refit_agent.cli import service_stop, uninstall_command
from refit_agent.cli.removal import Removal
from refit_agent.client.messages import JobStatus
from refit_agent.errors import EnginesInUse, RefitAgentError, ServiceNotStopped
from settings_files import SettingsFiles

from .command import Cli

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it is tried with Unix sockets and locks")
KEY = "0123456789abcdef" * 4


@pytest.fixture
def used(cli: Cli, bundle: Path, tmp_path: Path) -> Cli:
    """A home in which everything was used once: an engine, a failure's note, the demo, and the user's settings."""
    cli.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    (tmp_path / "config/refit-agent").mkdir(parents=True)
    (tmp_path / "config/refit-agent/settings.toml").write_text("warm = false\n")
    assert cli("provision", bundle).code == 0
    assert cli("demo", "--dir", cli.home / "state/demo/bundle").code == 0
    for name in ("warm.json", "bundles.json", "checked.json", "checked.json.0a1b2c3d.tmp"):
        (cli.home / "state" / name).write_text("{}")
    (cli.home / "state/failures").mkdir(exist_ok=True)
    for end in (".json", ".json.0a1b2c3d.tmp", ".0a1b2c3d.tmp"):
        (cli.home / f"state/failures/{KEY}{end}").write_text("{}")
    (cli.cache / f"tmp/{KEY}.4194304-0a1b2c3d").mkdir()
    (cli.cache / f"tmp/{KEY}.4194304-0a1b2c3d/model.plan").write_text("half")
    (cli.cache / "partial").mkdir()
    (cli.cache / f"partial/{KEY}").write_text("half")
    (cli.cache / f"quarantine/{KEY}.0a1b2c3d").mkdir()
    return cli


@pytest.fixture
def serving(used: Cli) -> Iterator[Callable[[], int]]:
    """Starts a service in that home; gives its process's number."""
    started: list[subprocess.Popen[str]] = []

    def start() -> int:
        started.append(used.start("serve"))
        client = ServiceClient(str(used.home / "run/agent.sock"))
        ends = time.monotonic() + 30
        while True:
            try:
                return client.status().pid
            except RefitAgentError:
                assert time.monotonic() < ends and started[-1].poll() is None
                time.sleep(0.05)

    yield start
    for process in started:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def an_app_with_an_engine(cli: Cli, bundle: Path) -> Iterator[None]:
    """Another process that holds an engine of the bundle until the block ends."""
    code = "import sys; from refit_agent import ensure_engine; e = ensure_engine(*sys.argv[1:]); print(); input()"
    command = [sys.executable, "-c", code, str(bundle), "classifier"]
    with subprocess.Popen(command, env=cli.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == "\n"
        yield
        app.communicate("\n")


def use_the_usual_places(cli: Cli, root: Path) -> None:
    """Cache and state where they are without REFIT_AGENT_HOME, below ``root``."""
    del cli.env["REFIT_AGENT_HOME"]
    places = {f"XDG_{n}_HOME": str(root / n.lower()) for n in ("CACHE", "STATE")}
    cli.env |= {**places, "HOME": str(root), "XDG_RUNTIME_DIR": str(root), "PATH": str(root)}


def everything(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*"))


def test_nothing_is_left_after_a_purge(used: Cli, serving: Callable[[], int], bundle: Path, tmp_path: Path) -> None:
    """Service, registered bundles, state, logs, cache, and the user's settings; the second time there is nothing."""
    pid = serving()
    assert used("register", bundle).code == 0
    ran = used("uninstall", "--purge", "--yes", "--json")
    assert ran.code == 0 and ran.err == "" and ran.document["warnings"] == []
    assert ran.document["left"] == ran.document["foreign"] == []
    assert ran.document["service"] == {"pid": pid, "units": [], "enabled_for_all": []}
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert everything(used.home) == [] and everything(tmp_path / "config") == []
    assert ran.document["freed_bytes"] > 10_000
    again = used("uninstall", "--purge", "--yes")
    assert again.code == 0 and "there was nothing to remove" in again.out and everything(used.home) == []
    assert bundle.exists() and used("provision", bundle).code == 0


def test_without_purge_engines_and_settings_stay(used: Cli, bundle: Path, tmp_path: Path) -> None:
    """Whoever installs it again has them at once."""
    before = everything(used.cache)
    ran = used("uninstall", "--yes")
    assert ran.code == 0 and f"left: the cache, {used.cache} (--purge removes it)" in ran.out
    assert "apt" in ran.out
    assert everything(used.cache) == before and not (used.home / "state").exists()
    assert (tmp_path / "config/refit-agent/settings.toml").exists()


def test_a_broken_settings_file_keeps_no_service_from_being_stopped(
    used: Cli, serving: Callable[[], int], tmp_path: Path
) -> None:
    """It says what it does, whatever the file says of its limits."""
    pid = serving()
    (tmp_path / "config/refit-agent/settings.toml").write_text("cache_quota = 20\n")
    ran = used("uninstall", "--yes", "--json")
    assert ran.code == 0 and ran.document["service"]["pid"] == pid


@pytest.mark.parametrize("text", ["cache_dir = '/big'\nwarm = \n", 'cache_dir = "relative"\n', "\0", "warm = \n"])
def test_a_broken_settings_file_of_the_user_keeps_nobody(
    files: SettingsFiles, cli: Cli, bundle: Path, tmp_path: Path, text: str
) -> None:
    """It is one of the things that go, unless it may say where the cache is: nothing else knows."""
    use_the_usual_places(cli, tmp_path)
    assert cli("provision", bundle).code == 0 and (tmp_path / "cache/refit-agent/engines").is_dir()
    files.user(text)
    assert cli("provision", bundle).code == 2
    # An administrator's word about the cache is not to be passed over.
    files.policy("cache_dir = ")
    assert cli("uninstall", "--purge", "--yes").code == 2 and (tmp_path / "cache/refit-agent/engines").is_dir()
    files.policy_path.unlink()
    ran = cli("uninstall", "--purge", "--yes", "--json")
    kept = "cache_dir" in text
    assert ran.code == (7 if kept else 0)
    assert [e["path"] for e in ran.document["left"]] == ([str(files.user_path)] if kept else [])
    assert everything(tmp_path / "cache") == everything(tmp_path / "state") == []
    assert files.user_path.exists() == kept
    (warning,) = ran.document["warnings"]
    assert str(files.user_path) in warning and f"taken to be {tmp_path}/cache/refit-agent" in warning
    files.user_folder.mkdir(exist_ok=True)
    files.user(text)
    assert "warning: " in cli("uninstall", "--yes").out
    assert files.user_path.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["a FIFO", "a folder", "endless", "a comment"])
def test_a_settings_file_that_cannot_be_read_may_name_a_cache(
    files: SettingsFiles, cli: Cli, bundle: Path, tmp_path: Path, what: str
) -> None:
    """It stays and is named, the rest goes; and nobody waits for one who writes to the FIFO."""
    use_the_usual_places(cli, tmp_path)
    assert cli("provision", bundle).code == 0
    if what == "a FIFO":
        os.mkfifo(files.user_path)
    elif what == "a folder":
        files.user_path.mkdir()
    else:  # the word stands behind all that is read
        files.user("#" * (1 << 20) + ("\ncache_dir" if what == "endless" else ""))
    ran = cli("uninstall", "--purge", "--yes", "--json")
    left = [entry["path"] for entry in ran.document["left"]]
    assert (ran.code, left) == ((0, []) if what == "a comment" else (7, [str(files.user_path)]))
    assert everything(tmp_path / "cache") == everything(tmp_path / "state") == []
    assert files.user_path.exists() == (what != "a comment")


def test_the_settings_file_is_judged_before_anything_is_done(used: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong with it must not be found out with half of it removed."""
    monkeypatch.setenv("REFIT_AGENT_HOME", str(used.home))
    monkeypatch.setattr(uninstall_command, "_home", lambda: (paths.home(), "broken"))

    def fail(path: str) -> bool:
        raise RuntimeError(path)

    monkeypatch.setattr(uninstall_command, "_may_name_a_cache", fail)
    monkeypatch.setattr(uninstall_command, "stop_service", lambda: pytest.fail("it was stopped"))
    before = everything(used.home)
    with pytest.raises(RuntimeError):
        uninstall_command.uninstall.callback(purge=True, force=True, yes=True, as_json=True)
    assert everything(used.home) == before


def test_what_is_not_ours_stays(used: Cli) -> None:
    """In a home that is somebody's own folder, with names like ours and links out of it."""
    theirs = [
        "notes.txt", "cache/tmp/mine.txt", "cache/engines/cars.txt", "cache/locks/door.lock", "cache/photos/1.jpg",
        "state/logs/app.log", "state/machine.json.bak", "state/demo/film.mp4", "state/own/x", "run/other.sock",
    ]  # fmt: skip
    outside = used.home.parent / "outside"
    for name in (*(used.home / t for t in theirs), outside / "entry.json", outside / f"{KEY}.json"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text("theirs")
    (used.cache / "engines" / KEY).symlink_to(outside)
    shutil.rmtree(used.home / "state/failures")
    (used.home / "state/failures").symlink_to(outside)
    shutil.rmtree(used.cache / "quarantine")
    (used.cache / "quarantine").symlink_to(outside)
    ran = used("uninstall", "--purge", "--yes", "--json")
    for name in theirs:
        assert (used.home / name).read_text() == "theirs", name
    assert everything(outside) == sorted(["entry.json", f"{KEY}.json"])
    assert {entry["path"] for entry in ran.document["left"]} == {
        str(used.home / "state/failures"), str(used.cache / "quarantine")
    }  # fmt: skip
    assert ran.code == 7
    assert any("photos" in entry["reason"] for entry in ran.document["foreign"])
    kept = {
        str(Path(p)) for p in everything(used.home) if (used.home / p).is_file() and not (used.home / p).is_symlink()
    }
    assert kept <= {*theirs, *(f"{d}/{n}" for d in ("state/failures", "cache/quarantine") for n in os.listdir(outside)), "cache/CACHEDIR.TAG"}  # fmt: skip


def test_a_folder_that_is_no_cache_of_ours_is_left_alone(cli: Cli) -> None:
    """Whatever a setting calls the cache: it must have been made one."""
    engine = cli.cache / "engines" / KEY / "entry.json"
    engine.parent.mkdir(parents=True)
    engine.write_text("theirs")
    cli.cache.chmod(0o700)
    ran = cli("uninstall", "--purge", "--yes")
    assert ran.code == 0 and "CACHEDIR.TAG" in ran.out and engine.read_text() == "theirs"
    (cli.cache / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Another program's\n")
    ran = cli("uninstall", "--purge", "--yes")
    assert ran.code == 0 and "CACHEDIR.TAG" in ran.out and engine.read_text() == "theirs"


def test_a_linked_cache_is_not_followed(used: Cli, tmp_path: Path) -> None:
    """It is named, so that its owner can delete it."""
    shutil.move(used.cache, tmp_path / "disk")
    used.cache.symlink_to(tmp_path / "disk")
    before = everything(tmp_path / "disk")
    ran = used("uninstall", "--purge", "--yes")
    assert ran.code == 7 and f"LEFT {used.cache}: it is a link" in ran.out
    assert everything(tmp_path / "disk") == before


def test_engines_in_use_are_not_taken_from_under_an_app(used: Cli, bundle: Path) -> None:
    """Nothing is removed then, unless --force says so."""
    with an_app_with_an_engine(used, bundle):
        before = everything(used.home)
        ran = used("uninstall", "--purge", "--yes", "--json")
        assert ran.code == 7 and ran.document["error"]["code"] == "engines-in-use"
        assert "--force" in ran.document["error"]["hint"]
        assert everything(used.home) == before
        assert used("uninstall", "--purge", "--force", "--yes").code == 0
        assert everything(used.home) == []


def test_an_engine_that_is_being_made_counts_as_in_use(used: Cli) -> None:
    """Whoever makes it holds its lock."""
    with open(used.cache / f"locks/{KEY}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert used("uninstall", "--purge", "--yes", "--json").document["error"]["code"] == "engines-in-use"


def test_a_service_is_not_stopped_for_nothing(used: Cli, serving: Callable[[], int], bundle: Path) -> None:
    """With an engine in use it goes on, with the same process, and so do its units."""
    pid = serving()
    with an_app_with_an_engine(used, bundle):
        ran = used("uninstall", "--purge", "--yes", "--json")
        assert ran.code == 7 and ran.document["error"]["code"] == "engines-in-use"
        assert ServiceClient(str(used.home / "run/agent.sock")).status().pid == pid
    assert used("uninstall", "--purge", "--yes", "--json").document["service"]["pid"] == pid


@pytest.mark.parametrize("background", [True, False])
def test_what_the_service_makes_counts_if_somebody_waits(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """Background work ends with the service; an app that waits would get an error."""
    store = Store(str(home / "cache"))
    store.prepare()
    job = JobStatus(key=KEY, background=background)
    monkeypatch.setattr(uninstall_command, "jobs_of_service", lambda: (job,))
    if background:
        with key_lock(store, KEY, 0):
            uninstall_command._require_unused(Removal(), store)
    else:  # it waits for its turn, and holds no lock
        with pytest.raises(EnginesInUse, match=KEY[:12]):
            uninstall_command._require_unused(Removal(), store)


def test_an_app_that_comes_last_is_told_of_the_service(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question and the service's end an engine can come into use: nothing is removed, and it is said what
    was done."""
    store = Store(str(home / "cache"))
    store.prepare()
    with contextlib.ExitStack() as stack:

        def stop() -> service_stop.Stopped:
            stack.enter_context(key_lock(store, KEY, 0))
            return service_stop.Stopped(0)

        monkeypatch.setattr(uninstall_command, "stop_service", stop)
        with pytest.raises(EnginesInUse) as info:
            uninstall_command.uninstall.callback(purge=True, force=False, yes=True, as_json=True)
    assert "service was stopped" in info.value.hint and (home / "cache/engines").exists()


def test_an_empty_root_that_is_not_the_user_s_to_remove(
    used: Cli, mounted: Callable[[str], Path], tmp_path: Path
) -> None:
    """A disk of its own, as a folder that the administrator made: emptied, and no reason to fail, ever again."""
    disk = mounted("mode=0700")
    shutil.copytree(used.cache, disk, dirs_exist_ok=True)
    for _ in range(2):
        ran = used("uninstall", "--purge", "--yes", "--json", REFIT_AGENT_CACHE_DIR=str(disk))
        assert ran.code == 0 and ran.document["left"] == [] and os.listdir(disk) == []
        if _ == 0:
            reason = "empty; it is not this user's to remove"
            assert {"path": str(disk), "reason": reason} in ran.document["foreign"]


def test_another_user_s_home_is_not_touched(used: Cli, serving: Callable[[], int]) -> None:
    """As of `sudo -E`: neither service nor files."""
    if os.geteuid() != 0:
        pytest.skip("giving a folder to another user needs root")
    pid = serving()
    before = everything(used.home)
    os.chown(used.home / "state", 12345, 12345)
    ran = used("uninstall", "--purge", "--force", "--yes", "--json")
    assert ran.code == 7 and ran.document["error"]["code"] == "state-insecure"
    assert "user 12345" in ran.document["error"]["message"]
    assert everything(used.home) == before and psutil.pid_exists(pid)
    assert ServiceClient(str(used.home / "run/agent.sock")).status().pid == pid


def test_empty_folders_of_the_user_s_own_stay(cli: Cli) -> None:
    """A home such as ~ or / has a folder run, or state, or cache, that we have not made."""
    for name in ("run", "state/logs", "state/demo", "cache"):
        (cli.home / name).mkdir(parents=True, mode=0o700)
    before = everything(cli.home)
    ran = cli("uninstall", "--purge", "--yes")
    assert ran.code == 0 and "there was nothing to remove" in ran.out and everything(cli.home) == before


def test_it_asks_at_a_terminal_and_nowhere_else(used: Cli) -> None:
    """Without one --yes is needed: an installer must not hang, nor remove what nobody agreed to."""
    before = everything(used.home)
    for extra in ((), ("--json",)):
        ran = used("uninstall", *extra)
        assert ran.code == 2 and "--yes" in ran.out + ran.err
    assert everything(used.home) == before
    assert _at_terminal(used, "n\n") == 1 and everything(used.home) == before
    assert _at_terminal(used, "\x04") == 1 and everything(used.home) == before
    assert _at_terminal(used, "y\n") == 0 and not (used.home / "state").exists()


def _at_terminal(cli: Cli, answer: str) -> int:
    master, slave = pty.openpty()
    process = subprocess.Popen(cli.command("uninstall"), env=cli.env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while b"?" not in shown:
        assert select.select([master], [], [], 30)[0], shown
        shown += os.read(master, 4096)
    os.write(master, answer.encode())
    try:
        while select.select([master], [], [], 30)[0] and os.read(master, 4096):
            pass
    except OSError:  # the other end was closed
        pass
    os.close(master)
    return process.wait(30)


def test_force_belongs_to_purge(cli: Cli) -> None:
    """Alone it would promise what it does not do."""
    assert cli("uninstall", "--force", "--yes").code == 2


# ---------------------------------------------------------------- the service


def test_a_service_that_does_not_answer_is_not_robbed(used: Cli) -> None:
    """Its lock says that it lives; nothing is removed."""
    (used.home / "run").mkdir(mode=0o700)
    with open(used.home / "run/agent.sock.lock", "w") as lock, socket.socket(socket.AF_UNIX) as silent:
        fcntl.flock(lock, fcntl.LOCK_EX)
        silent.bind(str(used.home / "run/agent.sock"))
        before = everything(used.home)
        ran = used("uninstall", "--yes", "--json")
        assert ran.code == 8 and ran.document["error"]["code"] == "service-not-stopped"
        assert everything(used.home) == before


def test_a_lock_that_may_not_be_opened_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    """Whether the service runs is not known then, and nothing is removed."""
    (home / "run").mkdir(parents=True, mode=0o700)
    (home / "run/agent.sock.lock").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "run/agent.sock"))

    def refuse(lock: object, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(ServiceNotStopped, match="Permission denied"):
        service_stop.stop_service()


@pytest.mark.parametrize("name", ["notes.txt", "notes.json", "notes"])
def test_a_file_that_the_variable_names_by_mistake_stays(used: Cli, tmp_path: Path, name: str) -> None:
    """Only a socket, or a file that names a port, is a service's; nor is the lock of another program one."""
    theirs = tmp_path / name
    theirs.write_text('{"port": 1}\n')
    theirs.chmod(0o600)
    lock = tmp_path / f"{name}.lock"
    lock.write_text("theirs")
    ran = used("uninstall", "--yes", "--json", REFIT_AGENT_SOCKET=str(theirs))
    assert theirs.read_text() == '{"port": 1}\n' and lock.read_text() == "theirs" and ran.code == 0
    assert {"path": str(theirs), "reason": "it is no socket or file of a service"} in ran.document["foreign"]
    theirs.unlink()
    assert used("uninstall", "--yes", REFIT_AGENT_SOCKET=str(theirs)).code == 0 and lock.read_text() == "theirs"


def test_the_file_of_a_service_that_was_killed_goes(used: Cli, tmp_path: Path) -> None:
    """It names a port at which nothing listens any more; its unfinished successor goes too."""
    place = tmp_path / "agent.json"
    place.write_text(json.dumps({"port": 1, "token": "0" * 64, "proof": "1" * 64}))
    place.chmod(0o600)
    (tmp_path / "agent.json.0a1b2c3d.tmp").write_text("")
    (tmp_path / "agent.json.lock").touch()
    assert used("uninstall", "--yes", REFIT_AGENT_SOCKET=str(place)).code == 0
    assert not list(tmp_path.glob("agent.json*"))


def test_what_a_killed_service_left_is_removed(used: Cli, serving: Callable[[], int]) -> None:
    """Socket and lock, which nobody holds."""
    pid = serving()
    os.kill(pid, 9)
    psutil.Process(pid).wait(10) if psutil.pid_exists(pid) else None
    assert (used.home / "run/agent.sock").exists()
    ran = used("uninstall", "--yes", "--json")
    assert ran.code == 0 and ran.document["service"]["pid"] is None and not (used.home / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process is")
def test_a_process_that_is_no_service_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from another container, the number that the service gives is another process's, or nobody's."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        for number, words in (
            (bystander.pid, "is not a service of this user"),
            (4_194_305, "there is no such process"),
        ):
            monkeypatch.setattr(service_stop, "_pid_of_service", lambda path, number=number: number)
            with pytest.raises(ServiceNotStopped, match=f"{words}.*another container"):
                service_stop._terminate("/agent.sock", number)
        assert bystander.poll() is None
        bystander.kill()


def test_systemd_units_are_disabled_first(cli: Cli, tmp_path: Path) -> None:
    """Those of the user's own service, and only if they are there; a service elsewhere is none of theirs."""
    log = tmp_path / "asked"
    tool = tmp_path / "bin" / "systemctl"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$2" != list-unit-files ] || echo "refit-agent.socket enabled enabled"\n'
        '[ "$2" != is-enabled ] || { echo disabled; exit 1; }\n'
    )
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    assert cli("uninstall", "--yes", "--json", PATH=path).document["service"]["units"] == []
    assert not log.exists()
    del cli.env["REFIT_AGENT_HOME"]
    places = {"HOME": str(tmp_path / "user"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    elsewhere = cli("uninstall", "--yes", "--json", PATH=path, REFIT_AGENT_SOCKET=str(tmp_path / "my.sock"), **places)
    assert elsewhere.document["service"]["units"] == [] and not log.exists()
    ran = cli("uninstall", "--yes", "--json", PATH=path, **places)
    assert ran.document["service"]["units"] == ["refit-agent.socket"]
    assert log.read_text().splitlines() == [
        "--user list-unit-files --no-legend refit-agent.socket refit-agent.service",
        "--user disable --now refit-agent.socket",
        "--user is-enabled refit-agent.socket",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_units_that_stay_enabled_are_not_called_disabled(cli: Cli, tmp_path: Path) -> None:
    """What the administrator enabled for all users starts again; what systemd refuses is left, with its words."""
    tool = tmp_path / "bin" / "systemctl"
    tool.parent.mkdir()
    del cli.env["REFIT_AGENT_HOME"]
    env = {
        "HOME": str(tmp_path / "user"), "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    script = """#!/bin/sh
        case "$2 $3" in
            list-unit-files*) printf 'refit-agent.socket x x\\nrefit-agent.service x x\\n' ;;
            disable*) {disable} ;;
            "is-enabled refit-agent.socket") echo enabled ;;
            is-enabled*) echo static ;;
        esac
    """
    tool.write_text(script.format(disable="exit 0"))
    tool.chmod(0o755)
    ran = cli("uninstall", "--yes", **env)
    assert ran.code == 0 and "disabled refit-agent.service\n" in ran.out
    assert "stopped refit-agent.socket; it is enabled for all users and starts at the next login" in ran.out
    service = cli("uninstall", "--yes", "--json", **env).document["service"]
    assert service == {"pid": None, "units": ["refit-agent.service"], "enabled_for_all": ["refit-agent.socket"]}
    tool.write_text(script.format(disable="echo 'Access denied' >&2; exit 1"))
    ran = cli("uninstall", "--yes", "--json", **env)
    assert ran.code == 7 and ran.document["service"]["units"] == []
    assert [(entry["path"], "Access denied" in entry["reason"]) for entry in ran.document["left"]] == [
        ("refit-agent.socket", True), ("refit-agent.service", True)
    ]  # fmt: skip
