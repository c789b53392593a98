"""The standalone folder's launcher, run around a stand-in for the Python that it starts."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from standalone_folder import BUILDER

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script")
SHELLS = [[shutil.which(name[0]), *name[1:]] for name in (["sh"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(name[0])]  # fmt: skip
#: What Python takes from the environment that a launcher must not hand on.
VARIABLES = ("HOME", "PATH", "EXECUTABLE", "PLATLIBDIR", "USERBASE", "STARTUP", "INSPECT")


def folder(root: Path) -> Path:
    """A folder with the launcher, whose Python says where it is, what it was started with, and its variables."""
    program = root / "bin/refit-agent"
    program.parent.mkdir(parents=True)
    shutil.copyfile(BUILDER / "launcher.sh", program)
    program.chmod(0o755)
    python = root / "python/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nreadlink -f "$0"\nprintf "%s\\n" "$*"\nenv | grep ^PYTHON | cut -d= -f1\n')
    python.chmod(0o755)
    return root


def start(command: list[str], cwd: Path, **env: str) -> list[str]:
    """The lines that the stand-in said."""
    env = {"PATH": os.defpath, **env}
    done = subprocess.run([*command, "--version"], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr, (command, done.returncode, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
def test_launcher_is_found_however_it_is_named(tmp_path: Path, shell: list[str]) -> None:
    """By links to the file, to bin, to the folder and to one above, relative or not, by PATH, and wherever cd leads."""
    this, other = folder(tmp_path / "in bin/one/bin/app"), folder(tmp_path / "other")
    links = tmp_path / "links"
    (links / "mixed/bin").mkdir(parents=True)
    (links / "file").symlink_to(this / "bin/refit-agent")
    (links / "mixed/bin/refit-agent").symlink_to("../../file")
    (links / "onlybin").mkdir()
    (links / "onlybin/bin").symlink_to(this / "bin")
    # Another installation's python beside a bin that is a link to this one's.
    shutil.copytree(other / "python", links / "mixed/python")
    shutil.copytree(other / "python", links / "onlybin/python")
    (links / "mixed/bin/more").symlink_to(this / "bin")
    (links / "tree").symlink_to(this)
    (links / "above").symlink_to(this.parent)
    program = this / "bin/refit-agent"
    elsewhere = f"{other}/bin:{os.defpath}"
    ways: list[tuple[str, Path, str]] = [
        (str(program), tmp_path, elsewhere),
        (str(links / "file"), tmp_path, elsewhere),
        ("./file", links, elsewhere),
        (str(links / "mixed/bin/refit-agent"), tmp_path, elsewhere),
        (str(links / "onlybin/bin/refit-agent"), tmp_path, elsewhere),
        (str(links / "onlybin/bin//refit-agent"), tmp_path, elsewhere),
        (str(links / "mixed/bin/more/refit-agent"), tmp_path, elsewhere),
        ("bin/refit-agent", links / "onlybin", elsewhere),
        (str(links / "tree/bin/refit-agent"), tmp_path, elsewhere),
        (str(links / "above/app/bin/refit-agent"), tmp_path, elsewhere),
        ("./refit-agent", program.parent, elsewhere),
        ("bin/refit-agent", this, elsewhere),
        ("./bin/refit-agent", this, elsewhere),
        ("../bin/./refit-agent", program.parent, elsewhere),
        ("refit-agent", program.parent, elsewhere),
        ("refit-agent", program.parent, f".:{elsewhere}"),
    ]
    for name, cwd, path in ways:
        for command in ([name], [*shell, name]):
            # Not by the shell, the bare name is PATH's.
            if command == ["refit-agent"]:
                continue
            found, words, *_ = start(command, cwd, PATH=path, CDPATH=f"{other}:{tmp_path}:/")
            assert found == str(this / "python/bin/python3"), (command, cwd)
            assert words.startswith("-I -S -B /") and words.endswith("/lib/refit_agent_start.py --version")
    # By its bare name from anywhere it is the one that PATH has.
    found, *_ = start([*shell, "-c", 'refit-agent "$@"', "sh"], tmp_path, PATH=f"{this}/bin:{elsewhere}", CDPATH="/")
    assert found == str(this / "python/bin/python3")


def test_launcher_hands_on_nothing_that_is_for_another_python(tmp_path: Path) -> None:
    """Even with -I, PYTHONEXECUTABLE is what sys.executable says, and with it every child is another program."""
    given = {f"PYTHON{name}": str(tmp_path) for name in VARIABLES}
    one = folder(tmp_path / "one")
    assert start([str(one / "bin/refit-agent")], tmp_path, **given)[2:] == []
