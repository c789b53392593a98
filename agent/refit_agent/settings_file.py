"""The settings files of this machine and of this user: where they are, whether to believe them, what they hold.

    policy.toml     beside the machine's file; the administrator's word, which nothing overrides
    settings.toml   the user's own
    settings.toml   the machine's, for users who say nothing else

The machine's files are in /etc, on macOS in /Library, and on Windows where the registry says (REGISTRY_PLACE): any user
may make a folder in %ProgramData%, and so a policy for everybody.

Each is one flat TOML table. A file that is there and cannot be believed or understood is an error and never skipped:
it may hold a restriction. Nothing is read at import. A file is read again when it was replaced or changed, which one
`stat` tells; where there is none, it costs that `stat`, and of the machine's files a look whether a link stands there.
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
#: Names the machine's folder on Windows, as a text (REG_SZ). Only administrators can write there.
_REGISTRY_KEY, _REGISTRY_VALUE = r"SOFTWARE\refit-agent", "MachineFolder"
REGISTRY_PLACE = rf"HKLM\{_REGISTRY_KEY}\{_REGISTRY_VALUE}"
#: Root's own, wherever it is seen from; holds the number that the kernel shows for users who have none there.
_OVERFLOW_FILE = "/proc/sys/kernel/overflowuid"
_MOST_BYTES = 64 << 10
#: O_NONBLOCK: a FIFO in this place must not hold the caller for ever.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_Identity = tuple[int, ...]


class SettingsFile(NamedTuple):
    """One file that is there; ``values`` are as TOML has them, not looked at yet."""

    kind: Kind
    path: str
    values: Mapping[str, object]


_read: dict[str, tuple[_Identity, SettingsFile]] = {}


def path_of(kind: Kind, environ: Mapping[str, str] | None = None) -> str:
    """Where the file belongs, whether or not there is one; "" for a machine's file on a Windows whose registry names
    no folder for it, which has none then. Raises SettingsFileInvalid, for what the registry says."""
    if kind == "user":
        return os.path.join(_user_folder(os.environ if environ is None else environ), "settings.toml")
    folder = _registered_folder(kind) if sys.platform == "win32" else MACHINE_FOLDER
    if not folder:
        return ""
    return f"{folder}/policy.toml" if kind == "policy" else f"{folder}/settings.toml"


def read(kind: Kind, environ: Mapping[str, str] | None = None) -> SettingsFile | None:
    """The file of that kind, None if there is none. Safe from any thread.

    Raises:
        SettingsFileInvalid: it cannot be read, is no TOML, or is a machine's file that somebody but the
            administrator could have written, or a link of the machine's that leads nowhere.
    """
    path = path_of(kind, environ)
    if not path:
        return None
    try:
        identity = _identity(os.stat(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        _require_none(kind, path, error)
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
        fd = os.open(path, OPEN_FLAGS)
    except FileNotFoundError as error:  # removed this moment
        _require_none(kind, path, error)
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


def _require_none(kind: Kind, path: str, error: OSError) -> None:
    """Return if nobody put anything in the place of the file. A link says that the administrator wanted one: with its
    other end on a disk that is not there, what it forbids must not become allowed."""
    for place in () if kind == "user" else (path, os.path.dirname(path)):
        if os.path.islink(place) and not os.path.exists(place):
            raise _invalid(kind, path, f"{place} is a link that leads nowhere") from error


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
    if status.st_uid != _ROOT and not _is_hidden_root(status.st_uid):
        return f"it belongs to user {status.st_uid} and must belong to root"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others than root may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _is_hidden_root(uid: int) -> bool:
    """Whether that is the number under which root's files are seen here: in a user namespace without root, as of a
    rootless container or a sandbox, that of all who have none there. The mode still tells whether they may write."""
    try:
        with open(_OVERFLOW_FILE, "rb") as file:
            return int(file.read(32)) == uid == os.fstat(file.fileno()).st_uid
    except (OSError, ValueError):
        return False


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


def _registered_folder(kind: Kind) -> str:
    """The machine's folder as the registry's half that only administrators write has it; "" if it names none.

    Raises SettingsFileInvalid: it names what is no folder's whole path, or cannot be asked.
    """
    if sys.platform != "win32":
        raise AssertionError("asked for on Windows alone")
    try:
        import winreg

        # The one and only half: a Python of 32 bits would be shown another one.
        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _REGISTRY_KEY, 0, access) as key:
            folder, form = winreg.QueryValueEx(key, _REGISTRY_VALUE)
    except (ImportError, FileNotFoundError):  # ImportError where a test plays Windows
        return ""
    except OSError as error:
        raise _invalid(kind, REGISTRY_PLACE, error.strerror) from error
    # Not REG_EXPAND_SZ: whoever starts a program says what is in its environment.
    if form != winreg.REG_SZ or not os.path.isabs(folder) or "\0" in folder:
        raise _invalid(kind, REGISTRY_PLACE, "it must be a text (REG_SZ), the whole path of a folder")
    return str(folder)
