"""How to get what is missing, in the words for how refit-agent itself is installed: by pip, or as the standalone folder
(also in the Debian packages), which has no pip. Imported only where something is missing."""

from __future__ import annotations

import functools
import os
import sys

_PIP, _UPGRADE = "pip install 'refit-agent[", "pip install -U 'refit-agent["
_PARTS = {"cpu": "onnxruntime", "cu12": "tensorrt-lean", "cu13": "tensorrt-lean"}
#: What is in every folder, so that only a damaged one lacks it.
_ALWAYS = frozenset({"service", "signing"})


@functools.cache
def in_folder() -> bool:
    """Whether this is the standalone folder: its packages are in lib, beside the folder of the running Python."""
    lib = os.path.join(os.path.dirname(os.path.realpath(sys.prefix)), "lib")
    return os.path.realpath(__file__).startswith(os.path.join(lib, "refit_agent", ""))


def reinstall() -> str:
    """How to put right an installation that lacks a part of itself."""
    if not in_folder():
        return "Reinstall it: pip install --force-reinstall refit-agent"
    words = "Put a new copy of the folder of refit-agent in the place of this one"
    if sys.platform == "linux":
        words += "; if it came as a package: apt reinstall refit-agent"
    return words + "."


def suited(text: str) -> str:
    """The text; in the standalone folder with other words in place of "pip install 'refit-agent[cpu]'" and the like."""
    before, found, rest = text.partition(_UPGRADE if _UPGRADE in text else _PIP)
    if not found or not in_folder():
        return text
    extra, _, after = rest.partition("]'")
    if found == _UPGRADE:
        words = f"update refit-agent with its part {_PARTS.get(extra, extra)}"
    elif extra in _PARTS:
        words = f"add the part {_PARTS[extra]} of this version to the folder of refit-agent"
        if sys.platform == "linux":
            words += f", or install the package refit-agent-{_PARTS[extra]}"
    elif extra in _ALWAYS:
        words = "install refit-agent anew: it is a part of it"
    else:
        words = f"this refit-agent has its own Python and cannot have it; one installed with pip can (extra {extra})"
    for prompt in ("Install it with: ", "Install one: "):
        if before.endswith(prompt):
            before, words = before.removesuffix(prompt), words[0].upper() + words[1:]
    return before + words + after
