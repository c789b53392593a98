"""Settings files of a test's own, for this process and for those that it starts."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from refit_agent import settings_file

#: Runs in every Python that has this folder on its path: the machine's folder is elsewhere, its administrator the tester.
_SITE = """
from refit_agent import settings_file
settings_file.MACHINE_FOLDER = {folder!r}
settings_file._ROOT = {user}
"""


class SettingsFiles:
    """The three files; a text given to one of them is its new content."""

    def __init__(self, root: Path) -> None:
        self.machine_folder = root / "etc" / "refit-agent"
        self.user_folder = root / "config" / "refit-agent"
        self.policy_path = self.machine_folder / "policy.toml"
        self.machine_path = self.machine_folder / "settings.toml"
        self.user_path = self.user_folder / "settings.toml"
        self.site = root / "site"
        for folder in (self.machine_folder, self.user_folder, self.site):
            folder.mkdir(parents=True)
        text = _SITE.format(folder=str(self.machine_folder), user=os.geteuid())
        (self.site / "sitecustomize.py").write_text(text)

    def policy(self, text: str) -> Path:
        return _write(self.policy_path, text)

    def machine(self, text: str) -> Path:
        return _write(self.machine_path, text)

    def user(self, text: str) -> Path:
        return _write(self.user_path, text)

    def use(self, monkeypatch: pytest.MonkeyPatch) -> SettingsFiles:
        """In this process and, by its environment, in its children."""
        monkeypatch.setattr(settings_file, "MACHINE_FOLDER", str(self.machine_folder))
        monkeypatch.setattr(settings_file, "_ROOT", os.geteuid())
        monkeypatch.setenv("XDG_CONFIG_HOME", str(self.user_folder.parent))
        path = [str(self.site), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
        return self


def _write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text))
    path.chmod(0o644)
    return path
