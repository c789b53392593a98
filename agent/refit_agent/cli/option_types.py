"""The forms of options that several commands take: what they accept, and the words for what they do not."""

from __future__ import annotations

import math
import re
from typing import Any

import click

#: As `selection.choose` knows them. NVML's UUIDs begin with what they are of; those of older MIG slices have slashes.
_TARGET = re.compile(r"cpu|gpu|cuda(:[0-9]+)?|(?i:gpu|mig)-[^\s,]+")


class Target(click.ParamType):  # type: ignore[type-arg]  # before click 8.5 it takes none
    """``--target``. Whether the machine has it is not looked at here. ``or_all`` takes "all", too."""

    name = "target"

    def __init__(self, *, or_all: bool = False) -> None:
        self._or_all = or_all

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As click wants it."""
        if not _TARGET.fullmatch(value) and not (self._or_all and value == "all"):
            known = "cpu, gpu, cuda:N or a GPU's UUID (GPU-... or MIG-...)" + (", or all" if self._or_all else "")
            self.fail(f"{value!r} is no target: give {known}.", param, ctx)
        return str(value)


class Seconds(click.FloatRange):
    """A number of seconds, as of ``--deadline``; limits as of `click.FloatRange`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click wants it."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isnan(number):  # it would be neither below nor above any limit
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return super().convert(value, param, ctx)
