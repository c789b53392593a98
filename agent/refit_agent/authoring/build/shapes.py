"""Shapes of inputs as trtexec takes them, ``name:1x3x224x224,other:1x64``, and the optimization profiles made of them.

An equals sign in place of the colon is the same: other tools and other options of ours write it so.

Knows nothing of any model: whether the inputs exist is asked when the network is there.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from refit_agent.authoring.errors import BuildOptionsInvalid

Shape = tuple[int, ...]
Kind = Literal["min", "opt", "max"]

#: Dims::MAX_DIMS of TensorRT.
_MAX_RANK = 8
_MAX_EXTENT = 2**31 - 1
_EXTENT = r"[0-9]+(?:\.\.[0-9]+)?"
#: A name that holds commas, or ends in what reads as a shape, stands in single quotes.
_ENTRY = re.compile(rf"(?:'(?P<quoted>[^']+)'|(?P<plain>[^',]+))[:=](?P<shape>scalar|{_EXTENT}(?:x{_EXTENT})*|)(?=,|$)")
#: It becomes part of a file's name.
_PROFILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest, best and largest shape of one input; for a shape tensor, its values."""

    min: Shape
    opt: Shape
    max: Shape


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One optimization profile: ``shapes`` by input. ``name`` is None for the only one of a build."""

    name: str | None = None
    shapes: dict[str, Range] = {}


def parse_shapes(text: str, option: str) -> dict[str, Shape]:
    """The shapes in ``text``, by input; ``scalar`` or nothing after the colon means rank 0.

    ``option`` is only for the message. Raises BuildOptionsInvalid.
    """
    return {name: _shape(shape, name, option) for name, shape in split_shapes(text, option).items()}


def split_shapes(text: str, option: str) -> dict[str, str]:
    """The same as they are written, where a dimension may be a range such as ``1..8``, for those who take one."""
    text = text.replace("\\'", "'")
    found: dict[str, str] = {}
    at = 0
    while True:
        match = _ENTRY.match(text, at)
        if match is None:
            detail = f"{option} has {text[at:]!r}, which does not begin with a shape such as input:1x3x224x224"
            raise BuildOptionsInvalid(detail=detail)
        name = match["quoted"] or match["plain"]
        if name in found:
            raise BuildOptionsInvalid(detail=f"{option} gives the input {name!r} twice")
        found[name] = match["shape"]
        if match.end() == len(text):
            return found
        at = match.end() + 1


def _shape(text: str, name: str, option: str) -> Shape:
    if text in ("", "scalar"):
        return ()
    if ".." in text:
        raise BuildOptionsInvalid(detail=f"{option} gives {name!r} a range of sizes, {text}, and takes one of each")
    parts = text.split("x")
    # Their length first: Python refuses to read numbers of thousands of digits, with an error of its own.
    if any(len(part) > 10 or int(part) > _MAX_EXTENT for part in parts) or len(parts) > _MAX_RANK:
        detail = f"{option} gives {name!r} a shape beyond TensorRT's limits: {_MAX_RANK} dimensions below 2^31 each"
        raise BuildOptionsInvalid(detail=detail)
    return tuple(int(part) for part in parts)


def make_profile(name: str | None, texts: dict[Kind, str]) -> Profile:
    """The profile ``name`` from what was given as its smallest, best and largest shapes.

    As with trtexec: all three, or the best alone, which then are the smallest and the largest too;
    none at all for a model without dynamic shapes. Raises BuildOptionsInvalid.
    """
    where = "the shapes" if name is None else f"profile {name!r}"
    if name is not None and not _PROFILE_NAME.fullmatch(name):
        detail = f"{name!r} is no name for a profile: letters, digits, dots, dashes and underscores, the first a letter or digit"
        raise BuildOptionsInvalid(detail=detail)
    if not texts:
        return Profile(name=name)
    if set(texts) not in ({"opt"}, {"min", "opt", "max"}):
        given = " and ".join(f"--{kind}-shapes" for kind in ("min", "opt", "max") if kind in texts)
        detail = (
            f"for {where}, give --opt-shapes alone or all of --min-shapes, --opt-shapes and --max-shapes, not {given}"
        )
        raise BuildOptionsInvalid(detail=detail)
    parsed = {kind: parse_shapes(text, f"--{kind}-shapes") for kind, text in texts.items()}
    best = parsed["opt"]
    for kind, shapes in parsed.items():
        odd = sorted(shapes.keys() ^ best.keys())
        if odd:
            detail = f"for {where}, --{kind}-shapes and --opt-shapes do not name the same inputs: {', '.join(odd)}"
            raise BuildOptionsInvalid(detail=detail)
    least, most = parsed.get("min", best), parsed.get("max", best)
    return Profile(name=name, shapes={i: _range(i, least[i], best[i], most[i]) for i in best})


def _range(name: str, least: Shape, best: Shape, most: Shape) -> Range:
    if not len(least) == len(best) == len(most):
        raise BuildOptionsInvalid(detail=f"the three shapes of {name!r} have different numbers of dimensions")
    if any(not a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
        detail = f"the shapes of {name!r} do not ascend: {_text(least)}, {_text(best)}, {_text(most)}"
        raise BuildOptionsInvalid(detail=detail)
    return Range(min=least, opt=best, max=most)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def require_distinct(profiles: tuple[Profile, ...]) -> None:
    """Check that several profiles can be told apart: each has a name of its own. Raises BuildOptionsInvalid."""
    if len(profiles) < 2:
        return
    names = [profile.name for profile in profiles]
    if None in names:
        raise BuildOptionsInvalid(detail="of several profiles each needs a name: give --profile before its shapes")
    # Windows and macOS take two spellings for one file.
    folded = [str(name).lower() for name in names]
    for name, spelling in zip(names, folded, strict=True):
        if folded.count(spelling) > 1:
            raise BuildOptionsInvalid(detail=f"the profile {name!r} stands there twice")
