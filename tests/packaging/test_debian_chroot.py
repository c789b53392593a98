"""Install, upgrade, remove and purge the packages in a Debian that has no Python.

Needs root, debootstrap and a mirror, and the standalone folder (REFIT_AGENT_DIST, or it is built).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chroots import HOME, USER, Chroot, make_chroot
from debian_packages import build_packages, scrubbed
from standalone_folder import real_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CORE, LEAN, ORT = "refit-agent", "refit-agent-tensorrt-lean", "refit-agent-onnxruntime"
#: In the chroot: the service of the user, started by hand, and the wait for it.
SERVE = f"""
mkdir -p /tmp/run; chown {USER}: /tmp/run
setpriv --reuid={USER} --regid={USER} --clear-groups env HOME={HOME} XDG_RUNTIME_DIR=/tmp/run refit-agent serve 2>/tmp/run/log &
service=$!
for i in $(seq 100); do test -S /tmp/run/refit-agent/agent.sock && break; sleep 0.1; done
test -S /tmp/run/refit-agent/agent.sock
"""
#: It ends with 0 when it was asked to, with 137 when nobody asked.
SERVED = "(sleep 30; kill -KILL $service) >/dev/null 2>&1 & code=0; wait $service || code=$?; echo service ended with $code; rm -rf /tmp/run"
COMPLETE = """
bash -c '. /usr/share/bash-completion/completions/refit-agent
COMP_WORDS=(refit-agent pro); COMP_CWORD=1; $(complete -p refit-agent | sed -E "s/.* -F ([^ ]+) .*/\\1/") refit-agent
echo "${COMPREPLY[*]}"' 2>&1
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Path]]]:
    """Revision -> package -> file; of two revisions, packed quickly (how small they get is not of interest here)."""
    work = tmp_path_factory.mktemp("packages")
    dist = real_folder()
    made = {revision: build_packages(dist, work, "--revision", revision, "--level", "0") for revision in ("1", "2")}
    yield {revision: {path.name.split("_")[0]: path for path in paths} for revision, paths in made.items()}
    shutil.rmtree(work)


@pytest.fixture(scope="module")
def chroot(tmp_path_factory: pytest.TempPathFactory, packages: object) -> Iterator[Chroot]:
    """The system, with nothing of ours in it."""
    root = tmp_path_factory.mktemp("chroot") / "system"
    start = time.monotonic()
    system = make_chroot(root)
    print(f"debootstrap: {time.monotonic() - start:.1f} s")
    yield system
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, made by the tests' own Python."""
    folder = tmp_path_factory.mktemp("demo")
    environment = scrubbed() | {"REFIT_AGENT_HOME": str(folder / "home"), "REFIT_AGENT_SOCKET": ""}
    command = [sys.executable, "-m", "refit_agent", "demo", "--dir", folder / "bundle"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return folder / "bundle"


@pytest.fixture
def installed(chroot: Chroot, packages: dict[str, dict[str, Path]], demo: Path) -> Iterator[Path]:
    """The packages' files at /packages and the demo's bundle at /bundle; gives the first package's name inside."""
    inside = chroot.root / "packages"
    inside.mkdir()
    for revision, files in packages.items():
        for name, path in files.items():
            os.link(path, inside / f"{name}_{revision}.deb")
    chroot.take(demo, "bundle")
    yield inside
    chroot.run(f"dpkg --purge {ORT} {LEAN} {CORE} 2>&1", check=False)
    for leftover in (inside, chroot.root / "bundle"):
        shutil.rmtree(leftover)
    chroot.run(f"rm -rf {HOME}; cp -a /etc/skel {HOME}; chown -R {USER}: {HOME}")


def deb(*names: str, revision: int = 1) -> str:
    return " ".join(f"/packages/{name}_{revision}.deb" for name in names)


def test_from_installation_to_purge(chroot: Chroot, installed: Path) -> None:
    """What users and administrators do, in one story; after the purge only the user's cache and state are left."""
    before = chroot.paths()
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start

    with phase("install"):
        chroot.run(f"dpkg -i {deb(CORE, ORT)}")
    with phase("first provision"):
        first = json.loads(chroot.run("refit-agent provision /bundle --json", user=USER).stdout)
    engine = first["engines"][0]
    assert (engine["hit"], engine["check"], engine["runtime"]) == (False, "golden", "onnxruntime")
    with phase("path, a hit"):
        said = chroot.run(f"refit-agent path /bundle {engine['model']}", user=USER).stdout
    assert said == f"{engine['path']}\n"
    assert (chroot.root / engine["path"].lstrip("/")).is_file()
    again = json.loads(chroot.run("refit-agent provision /bundle --json", user=USER).stdout)
    assert again["engines"][0]["hit"] is True
    assert "provision" in chroot.run("refit-agent --help", user=USER).stdout
    assert chroot.run(COMPLETE, user=USER).stdout.split() == ["provision"]
    for page in ("man1/refit-agent.1.gz", "man5/refit-agent-settings.5.gz"):
        assert (chroot.root / "usr/share/man" / page).is_file()
    wants = chroot.root / "etc/systemd/user/sockets.target.wants/refit-agent.socket"
    assert os.readlink(wants).endswith("/systemd/user/refit-agent.socket")
    assert chroot.run("dpkg --verify").stdout == ""

    settings = chroot.root / "etc/refit-agent/settings.toml"
    settings.write_text(settings.read_text() + 'cache_quota = "1G"\n')
    (settings.parent / "policy.toml").write_text("warm = false\n")
    with phase("upgrade, with a service running"):
        ended = chroot.run(f"{SERVE} dpkg -i {deb(CORE, ORT, revision=2)} >/dev/null; {SERVED}").stdout
    assert "service ended with 0" in ended
    assert settings.read_text().endswith('cache_quota = "1G"\n')
    assert "0.1.0-2" in chroot.run(f"dpkg-query -W {CORE}").stdout
    assert json.loads(chroot.run("refit-agent provision /bundle --json", user=USER).stdout)["engines"][0]["hit"] is True

    with phase("remove, with a service running"):
        ended = chroot.run(f"{SERVE} dpkg -r {ORT} {CORE} >/dev/null; {SERVED}").stdout
    assert "service ended with 0" in ended
    assert not (chroot.root / "usr/lib/refit-agent").exists()
    assert settings.exists()
    chroot.run(f"dpkg --purge {ORT} {CORE}")

    left = chroot.paths() - before
    of_the_user = tuple(f"{HOME[1:]}/{name}" for name in (".cache", ".local"))
    assert left and {path for path in left if not path.startswith(of_the_user)} == set()
    assert before - chroot.paths() == set()
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s")
    wanted = sum(seconds[name] for name in ("install", "first provision", "remove, with a service running"))
    assert wanted < 180


def test_uninstall_purge_leaves_nothing_of_the_user_either(chroot: Chroot, installed: Path) -> None:
    """`refit-agent uninstall --purge`, then the purge of the packages: only empty folders of the desktop's standard."""
    before = chroot.paths()
    chroot.run(f"dpkg -i {deb(CORE, ORT)}")
    chroot.run(
        "refit-agent provision /bundle; mkdir -p ~/.config/refit-agent; touch ~/.config/refit-agent/settings.toml",
        user=USER,
    )
    assert (chroot.root / HOME[1:] / ".cache/refit-agent").is_dir()
    chroot.run("refit-agent uninstall --purge --yes", user=USER)
    chroot.run(f"dpkg --purge {ORT} {CORE}")
    standard = {f"{HOME[1:]}/{name}" for name in (".cache", ".local", ".local/state", ".config")}
    assert chroot.paths() - before - standard == set()


def test_the_lean_runtime_is_found(chroot: Chroot, installed: Path) -> None:
    """Its own package; the version of the other two is required, and the runtime goes with it."""
    chroot.run(f"dpkg -i {deb(CORE, LEAN)}")
    assert "tensorrt_lean" in runtimes(chroot)
    refused = chroot.run(f"dpkg -i {deb(ORT, revision=2)}", check=False)
    assert refused.returncode != 0 and "refit-agent (= " in refused.stderr
    chroot.run(f"dpkg --purge {ORT} {LEAN}")
    assert runtimes(chroot) == []


def runtimes(chroot: Chroot) -> list[str]:
    document = json.loads(chroot.run("refit-agent gpus --json", user=USER).stdout)
    return [runtime["module"] for runtime in document["runtimes"]]


def test_a_disabled_socket_stays_disabled(chroot: Chroot, installed: Path) -> None:
    """Over an upgrade and over removing and installing: what the administrator removed does not come back."""
    wants = chroot.root / "etc/systemd/user/sockets.target.wants/refit-agent.socket"
    chroot.run(f"dpkg -i {deb(CORE)}")
    wants.unlink()
    chroot.run(f"dpkg -i {deb(CORE, revision=2)}")
    assert not wants.is_symlink()
    chroot.run(f"dpkg -r {CORE}; dpkg -i {deb(CORE, revision=2)}")
    assert not wants.is_symlink()
