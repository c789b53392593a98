"""A machine of a fleet in a folder: a Debian with the fetching tools, commands and pods in it, and Ansible's way in."""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from chroots import make_chroot
from debian_packages import build_packages, newer_source
from fleet_peers import FLEET

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ROOT = FLEET.parents[1]
DIST = ROOT / "dist"
TOOLS = ("ca-certificates", "python3", "python3-apt", "rclone", "skopeo", "umoci")


class Bind(NamedTuple):
    """A folder of this machine that is to be seen at ``target`` inside."""

    source: Path
    target: str
    read_only: bool = False


class Machine:
    """A system below ``root``; ``own`` is what of this machine is seen in it at its own path."""

    def __init__(self, root: Path, own: Sequence[Path] = ()) -> None:
        self.root, self.own = root, own

    def copy(self, root: Path) -> Machine:
        """Another one that begins as this one is now."""
        subprocess.run(["cp", "-a", "--reflink=auto", f"{self.root}/.", f"{root}/"], check=True)
        return Machine(root, self.own)

    def inside(self, command: str, *, binds: Sequence[Bind] = (), read_only: bool = False) -> list[str]:
        """The command line that runs ``command``, a shell's line and its last word, as root inside, apart from this
        machine's processes and mounts."""
        lines = ["set -e", "mount --make-rprivate /", "umask 022", f"r={shlex.quote(str(self.root))}"]
        lines += ['mount --bind "$r" "$r"', 'mount -t proc proc "$r/proc"', 'mount --rbind /dev "$r/dev"']
        # The volumes first, so that what comes from this machine's own /tmp is not hidden by a volume there.
        every = [*binds, *(Bind(path, str(path), True) for path in self.own)]
        for source, target, _ in every:
            lines.append(f'mkdir -p "$r"{shlex.quote(target)}')
            lines.append(f'mount --bind {shlex.quote(str(source))} "$r"{shlex.quote(target)}')
        lines += [f'mount -o remount,bind,ro "$r"{shlex.quote(b.target)}' for b in every if b.read_only]
        lines += ['mount -o remount,bind,ro "$r"'] if read_only else []
        lines.append(f'exec chroot "$r" env -i PATH={_PATH} HOME=/root LC_ALL=C.UTF-8 sh -c "$1"')
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines), "sh", command]

    def run(self, command: str, *, check: bool = True, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell's line inside; a failure fails the test, with what was said, unless ``check`` is false."""
        done = subprocess.run(self.inside(command, **how), capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file inside, with the folders that it needs."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def paths(self) -> set[str]:
        """Every path inside, but for what any use of a system leaves."""
        found = subprocess.run(
            ["find", ".", "-mindepth", "1", "(", "-path", "./var/log", "-o", "-path", "./var/cache", "-o", "-path", "./var/lib/apt", "-o", "-path", "./root/.ansible", "-o", "-path", "./tmp", "-o", "-name", "__pycache__", ")", "-prune", "-o", "-print"],
            cwd=self.root, check=True, capture_output=True, text=True,
        ).stdout.split("\n")  # fmt: skip
        return {path for path in found if not re.search(r"/var/lib/dpkg/(.*-old|.*lock.*)$|-$", path)}


def make_machine(root: Path) -> Machine:
    """With Python for Ansible and the tools that fetch; skips where that cannot be made."""
    made = make_chroot(root)
    made.run("apt-get update -q && apt-get install -qy --no-install-recommends " + " ".join(TOOLS))
    # Where the tests' Python is may be below /root, and ordinary users inside must get there.
    (root / "root").chmod(0o711)
    return Machine(root)


def packages(work: Path) -> tuple[list[Path], list[Path]]:
    """The packages to install, and what of this machine they need.

    The real ones are those in dist/, or in the folder that REFIT_AGENT_DIST names, or are made from what is there;
    never any that are older than the sources. Without any, it is a package whose refit-agent runs from this source tree
    in the tests' own Python. Skips where REFIT_AGENT_DIST names what is too old.
    """
    given = os.environ.get("REFIT_AGENT_DIST")
    dist = Path(given or DIST)
    newer = newer_source(dist)
    if given and newer:
        pytest.skip(f"what is in {dist} was made before {newer.relative_to(ROOT)} was changed: build it anew")
    found = [] if newer else sorted(dist.glob("*.deb"))
    if given and not found:
        found = build_packages(Path(given), work, "--level", "0")
    if found:
        # The lean runtime needs a GPU to be of use, and its hundred megabytes are copied for each machine.
        wanted = [p for p in found if p.name.startswith(("refit-agent_", "refit-agent-onnxruntime_"))]
        return sorted(wanted, key=lambda p: not p.name.startswith("refit-agent_")), []
    folder = work / "stand-in"
    command = folder / "usr/bin/refit-agent"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -B -m refit_agent "$@"\n')
    command.chmod(0o755)
    (folder / "etc/refit-agent").mkdir(parents=True)
    (folder / "etc/refit-agent/settings.toml").write_text("# nothing set\n")
    (folder / "DEBIAN").mkdir()
    (folder / "DEBIAN/conffiles").write_text("/etc/refit-agent/settings.toml\n")
    (folder / "DEBIAN/control").write_text(
        "Package: refit-agent\nVersion: 0.1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n"
        "Description: stand-in\n"
    )
    package = work / "refit-agent_0.1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(folder), str(package)], check=True, capture_output=True)
    own = [Path(sys.prefix), Path(sys.base_prefix), ROOT]
    outer = [p for p in own if p != Path("/usr") and not any(o != p and o in p.parents for o in own)]
    return [package], list(dict.fromkeys(outer))


# ------------------------------------------------------------ Ansible


def ansible_environment(machine: Machine, folder: Path) -> tuple[dict[str, str], Path]:
    """Environment and inventory with which ansible-playbook reaches the machine as the host "node".

    Ansible's own ssh connection is used; only what it runs in place of ssh enters the folder instead of a network.
    """
    ssh = folder / "ssh"
    enter = shlex.join(machine.inside("")[:-1])
    ssh.write_text(
        "#!/bin/sh\n# ssh OPTION... HOST COMMAND...\n"
        "while [ $# -gt 0 ]; do\n  case $1 in\n    -o | -p | -l | -i | -S) shift 2 ;;\n    -*) shift ;;\n    *) break ;;\n  esac\ndone\n"
        "[ $# -gt 1 ] || exit 255\nshift\n"
        f'exec {enter} "$*"\n'
    )
    ssh.chmod(0o755)
    inventory = folder / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"gpu": {"hosts": {"node": {
        "ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_ssh_transfer_method": "piped",
        "ansible_ssh_args": "", "ansible_ssh_common_args": "", "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
    }}}}))  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE", "REFIT_AGENT"))}
    env |= {
        "ANSIBLE_ROLES_PATH": str(FLEET / "ansible" / "roles"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "LC_ALL": "C.UTF-8",
    }
    return env, inventory


# ------------------------------------------------------------ pods


class Pod:
    """The containers of one pod of a manifest on a machine, whose root is their image: commands, environment, users,
    capabilities, mounts and read-only roots are the manifest's. Not: seccomp, limits, the network policy, GPUs."""

    def __init__(self, image: Machine, pod: Mapping[str, Any], volumes: Path, node: Path, data: Mapping[str, Mapping[str, str]]) -> None:  # fmt: skip
        """``node`` stands for the node's root folder, ``volumes`` is for the rest; ``data`` are the files of ConfigMaps
        and Secrets by name."""
        self.image, self.spec = image, pod["spec"]
        self.places = {v["name"]: self._place(v, volumes, node, data) for v in self.spec["volumes"]}

    def _place(self, volume: Mapping[str, Any], volumes: Path, node: Path, data: Mapping[str, Mapping[str, str]]) -> Path:  # fmt: skip
        if "hostPath" in volume:
            place = node / volume["hostPath"]["path"].lstrip("/")
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                place.mkdir(parents=True, exist_ok=True)
            assert place.is_dir()
            return place
        place = volumes / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            place.chmod(0o777)
            return place
        name = volume["configMap"]["name"] if "configMap" in volume else volume["secret"]["secretName"]
        # As the kubelet lays them out: links, so that all change at once.
        (place / "..2026").mkdir(exist_ok=True)
        (place / "..data").symlink_to("..2026")
        for key, text in data[name].items():
            (place / "..2026" / key).write_text(text)
            (place / key).symlink_to(f"..data/{key}")
        return place

    def command(self, name: str, command: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> list[str]:  # fmt: skip
        """The command line of one container; with ``command``, of something else in it, such as a probe."""
        container = next(c for c in [*self.spec.get("initContainers", ()), *self.spec["containers"]] if c["name"] == name)  # fmt: skip
        security = {**self.spec["securityContext"], **container["securityContext"]}
        assert security["runAsNonRoot"] is (security["runAsUser"] != 0)
        given = {e["name"]: e["value"] for e in container.get("env", ())} | dict(env or {})
        words = [self._expanded(w, given) for w in (command or container["command"])]
        caps = ["-all", *(f"+{c.lower()}" for c in security["capabilities"].get("add", ()))]
        rights = ["setpriv", f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}", "--clear-groups"]
        rights += [f"--bounding-set={','.join(caps)}", "--inh-caps=-all"]
        rights += [] if security["allowPrivilegeEscalation"] else ["--no-new-privs"]
        line = shlex.join(["env", *(f"{k}={v}" for k, v in given.items()), *words])
        binds = [Bind(self.places[m["name"]], m["mountPath"], m.get("readOnly", False)) for m in container["volumeMounts"]]  # fmt: skip
        return self.image.inside(
            f"exec {shlex.join(rights)} {line}", binds=binds, read_only=security["readOnlyRootFilesystem"]
        )

    def run(self, name: str, command: Sequence[str] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.command(name, command, env), capture_output=True, text=True)

    @staticmethod
    def _expanded(word: str, env: Mapping[str, str]) -> str:
        return re.sub(r"\$\(([A-Za-z_]\w*)\)", lambda m: env.get(m[1], m[0]), word)


def manifests(name: str) -> list[dict[str, Any]]:
    """The documents of one file of the Kubernetes example."""
    return [d for d in yaml.safe_load_all((FLEET / "kubernetes" / name).read_text()) if d]


def build_image(machine: Machine, debs: Sequence[Path]) -> None:
    """Do to the machine what the Containerfile says to do to its base image."""
    text = (FLEET / "kubernetes" / "Containerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("", "#", "FROM", "USER"):
            continue
        if word == "RUN":
            machine.run(f"export DEBIAN_FRONTEND=noninteractive; {rest}")
            continue
        assert word == "COPY", line
        *sources, target = rest.split()
        folder = machine.root / target.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for source in sources:
            for path in debs if source == "dist/*.deb" else [ROOT / source]:
                shutil.copy(path, folder)


def auth_file(server: str) -> str:
    """Credentials for a registry that asks for none."""
    return f'{{"auths": {{"{server}": {{"auth": "{base64.b64encode(b"somebody:something").decode()}"}}}}}}'


def require_playbook() -> str:
    """The path of ansible-playbook; skips where it is missing."""
    found = shutil.which("ansible-playbook", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("ansible-playbook is not installed (ansible-core from PyPI)")
    return found
