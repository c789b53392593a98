"""The settings files: which are believed, and that one which is there is never skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from bundles import MODEL, python
from refit_agent import ensure_engine, settings, settings_file
from refit_agent.cli.settings_document import all_files
from refit_agent.errors import SettingInvalid, SettingsFileInvalid
from settings_files import SettingsFiles

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="places and owners are those of POSIX")


def test_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's is where platformdirs has it; no variable moves the machine's."""
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    if sys.platform != "darwin":
        assert settings_file.path_of("policy") == "/etc/refit-agent/policy.toml"
        assert settings_file.path_of("machine") == "/etc/refit-agent/settings.toml"
    for given in (str(tmp_path / "x"), "", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
        folder = os.path.dirname(settings_file.path_of("user"))
        if given != "relative":
            assert folder == platformdirs.user_config_dir("refit-agent", appauthor=False)
        else:
            assert folder == os.path.expanduser("~/.config/refit-agent")


@pytest.mark.parametrize("kind", ["policy", "user", "machine"])
@pytest.mark.parametrize(
    "damage", [b"cache_quota = ", b"\xff\xfe", b"x = 1\nx = 2", b"a" * 70_000, b"a=" + b"[" * 30_000]
)
def test_a_damaged_file_is_an_error_and_says_so(files: SettingsFiles, bundle: Path, kind: str, damage: bytes) -> None:
    """An app does not get its engine with a restriction silently dropped; the message names the file."""
    path = getattr(files, kind)("")
    path.write_bytes(damage)
    with pytest.raises(SettingsFileInvalid, match=str(path)) as info:
        ensure_engine(bundle, MODEL)
    assert info.value.exit_code == 2 and info.value.hint
    assert ("administrator" in info.value.hint) == (kind == "policy")
    path.write_bytes(b"")
    ensure_engine(bundle, MODEL).close()


@pytest.mark.parametrize(
    "text",
    ["cache_quota = " + "9" * 5000, "cache_quota = 0x" + "f" * 5000, "fetch = [[0x" + "f" * 20 + "]]", "warm" + ".a" * 2000 + " = 1"],
    ids=["number", "hexadecimal", "nested", "tables"],
)  # fmt: skip
def test_what_no_message_could_show_is_an_error_and_says_so(files: SettingsFiles, text: str) -> None:
    """Numbers of more digits than Python reads or writes, and tables in tables without end."""
    path = files.user(text)
    with pytest.raises(SettingsFileInvalid, match=str(path)):
        settings.find("warm_busy_percent")


@pytest.mark.parametrize("kind", ["policy", "machine"])
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_machine_s_file_that_others_may_write_to_is_refused(files: SettingsFiles, kind: str, mode: int) -> None:
    """Whoever can write it is not the administrator."""
    path = getattr(files, kind)("warm = false")
    path.chmod(mode)
    with pytest.raises(SettingInvalid, match="others than root may write to it"):
        settings_file.read(kind)
    path.chmod(0o600)
    assert settings_file.read(kind).values == {"warm": False}


@pytest.mark.parametrize("kind", ["policy", "machine"])
def test_a_machine_s_file_of_another_user_is_refused(
    files: SettingsFiles, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of the user's own, who may well have the folder."""
    getattr(files, kind)("warm = false")
    monkeypatch.setattr(settings_file, "_ROOT", os.geteuid() + 1)
    with pytest.raises(SettingInvalid, match=f"belongs to user {os.geteuid()} and must belong to root"):
        settings_file.read(kind)


def test_a_user_may_have_a_lax_mask(files: SettingsFiles) -> None:
    """With a group of one's own, files are writable by it."""
    files.user("warm = false").chmod(0o664)
    assert settings_file.read("user").values == {"warm": False}


def test_what_is_no_file(files: SettingsFiles) -> None:
    """A pipe does not hang the caller, and a folder is not as good as nothing; neither is what may not be looked at."""
    os.mkfifo(files.policy_path)
    with pytest.raises(SettingInvalid, match="not a regular file"):
        settings_file.read("policy")
    files.policy_path.unlink()
    files.policy_path.mkdir()
    with pytest.raises(SettingInvalid, match="not a regular file"):
        settings_file.read("policy")
    files.policy_path.rmdir()
    files.policy_path.symlink_to(files.policy_path)
    with pytest.raises(SettingInvalid, match="symbolic links"):
        settings_file.read("policy")
    files.policy_path.unlink()
    assert settings_file.read("policy") is None
    shutil.rmtree(files.machine_folder)
    files.machine_folder.write_text("")
    assert settings_file.read("policy") is None


def test_a_link_of_the_administrator_s_is_followed(files: SettingsFiles, tmp_path: Path) -> None:
    """Fleet tools, Kubernetes among them, put files in place by links."""
    (tmp_path / "real").write_text("\ufeffwarm = false")
    files.policy_path.symlink_to(tmp_path / "real")
    assert settings_file.read("policy").values == {"warm": False}


def test_a_change_is_seen_at_the_next_use(files: SettingsFiles) -> None:
    """Even one of the same size with the old time put back, in place of the file or in the file."""
    path = files.user("warm_busy_percent = 10")
    before = path.stat()
    assert settings_file.read("user").values == {"warm_busy_percent": 10}
    assert settings_file.read("user") is settings_file.read("user")
    files.user_folder.joinpath("new").write_text("warm_busy_percent = 99")
    os.replace(files.user_folder / "new", path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert settings_file.read("user").values == {"warm_busy_percent": 99}
    time.sleep(0.05)  # more than the grain of the time of change, which nobody can put back
    path.write_text("warm_busy_percent = 77")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert settings_file.read("user").values == {"warm_busy_percent": 77}
    path.unlink()
    assert settings_file.read("user") is None


def test_threads_see_whole_files(files: SettingsFiles) -> None:
    """While the file is being replaced, each sees the old one or the new one."""
    seen: list[object] = []
    path = files.user("warm_busy_percent = 0")

    def look() -> None:
        for _ in range(200):
            file = settings_file.read("user")
            seen.append(None if file is None else file.values.get("warm_busy_percent"))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        (files.user_folder / "new").write_text(f"warm_busy_percent = {number}")
        os.replace(files.user_folder / "new", path)
    for thread in threads:
        thread.join()
    assert len(seen) == 800 and None not in seen


def test_without_a_setting_nothing_is_imported_to_read_one(files: SettingsFiles, bundle: Path) -> None:
    """A hit pays for a look at three places, and for reading the comments that the Debian package puts in one."""
    ensure_engine(bundle, MODEL).close()
    code = """
    import sys
    from refit_agent import ensure_engine
    assert ensure_engine(*sys.argv[1:]).hit
    print(*sys.modules, sep="\\n")
    """
    command, env = python(code, bundle, MODEL, path=[files.site])
    tools = {"tomllib", "tomli", "logging"}
    for _ in range(2):  # the first one asks what machine this is
        loaded = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert tools.isdisjoint(loaded) and "refit_agent.settings_file" in loaded
    files.machine((Path(__file__).parents[2] / "packaging/debian/files/settings.toml").read_text())
    loaded = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert tools.isdisjoint(loaded)
    files.machine("warm = false")
    loaded = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert tools.intersection(loaded)


@pytest.mark.parametrize("kind", ["policy", "machine"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_leads_nowhere_is_not_the_same_as_no_file(files: SettingsFiles, kind: str, what: str) -> None:
    """The disk at its other end may not be there yet: until then nobody knows what is forbidden."""
    path = files.policy_path if kind == "policy" else files.machine_path
    if what == "folder":
        path = path.parent
        path.rmdir()
    path.symlink_to("/nonexistent/of-a-disk")
    with pytest.raises(SettingsFileInvalid, match=f"{path} is a link that leads nowhere"):
        settings_file.read(kind)
    with pytest.raises(SettingsFileInvalid):
        settings.find("warm")
    path.unlink()
    path.parent.mkdir(exist_ok=True)
    assert settings_file.read(kind) is None


def test_a_user_s_link_that_leads_nowhere_is_no_file(files: SettingsFiles) -> None:
    """It can hold nothing that anybody else depends on, as that of a dotfiles folder on another disk."""
    files.user_path.symlink_to("/nonexistent/of-a-disk")
    assert settings_file.read("user") is None


#: Says what the machine's file has, without a fixture's say on whose it must be.
_READS = (
    "import sys; from refit_agent import settings_file as s; s.MACHINE_FOLDER = sys.argv[1]; print(s.read('machine'))"
)


@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces are Linux's")
def test_root_s_files_are_believed_where_root_has_no_number(
    files: SettingsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a user namespace, as of a sandbox, they show as nobody's. What others may write is refused there as well."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a file of root's needs root, and a user namespace unshare")
    if subprocess.run(["unshare", "-U", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    monkeypatch.delenv("PYTHONPATH")
    path = files.machine('cache_quota = "7G"')
    command = [sys.executable, "-c", _READS, str(files.machine_folder)]
    inside = ["unshare", "-U", *command]
    assert "'cache_quota': '7G'" in subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    path.chmod(0o646)
    refused = subprocess.run(inside, capture_output=True, text=True)
    assert refused.returncode and "others than root may write to it" in refused.stderr
    # Where root has a number, nobody is just nobody: the user without rights, here and in a namespace.
    path.chmod(0o644)
    os.chown(path, 65534, 65534)
    for before in ([], ["unshare", "-U", "-r"]):
        refused = subprocess.run([*before, *command], capture_output=True, text=True)
        assert refused.returncode and "it belongs to user 65534" in refused.stderr


# ---------------------------------------------------------------- Windows


class Registry(types.ModuleType):
    """Stands in for `winreg`: one value of one key, seen through the half for 64 bits alone."""

    HKEY_LOCAL_MACHINE, KEY_READ, KEY_WOW64_64KEY = 0x80000002, 0x20019, 0x100
    REG_SZ, REG_EXPAND_SZ, REG_DWORD = 1, 2, 4

    def __init__(self, value: object = None, form: int = 1, fault: OSError | None = None) -> None:
        super().__init__("winreg")
        self._value, self._form, self._fault = value, form, fault

    def OpenKey(self, root: int, name: str, reserved: int, access: int) -> contextlib.AbstractContextManager[str]:  # noqa: N802
        assert (root, reserved, access) == (self.HKEY_LOCAL_MACHINE, 0, self.KEY_READ | self.KEY_WOW64_64KEY)
        if self._fault is not None:
            raise self._fault
        if self._value is None or name != r"SOFTWARE\refit-agent":
            raise FileNotFoundError(2, "not there")
        return contextlib.nullcontext("key")

    def QueryValueEx(self, key: str, name: str) -> tuple[object, int]:  # noqa: N802
        if (key, name) != ("key", "MachineFolder"):
            raise FileNotFoundError(2, "not there")
        return self._value, self._form


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> Callable[[Registry], None]:
    """A Windows with that registry, as far as settings files go."""

    def play(registry: Registry) -> None:
        monkeypatch.setitem(sys.modules, "winreg", registry)
        monkeypatch.setattr(sys, "platform", "win32")

    return play


def test_on_windows_the_registry_names_the_machine_s_folder(
    files: SettingsFiles, on_windows: Callable[[Registry], None], tmp_path: Path
) -> None:
    """What only administrators can write, and nothing else does: not %ProgramData%, in which anybody makes folders."""
    files.policy("warm = false")
    on_windows(Registry(str(files.machine_folder)))
    assert settings_file.path_of("policy") == str(files.policy_path)
    assert settings.find("warm") == (False, "policy", str(files.policy_path))
    on_windows(Registry())
    for kind in ("policy", "machine"):
        assert settings_file.path_of(kind) == "" and settings_file.read(kind) is None
    assert settings.find("warm").kind == "default"
    shown = {file.kind: (file.path, file.found, file.error) for file in all_files()}
    assert shown["policy"] == shown["machine"] == (r"HKLM\SOFTWARE\refit-agent\MachineFolder", False, None)


@pytest.mark.parametrize(
    "registry",
    [
        Registry("/etc", Registry.REG_EXPAND_SZ), Registry(7, Registry.REG_DWORD), Registry("etc"), Registry(""),
        Registry("/etc\0"), Registry(fault=PermissionError(13, "Access is denied")),
    ],
    ids=["expand", "number", "relative", "empty", "nul", "denied"],
)  # fmt: skip
def test_a_registry_that_makes_no_sense_is_an_error(
    files: SettingsFiles, on_windows: Callable[[Registry], None], registry: Registry
) -> None:
    """There may be a policy; which, nobody can tell."""
    on_windows(registry)
    with pytest.raises(SettingsFileInvalid, match="MachineFolder"):
        settings.find("warm")
    policy = all_files()[0]
    assert policy.error is not None and policy.path == settings_file.REGISTRY_PLACE


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_the_real_place(tmp_path: Path) -> None:
    """/etc/refit-agent/policy.toml decides in every process, whatever its environment says."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare")
    (tmp_path / "etc/refit-agent").mkdir(parents=True)
    (tmp_path / "etc/refit-agent/policy.toml").write_text('cache_quota = "7G"\n')
    script = 'mount --bind "$0" /etc && exec "$@"'
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        str(tmp_path / "etc"),
        sys.executable,
        "-m",
        "refit_agent",
        "settings",
    ]
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(tmp_path / "etc"), "true"], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    env = {**os.environ, "REFIT_AGENT_CACHE_QUOTA": "1G", "XDG_CONFIG_DIRS": "/tmp"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "cache_quota        7.0 GiB  (the policy /etc/refit-agent/policy.toml)" in done.stdout
