"""The settings as they are now, for `refit-agent settings` and `doctor`: none of them keeps the others from being shown."""

from __future__ import annotations

from typing import NamedTuple

from refit_agent import paths, settings, settings_file
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import default_quota
from refit_agent.cli import output
from refit_agent.errors import RefitAgentError

_NONE_GIVEN = {"public_keys": "any bundle", "register_from": "everywhere", "warm_between": "always"}


class SettingState(NamedTuple):
    """One setting: its value as JSON has it and in words, and what decides on it; or what is wrong with it."""

    name: str
    variable: str
    value: object = None
    text: str = ""
    kind: str = ""
    place: str = ""
    source: str = ""
    error: RefitAgentError | None = None

    def document(self) -> dict[str, object]:
        """As a JSON object."""
        error = None if self.error is None else output.describe(self.error)
        return {"name": self.name, "value": self.value, "from": self.kind, "place": self.place, "variable": self.variable, "error": error}  # fmt: skip


class FileState(NamedTuple):
    """One file that was looked for, with the keys in it that this version does not know. Where Windows' registry names
    no folder for it, ``path`` is where in the registry one was looked for."""

    kind: str
    path: str
    found: bool = False
    unknown: tuple[str, ...] = ()
    error: RefitAgentError | None = None

    def document(self) -> dict[str, object]:
        """As a JSON object."""
        error = None if self.error is None else output.describe(self.error)
        return {"kind": self.kind, "path": self.path, "found": self.found, "unknown": list(self.unknown), "error": error}  # fmt: skip


def all_settings() -> list[SettingState]:
    """Every setting, in the order of the documentation."""
    return [_state(name) for name in settings.KEYS]


def all_files() -> list[FileState]:
    """Every settings file that is looked for, the one that counts most first."""
    return [_file(kind) for kind in settings_file.KINDS]


def _state(name: str) -> SettingState:
    variable = settings.KEYS[name].variable
    try:
        found = settings.find(name)
        value, text = _shown(name, found)
    except RefitAgentError as error:
        return SettingState(name, variable, error=error)
    return SettingState(name, variable, value, text, found.kind, found.place, found.source)


def _shown(name: str, found: settings.Found) -> tuple[object, str]:
    """The value as JSON has it, and in words: what holds in the end, not how it was written."""
    value = found.value
    if name == "cache_dir":
        place = paths.home().cache
        return place, place
    if name == "cache_quota":
        quota = settings.cache_quota()
        quota = default_quota(Store(paths.home().cache)) if quota is None else quota
        return quota, output.size_text(quota)
    if name == "register_from" and value is not None:
        value = settings.register_from()[0]
    if value is None:
        return None, _NONE_GIVEN[name]
    if isinstance(value, settings.Hours):
        return str(value), str(value)
    if isinstance(value, tuple):
        return list(value), ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return value, "yes" if value else "no"
    return value, str(value)


def _file(kind: settings_file.Kind) -> FileState:
    path = settings_file.REGISTRY_PLACE
    try:
        path = settings_file.path_of(kind) or path
        file = settings_file.read(kind)
    except RefitAgentError as error:
        return FileState(kind, path, found=True, error=error)
    if file is None:
        return FileState(kind, path)
    return FileState(kind, path, found=True, unknown=tuple(settings.unknown_keys(file)))
