"""A settings file: every setting of it has a value of its form, or an error that names the file."""

from __future__ import annotations

import logging
import random

import msgspec

from refit_agent import settings, settings_file
from refit_agent.errors import SettingInvalid
from refit_agent.setting_keys import KEYS, Hours

from .. import sandbox

_FOLDER = sandbox.folder("settings")
_PATH = _FOLDER / "refit-agent" / "settings.toml"
_ENVIRONMENT = {"XDG_CONFIG_HOME": str(_FOLDER)}
_WORDS = (*KEYS, "= ", '"', "[", "]", "\n", "true", "1e9", "0x", "9" * 40, "20G", "22:00-06:00", "~/x", "{user}", "inf", "nan", "1979-05-27", "'''", "#", ".")  # fmt: skip

_PATH.parent.mkdir(exist_ok=True)
# Unknown keys are told once each: here every try has others.
logging.getLogger(settings.__name__).disabled = True


def check(data: bytes) -> bool:
    """Ask every setting of a user whose file is ``data``."""
    _PATH.write_bytes(data)
    settings_file._read.clear()
    settings._said.clear()
    sound = True
    for name, key in KEYS.items():
        try:
            found = settings.find(name, _ENVIRONMENT)
        except SettingInvalid as error:
            assert str(_PATH) in str(error)
            msgspec.json.encode(error.facts)
            sound = False
            continue
        assert found.kind in ("user", "default")
        assert isinstance(found.value, (str, int, tuple, frozenset, Hours, type(None))), f"{name} is {found.value!r}"
        assert found.value == key.default or found.kind == "user"
    return sound


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A word put in, or a piece taken out."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(_WORDS).encode() + data[place + rng.choice((0, 0, 1, 4)) :]
