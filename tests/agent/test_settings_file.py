"""The settings files: which are believed, and that one which is there is never skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import platformdirs
import pytest

from bundles import MODEL, python
from refit_agent import ensure_engine, settings, settings_file
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
