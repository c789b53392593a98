"""The option ``--public-key``: which keys must have signed a bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from refit_agent.errors import SettingInvalid
from refit_agent.signature import KEY_HINT, parse_key

Function = TypeVar("Function", bound=Callable[..., Any])
_MOST_BYTES = 64 << 10


def public_key_option(function: Function) -> Function:
    """The option, which may be given several times, as ``public_key``; `pinned_keys` makes keys of it."""
    return click.option(
        "--public-key",
        multiple=True,
        metavar="KEY",
        help="Take the bundle only if this key (ed25519:..., or a file of such lines) signed it; more than one: any of them.",
    )(function)


def pinned_keys(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """The keys that the option's values name, None if it was not given.

    Raises:
        SettingInvalid: one is no key, nor a file with one.
    """
    if not values:
        return None
    keys: list[str] = []
    for value in values:
        keys += [value] if value.startswith("ed25519:") else _lines(value)
    for key in keys:
        parse_key(key)
    return tuple(keys)


def _lines(path: str) -> list[str]:
    wanted = "a key that begins with 'ed25519:', nor a file that holds such keys, one a line"
    try:
        with open(path, encoding="ascii") as file:
            lines = [line.strip() for line in file.read(_MOST_BYTES).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingInvalid(name="--public-key", value=path, wanted=wanted, hint=KEY_HINT) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not all(key.startswith("ed25519:") for key in keys):
        raise SettingInvalid(name="--public-key", value=path, wanted=wanted, hint=KEY_HINT)
    return keys
