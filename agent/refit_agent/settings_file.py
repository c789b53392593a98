"""The settings files of this machine and of this user: where they are, whether to believe them, what they hold.

    policy.toml     beside the machine's file; the administrator's word, which nothing overrides
    settings.toml   the user's own
    settings.toml   the machine's, for users who say nothing else

Each is one flat TOML table. A file that is there and cannot be believed or understood is an error and never skipped:
it may hold a restriction. Nothing is read at import. A file is read again when it was replaced or changed, which one
`stat` tells; where there is none, that `stat` is all it costs.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from typing import Literal, NamedTuple

from refit_agent.errors import SettingInvalid, SettingsFileInvalid

Kind = Literal["policy", "user", "machine"]
#: In the order in which they count; the environment comes after the policy.
KINDS: tuple[Kind, ...] = ("policy", "user", "machine")
#: Not XDG_CONFIG_DIRS or %ProgramData%: whoever starts a program says what is in its environment.
MACHINE_FOLDER = "/Library/Application Support/refit-agent" if sys.platform == "darwin" else "/etc/refit-agent"
#: Who writes the machine's files.
_ROOT = 0
_MOST_BYTES = 64 << 10
#: O_NONBLOCK: a FIFO in this place must not hold the caller for ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_Identity = tuple[int, ...]


class SettingsFile(NamedTuple):
    """One file that is there; ``values`` are as TOML has them, not looked at yet."""

    kind: Kind
    path: str
    values: Mapping[str, object]


_read: dict[str, tuple[_Identity, SettingsFile]] = {}


def path_of(kind: Kind, environ: Mapping[str, str] | None = None) -> str:
    """Where the file belongs, whether or not there is one."""
    if kind == "user":
        return os.path.join(_user_folder(os.environ if environ is None else environ), "settings.toml")
    folder = _program_data() if sys.platform == "win32" else MACHINE_FOLDER
    return f"{folder}/policy.toml" if kind == "policy" else f"{folder}/settings.toml"


def read(kind: Kind, environ: Mapping[str, str] | None = None) -> SettingsFile | None:
    """The file of that kind, None if there is none. Safe from any thread.

    Raises:
        SettingsFileInvalid: it cannot be read, is no TOML, or is a machine's file that somebody but the
            administrator could have written.
    """
    path = path_of(kind, environ)
    try:
        identity = _identity(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _invalid(kind, path, getattr(error, "strerror", None) or str(error)) from error
    known = _read.get(path)
    if known is not None and known[0] == identity:
        return known[1]
    found = _load(kind, path)
    if found is None:
        return None
    _read[path] = found
    return found[1]


def _load(kind: Kind, path: str) -> tuple[_Identity, SettingsFile] | None:
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except FileNotFoundError:  # removed this moment
        return None
    except OSError as error:
        raise _invalid(kind, path, error.strerror) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _invalid(kind, path, "it is not a regular file")
        fault = "" if kind == "user" else _owner_fault(status)
        if fault:
            raise _invalid(kind, path, fault)
        if status.st_size > _MOST_BYTES:
            raise _invalid(kind, path, f"it is larger than {_MOST_BYTES} bytes")
        data = os.read(fd, _MOST_BYTES + 1)
    except OSError as error:
        raise _invalid(kind, path, error.strerror) from error
    finally:
        os.close(fd)
    return _identity(status), SettingsFile(kind, path, _decode(kind, path, data))


def _decode(kind: Kind, path: str, data: bytes) -> dict[str, object]:
    if all(not line or line.startswith(b"#") for line in map(bytes.strip, data.splitlines())) and data.isascii():
        # The file that the packages install has comments alone: the parser's import would cost every hit 2 ms.
        return {}
    # Imported late: most machines have no such file.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        # Windows' editors begin a file with a byte order mark.
        table: dict[str, object] = tomllib.loads(data.decode("utf-8-sig"))
        _require_plain(table)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, as is that of a number without end
        raise _invalid(kind, path, f"it is not TOML: {error}") from error
    return table


def _require_plain(value: object) -> None:
    """Raise ValueError or RecursionError for what no message could show: numbers of thousands of digits, tables in
    tables without end. TOML itself promises 64 bits."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError("it has a number of more than 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_plain(item)


def _owner_fault(status: os.stat_result) -> str:
    """Why the machine's file is not the administrator's; "" if it is. Windows tells nothing here: there the access
    list of the folder has to be right, see the installer."""
    if sys.platform == "win32":
        return ""
    if status.st_uid != _ROOT:
        return f"it belongs to user {status.st_uid} and must belong to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than root may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _invalid(kind: Kind, path: str, detail: str | None) -> SettingInvalid:
    # Nobody else could mend it; without it in force, nothing that it forbids must happen.
    hint = "Ask the administrator of this machine, who wrote it." if kind == "policy" else ""
    return SettingsFileInvalid(path=path, detail=detail or "it cannot be read", hint=hint)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _user_folder(environ: Mapping[str, str]) -> str:
    # By hand: platformdirs, which agrees, takes longer to import than a hit takes.
    if sys.platform == "win32":
        return os.path.join(environ.get("APPDATA") or os.path.expanduser("~"), "refit-agent")
    if sys.platform == "darwin":
        return os.path.expanduser("~/Library/Application Support/refit-agent")
    given = environ.get("XDG_CONFIG_HOME", "")
    # A relative one is to be ignored, says the XDG specification.
    return os.path.join(given if os.path.isabs(given) else os.path.expanduser("~/.config"), "refit-agent")


def _program_data() -> str:
    """``C:\\ProgramData\\refit-agent``, from the registry's half that only administrators write."""
    if sys.platform != "win32":
        raise AssertionError("asked for on Windows alone")
    name = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Explorer\Shell Folders"
    try:
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, name) as key:
            folder = str(winreg.QueryValueEx(key, "Common AppData")[0])
    except (ImportError, OSError):  # also where a test plays Windows
        folder = r"C:\ProgramData"
    return os.path.join(folder, "refit-agent")
