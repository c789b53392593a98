"""lintian finds nothing in the real packages that is not overridden, with a reason, in packaging/debian/files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from debian_packages import ROOT, build_packages
from standalone_folder import real_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_lintian_finds_nothing_else(tmp_path: Path) -> None:
    """All three packages. Every override matches something, and has a comment before it."""
    if shutil.which("lintian") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("lintian is not installed")
    packages = build_packages(real_folder(), tmp_path / "out", "--level", "0")
    assert len(packages) == 3
    # As root it says that it should not be; that is no tag.
    command = ["lintian", "--tag-display-limit", "0", "--show-overrides", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    told = {" ".join(line.split()[:3]) for line in done.stdout.splitlines() if not line.startswith("N:")}
    assert {line for line in told if not line.startswith("O:")} == set(), done.stderr
    for path in (ROOT / "packaging/debian/files").glob("*.lintian-overrides"):
        before = ""
        for line in path.read_text().splitlines():
            assert line.startswith("#") or before, f"{path.name}: {line} has no reason"
            tag = line.split()[1] if not line.startswith("#") else ""
            assert not tag or f"O: {path.name.removesuffix('.lintian-overrides')}: {tag}" in told, (
                f"{line} is not needed"
            )
            before = line
