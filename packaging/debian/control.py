"""What Debian wants to be told about each package: control fields and changelog."""

from __future__ import annotations

import email.utils
import re
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One of the packages; ``part`` is the part of the standalone folder that it holds."""

    name: str
    part: str
    section: str
    summary: str
    description: str
    #: Further control fields, with {version} for this build's version.
    relations: tuple[tuple[str, str], ...]
    conffiles: tuple[str, ...] = ()


_WHAT = (
    "Refit Agent finds the GPU, picks the matching weight-stripped TensorRT engine from an app's bundle, puts the "
    "weights back from the bundle's ONNX file, and keeps the finished engine in a cache."
)
PACKAGES = (
    Package(
        "refit-agent",
        "core",
        "utils",
        "puts the weights back into weight-stripped TensorRT engines",
        _WHAT + "\n\nThis package has the command refit-agent, a socket-activated service for each user, and an "
        "embedded Python. It needs at least one runtime: refit-agent-tensorrt-lean for NVIDIA GPUs, "
        "refit-agent-onnxruntime for machines without one.",
        (
            ("Recommends", "refit-agent-onnxruntime | refit-agent-tensorrt-lean, ca-certificates"),
            ("Suggests", "refit-agent-tensorrt-lean"),
        ),
        conffiles=("etc/refit-agent/settings.toml",),
    ),
    Package(
        "refit-agent-tensorrt-lean",
        "tensorrt-lean",
        "non-free/libs",
        "TensorRT lean runtime for Refit Agent",
        _WHAT + "\n\nThis package has NVIDIA's lean runtime of TensorRT and its bindings, for machines with an "
        "NVIDIA GPU. The driver must be there already.",
        (("Enhances", "refit-agent"),),
    ),
    Package(
        "refit-agent-onnxruntime",
        "onnxruntime",
        "libs",
        "ONNX Runtime for Refit Agent",
        _WHAT + "\n\nThis package has ONNX Runtime, for engines that run on the CPU.",
        (("Enhances", "refit-agent"),),
    ),
)


#: Newest symbol version -> the libstdc++6 that brought it, from GCC's table of ABI versions.
_LIBSTDCXX = (
    ("3.4.21", "5.1"),
    ("3.4.22", "6.1"),
    ("3.4.24", "7.2"),
    ("3.4.25", "8.1"),
    ("3.4.28", "9.3"),
    ("3.4.29", "11"),
    ("3.4.30", "12"),
    ("3.4.33", "14"),
    ("3.4.34", "15"),
)


def depends(glibc: str, glibcxx: str) -> str:
    """The system's libraries, for what the folder's programs ask of them. Raises LookupError: not known that new."""
    asked = _numbers(glibcxx)
    for symbols, package in _LIBSTDCXX:
        if asked <= _numbers(symbols):
            return f"libc6 (>= {glibc}), libgcc-s1, libstdc++6 (>= {package})"
    raise LookupError(f"control.py does not know which libstdc++6 has GLIBCXX_{glibcxx}")


def fields(package: Package, version: str, maintainer: str, installed_kib: int, depends: str) -> str:
    """The control file; ``depends`` are the system's libraries."""
    if package.part != "core":
        # The very same build: the parts were tried together, and share one Python.
        depends = f"refit-agent (= {version}), {depends}"
    lines = [
        ("Package", package.name),
        ("Version", version),
        ("Architecture", "amd64"),
        ("Maintainer", maintainer),
        ("Installed-Size", str(installed_kib)),
        ("Depends", depends),
        *package.relations,
        ("Section", package.section),
        ("Priority", "optional"),
        ("Description", package.summary),
    ]
    return "".join(f"{name}: {value}\n" for name, value in lines) + _folded(package.description)


def changelog(package: Package, version: str, maintainer: str, markdown: str, date: int) -> str:
    """Debian's changelog, with the newest section of CHANGELOG.md as its one entry."""
    sections = re.split(r"^## .*$", markdown, flags=re.MULTILINE)
    points = re.split(r"^- ", sections[1], flags=re.MULTILINE)[1:] if len(sections) > 1 else ["New version."]
    entries = [
        textwrap.fill(" ".join(p.split()), 78, initial_indent="  * ", subsequent_indent="    ", break_long_words=False)
        for p in points
    ]
    when = email.utils.formatdate(date)
    head = f"{package.name} ({version}) unstable; urgency=medium"
    return "\n".join([head, "", *entries, "", f" -- {maintainer}  {when.replace('-0000', '+0000')}", ""])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _folded(text: str) -> str:
    """The long description: lines begin with a space, an empty one is a dot."""
    paragraphs = [textwrap.wrap(p, 76, break_on_hyphens=False) for p in text.split("\n\n")]
    return " .\n".join("".join(f" {line}\n" for line in lines) for lines in paragraphs)
