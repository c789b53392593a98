"""What the tests of the Debian packages share: the packages, and a stand-in for the standalone folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "packaging/debian/build.py"
UNITS = ROOT / "packaging/systemd"


#: What the packages are made from.
SOURCES = ("agent", "service", "packaging/debian", "packaging/standalone", "packaging/systemd")


def newer_source(dist: Path) -> Path | None:
    """A source file that was changed after the packages in ``dist``, or the folder there that they are made from, were
    made: a test of those would be one of another program. None if all is older, or nothing is there."""
    made = [p.stat().st_mtime for p in dist.glob("*.deb")]
    # Its files have the date that the build gives them; when they were written, this one says.
    made += [p.stat().st_ctime for p in dist.glob("refit-agent-*/share/refit-agent/parts.json")]
    files = [p for s in SOURCES for p in (ROOT / s).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    newest = max(files, key=lambda p: p.stat().st_mtime)
    return newest if made and newest.stat().st_mtime > min(made) else None


def build_packages(dist: Path, output: Path, *options: str) -> list[Path]:
    """Run the build as a user would; gives the packages, core first."""
    command = [sys.executable, BUILD, "--dist", dist, "--output", output, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=scrubbed())
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def scrubbed() -> dict[str, str]:
    """The environment without what would change a build or the program."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT", "SOURCE_DATE", "PYTHON", "XDG_"))}


def make_fake_folder(dist: Path) -> Path:
    """A standalone folder of the right shape whose interpreter is the tests' own, with two small parts.

    Modes and dates are those of a careless umask and of now.
    """
    root = dist / "refit-agent-0.1.0-linux-x86_64"
    more = dist / "refit-agent-onnxruntime-0.1.0-linux-x86_64"
    python = f'#!/bin/sh\nshift 3\nexec "{sys.executable}" -B "$@"\n'
    core = {
        "bin/refit-agent": '#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/../python/bin/python3" "$@"\n',
        "python/bin/python3": python,
        "lib/click/core.pyc": "code",
        "lib/click-8.1.8.dist-info/METADATA": "Name: click\n",
        "lib/refit_agent_start.pyc": "start",
        "share/refit-agent/licences/click/LICENSE.txt": "Copyright 2014 Somebody\n\nDo as you like.\n",
        "share/refit-agent/sbom.cdx.json": "{}",
    }
    ort = {
        "lib/onnxruntime/__init__.py": "",
        "share/refit-agent/licences/onnxruntime/LICENSE": "MIT License\n\nCopyright (c) Some Corporation\n",
    }
    names = {"core": sorted(core), "tensorrt-lean": [], "onnxruntime": sorted(ort)}
    parts = {"version": "0.1.0", "glibc": "2.34", "glibcxx": "3.4.28", "parts": names}
    core["share/refit-agent/parts.json"] = json.dumps(parts)
    for folder, files in ((root, core), (more, ort)):
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o775 if "/bin/" in f"/{name}" else 0o664)
    return root
