"""Every setting: its name, its variable, its form in TOML and as text, and its default. What decides on it is said in
`settings`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import NamedTuple

from refit_agent.errors import SettingInvalid

#: A quota below it is a slip of the pen.
_LEAST_BYTES = 10_000
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: Where weights may be fetched from when nobody said otherwise: what is encrypted, and asks for credentials of its own.
DEFAULT_PROTOCOLS = frozenset({"https", "s3", "gs", "gcs", "az", "abfs", "abfss"})
DEFAULT_BUSY_PERCENT = 20


class Hours(NamedTuple):
    """A part of every day, in minutes from midnight; it begins the evening before if ``start`` is after ``end``."""

    start: int
    end: int

    def contain(self, minute: int) -> bool:
        """Whether that minute of the day belongs to it."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        return "-".join(f"{m // 60:02}:{m % 60:02}" for m in self)


class WrongForm(Exception):  # noqa: N818 - no error that anybody is shown
    """A value is not of the wanted form."""


class Key(NamedTuple):
    """One setting. ``decode`` makes its value of TOML's, and of what ``split`` makes of the variable's text. ``wanted``
    says what TOML may hold, and the variable too unless ``wanted_text`` says otherwise."""

    variable: str
    wanted: str
    default: object
    decode: Callable[[object], object]
    split: Callable[[str], object] = str
    #: Whether a variable that is set to nothing says something: an empty list does.
    empty_counts: bool = False
    wanted_text: str = ""


def parse_size(text: str, name: str = "the size") -> int:
    """Bytes of a size such as "500M" or "20G" (powers of 1024). Raises SettingInvalid."""
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    try:
        count = float(number) * _UNITS[unit]
        # Up: half a byte is too little for anything, but it is not none.
        value = math.ceil(count)
    except (ValueError, OverflowError):
        count = value = -1
    if count < 0:
        raise SettingInvalid(name=name, value=text, wanted="a size such as 500M or 20G")
    return value


# ---------------------------------------------------------------- the forms


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise WrongForm
    size = parse_size(str(value))
    # Somebody who writes 20, or 20B, does not mean 20 bytes, in which no engine would stay.
    if 0 < size < _LEAST_BYTES:
        raise WrongForm
    return size


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v and "\0" not in v for v in value):
        raise WrongForm
    return tuple(value)


def _keys(value: object) -> tuple[str, ...]:
    from refit_agent.signature import parse_key  # few machines have this setting

    keys = _texts(value)
    for key in keys:
        parse_key(key)
    return keys


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise WrongForm
    return value


def _switch_of_text(text: str) -> object:
    # Anything else stays what it is, and is refused: "no" must neither turn on nor be passed over.
    return {"1": True, "true": True, "0": False, "false": False}.get(text.strip().lower(), text)


def _percent(value: object) -> int:
    # From the environment it comes as text.
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 101:
        raise WrongForm
    return number


def _hours(value: object) -> Hours:
    if not isinstance(value, str):
        raise WrongForm
    start, _, end = value.partition("-")
    hours = Hours(_minute(start), _minute(end))
    if hours.start == hours.end or hours.start >= 24 * 60:
        raise WrongForm
    return hours


def _minute(text: str) -> int:
    hour, colon, minute = text.strip().partition(":")
    digits = hour + minute
    if not colon or len(minute) != 2 or len(hour) not in (1, 2) or not (digits.isascii() and digits.isdecimal()):
        raise WrongForm
    if int(minute) > 59 or int(hour) * 60 + int(minute) > 24 * 60:
        raise WrongForm
    return int(hour) * 60 + int(minute)


def _folder(value: object) -> str:
    if not isinstance(value, str) or "\0" in value or not (os.path.isabs(value) or value.startswith("~")):
        raise WrongForm
    rest = value.replace("{user}", "")
    # Not "~somebody": what is below another user's home is not this one's.
    if "{" in rest or "}" in rest or (value.startswith("~") and value[1:2] not in ("", "/", os.sep)):
        raise WrongForm
    return value


def _folder_of_text(text: str) -> str:
    # Whoever starts a program stands somewhere; a file does not.
    return text if text.startswith("~") else os.path.abspath(text)


def _folders(value: object) -> tuple[str, ...]:
    return tuple(_folder(v) for v in _texts(value))


def _by_comma(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _by_path_separator(text: str) -> list[str]:
    return [part for part in text.split(os.pathsep) if part]


_FOLDER = "an absolute path or one that begins with ~/, with {user} for the user's name if wanted"
_SWITCH_TEXTS = "1, 0, true or false"
#: By name, in the order in which they are shown.
KEYS: dict[str, Key] = {
    "cache_dir": Key("REFIT_AGENT_CACHE_DIR", _FOLDER, None, _folder, _folder_of_text),
    "cache_quota": Key("REFIT_AGENT_CACHE_QUOTA", "a size such as 500M or 20G", None, _size),
    "fetch": Key(
        "REFIT_AGENT_FETCH", "a list of kinds of URLs such as 'https'", tuple(sorted(DEFAULT_PROTOCOLS)), _texts,
        _by_comma, empty_counts=True,
    ),
    "public_keys": Key(
        "REFIT_AGENT_PUBLIC_KEYS", "a list of keys, each 'ed25519:' and 32 bytes in base64", None, _keys,
        _by_comma, empty_counts=True,
    ),
    "register_from": Key(
        "REFIT_AGENT_REGISTER_FROM", f"a list of folders, each {_FOLDER}", None, _folders,
        _by_path_separator, empty_counts=True,
    ),
    "warm": Key(
        "REFIT_AGENT_WARM", "true or false", True, _switch, _switch_of_text, wanted_text=_SWITCH_TEXTS
    ),
    "warm_on_battery": Key(
        "REFIT_AGENT_WARM_ON_BATTERY", "true or false", False, _switch, _switch_of_text, wanted_text=_SWITCH_TEXTS
    ),
    "warm_busy_percent": Key(
        "REFIT_AGENT_WARM_BUSY_PERCENT", "a percentage from 0 to 101 (101: never too busy)", DEFAULT_BUSY_PERCENT, _percent
    ),
    "warm_between": Key("REFIT_AGENT_WARM_BETWEEN", "hours of the day such as 22:00-06:00", None, _hours),
}  # fmt: skip
