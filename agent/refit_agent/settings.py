"""What decides on each setting (see `setting_keys`), asked anew at each use.

In this order: the machine's policy, the environment, the user's file, the machine's file, the default (see
`settings_file`). The first that has the key decides alone. A value that is wrong there is an error for whoever
needs it, and no reason to take the next one: a restriction must not fall to a slip of the pen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from refit_agent import settings_file
from refit_agent.errors import SettingInvalid
from refit_agent.setting_keys import DEFAULT_PROTOCOLS, KEYS, Hours, WrongForm, parse_size

__all__ = [
    "DEFAULT_DEADLINE_S",
    "DEFAULT_PROTOCOLS",
    "HOME_VARIABLE",
    "KEYS",
    "Found",
    "Hours",
    "cache_dir",
    "cache_quota",
    "fetch_protocols",
    "find",
    "parse_size",
    "public_keys",
    "register_from",
    "unknown_keys",
    "warm_busy_percent",
]

#: Refit and check of the largest engines take minutes on slow disks; more than this is a hang.
DEFAULT_DEADLINE_S = 900.0
HOME_VARIABLE = "REFIT_AGENT_HOME"


class Found(NamedTuple):
    """The value of one setting and what decided on it.

    ``kind`` is "policy", "environment", "user", "machine" or "default"; ``place`` the file or the variable, else "".
    """

    value: object
    kind: str
    place: str

    @property
    def source(self) -> str:
        """What decided, in words."""
        return f"the policy {self.place}" if self.kind == "policy" else self.place or self.kind


_BELOW_ENVIRONMENT: tuple[settings_file.Kind, ...] = ("user", "machine")
_BELOW_USER: tuple[settings_file.Kind, ...] = ("machine",)
_said: set[tuple[str, str]] = set()


def find(name: str, environ: Mapping[str, str] | None = None, *, user_file: bool = True) -> Found:
    """The setting of that name as it is now, for this process's environment (or for ``environ``).

    Without ``user_file`` it is what it would be if the user had no settings file.

    Raises:
        SettingInvalid: a file, or the value that decides, is not what it must be.
    """
    env = os.environ if environ is None else environ
    policy = _file("policy", env)
    if policy is not None and name in policy.values:
        return _from_file(name, policy)
    found = _from_environment(name, env)
    if found is not None:
        return found
    for kind in _BELOW_ENVIRONMENT if user_file else _BELOW_USER:
        file = _file(kind, env)
        if file is not None and name in file.values:
            return _from_file(name, file)
    return Found(KEYS[name].default, "default", "")


def unknown_keys(file: settings_file.SettingsFile) -> list[str]:
    """The keys of the file that this version does not know; a newer one may."""
    return sorted(set(file.values) - set(KEYS))


def _file(kind: settings_file.Kind, env: Mapping[str, str]) -> settings_file.SettingsFile | None:
    file = settings_file.read(kind, env)
    if file is not None and not file.values.keys() <= KEYS.keys():
        _say_unknown(file.path, ", ".join(map(repr, unknown_keys(file))))
    return file


def _say_unknown(path: str, names: str) -> None:
    if (path, names) in _said:
        return
    _said.add((path, names))
    # The plain logger: structlog is slow to import, and the service has not set up its own yet.
    import logging

    logging.getLogger(__name__).warning("%s has settings that this refit-agent does not know: %s", path, names)


def _from_file(name: str, file: settings_file.SettingsFile) -> Found:
    given = file.values[name]
    value = _decoded(name, given, f"{name} in {file.path}", given, KEYS[name].wanted)
    return Found(value, file.kind, file.path)


def _from_environment(name: str, env: Mapping[str, str]) -> Found | None:
    key = KEYS[name]
    text = env.get(key.variable)
    if text or (text is not None and key.empty_counts):
        value = _decoded(name, key.split(text), key.variable, text, key.wanted_text or key.wanted)
        return Found(value, "environment", key.variable)
    root = env.get(HOME_VARIABLE) if name == "cache_dir" else None
    if root:
        place = os.path.join(os.path.abspath(os.path.expanduser(root)), "cache")
        return Found(place, "environment", HOME_VARIABLE)
    return None


def _decoded(name: str, value: object, where: str, shown: object, wanted: str) -> object:
    try:
        return KEYS[name].decode(value)
    except (WrongForm, SettingInvalid) as error:
        # TOML knows dates, too, and facts have to go through JSON.
        plain = shown if isinstance(shown, (str, int, float)) else str(shown)
        raise SettingInvalid(name=where, value=plain, wanted=wanted) from error


# ---------------------------------------------------------------- the settings, one by one


def cache_dir(environ: Mapping[str, str] | None = None, *, user_file: bool = True) -> str | None:
    """The cache's folder, absolute, or None for the system's place; ``user_file`` as for `find`."""
    found = find("cache_dir", environ, user_file=user_file)
    if found.value is None or found.place == HOME_VARIABLE:
        return None if found.value is None else str(found.value)
    return _expanded(str(found.value), by_account=found.kind == "policy")


def cache_quota() -> int | None:
    """The cache's limit in bytes, or None for the default."""
    value = find("cache_quota").value
    return value if isinstance(value, int) else None


def fetch_protocols() -> frozenset[str]:
    """Kinds of URLs that weights may be fetched from; none at all if it is empty."""
    return frozenset(_as_texts(find("fetch").value))


def public_keys() -> tuple[tuple[str, ...] | None, str]:
    """The keys one of which must have signed every bundle that is used on this machine, None if any bundle will do;
    and what says so."""
    found = find("public_keys")
    return (None if found.value is None else _as_texts(found.value)), found.source


def register_from() -> tuple[tuple[str, ...] | None, str]:
    """The folders, absolute, from which bundles may be registered, None for everywhere; and what says so."""
    found = find("register_from")
    if found.value is None:
        return None, found.source
    by_account = found.kind == "policy"
    return tuple(_expanded(f, by_account=by_account) for f in _as_texts(found.value)), found.source


def warm_busy_percent() -> int:
    """From which GPU utilisation on nothing is made in the background; 101 for never."""
    value = find("warm_busy_percent").value
    assert isinstance(value, int)
    return value


def _as_texts(value: object) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return value


def _expanded(path: str, *, by_account: bool) -> str:
    """``path`` with the user's home and name in their places. ``by_account`` takes the home from the system's
    accounts, not from the environment: a policy is not to be moved by a variable."""
    if path.startswith("~"):
        home = (_account("pw_dir") if by_account else "") or os.path.expanduser("~")
        path = home + path[1:]
    if "{user}" in path:
        path = path.replace("{user}", _account("pw_name") or _number())
    return os.path.abspath(path)


def _account(field: str) -> str:
    try:
        import pwd
    except ImportError:  # Windows
        return os.environ.get("USERNAME", "") if field == "pw_name" else ""
    try:
        return str(getattr(pwd.getpwuid(os.geteuid()), field))
    except KeyError:  # a container's user without an account
        return ""


def _number() -> str:
    return str(os.geteuid()) if hasattr(os, "geteuid") else "user"
