"""A small Debian in a folder, made by debootstrap from this machine's own mirror, in which packages are tried."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: What runs in the folder sees its own processes and file systems alone, and ends with the test.
_ENTER = """
mount --make-rprivate /
mount -t proc proc "$0/proc"
exec chroot --userspec="$1" "$0" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME="$2" LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive sh -c "set -e; $3"
"""
USER = "app"
HOME = f"/home/{USER}"
#: What dpkg, apt and the loader write in any case, whatever the package.
_OF_THE_SYSTEM = re.compile(
    r"var/(lib/dpkg/(status-old|available-old|triggers/.*|.*lock.*)|cache/(ldconfig|debconf)/.*|log/.*)"
)


class Chroot:
    """A system below ``root``, with one ordinary user, `USER`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, script: str, *, user: str = "root", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside; a failure fails the test, with what was said, unless ``check`` is false."""
        home = "/root" if user == "root" else f"/home/{user}"
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER]
        done = subprocess.run([*apart, self.root, f"{user}:{user}", home, script], capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done

    def take(self, path: Path, name: str) -> str:
        """Copy a file or folder to ``name`` inside, owned by root and readable for all; gives the path inside."""
        target = self.root / name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        subprocess.run(["chmod", "-R", "a+rX", target], check=True)
        return f"/{name}"

    def paths(self) -> set[str]:
        """Every path inside but what any installation leaves."""
        found = set()
        for folder, folders, files in os.walk(self.root):
            inside = os.path.relpath(folder, self.root)
            names = [os.path.normpath(os.path.join(inside, name)) for name in (*folders, *files)]
            found |= {name for name in names if not _OF_THE_SYSTEM.fullmatch(name)}
            if inside == ".":
                folders[:] = [name for name in folders if name not in ("proc", "sys")]
        return found


def make_chroot(root: Path) -> Chroot:
    """Without Python, with a user; skips where that cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a chroot needs root on Linux")
    for program in ("debootstrap", "unshare", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    suite, mirror = _suite(), _mirror()
    if not suite or not mirror:
        pytest.skip("apt names no mirror here")
    done = subprocess.run(["debootstrap", "--variant=minbase", suite, root, mirror], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"debootstrap cannot: {' '.join((done.stdout + done.stderr).split()[-30:])}")
    for package in root.glob("var/cache/apt/archives/*.deb"):
        package.unlink()
    made = Chroot(root)
    made.run(f"useradd --create-home {USER}")
    assert not list(root.glob("usr/bin/python*")), "the system is to have no Python"
    return made


def _suite() -> str:
    words = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"')


def _mirror() -> str:
    """The first address from which this machine's apt takes its own release."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    lines = re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(http\S+)\s+(\S+)", text, re.MULTILINE)
    for block in re.split(r"\n\s*\n", text):
        uri, suites = (re.search(rf"^{key}:\s*(.+)$", block, re.MULTILINE) for key in ("URIs", "Suites"))
        if uri and suites:
            lines.append((uri[1].split()[0], suites[1].split()[0]))
    return next((uri for uri, suite in lines if suite == _suite()), "")
