"""The copyright file of a package, in Debian's machine-readable form (DEP-5), from the licences in the folder."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import folder

_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: refit-agent
Comment: Made from the standalone folder of Refit Agent, which holds the parts of other projects named below.
"""
_PLACE = "usr/lib/refit-agent"
#: Below /usr/lib/refit-agent; what no other paragraph names is ours.
_OURS = """
Files: *
Copyright: the authors of Refit Agent
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
"""
_LINE = re.compile(r"^.{0,8}(copyright\b.*(?:\d{4}|\(c\)|\u00a9).*)$", re.IGNORECASE)


#: Distributions whose modules are not called like them.
_MODULES = {
    "attrs": ("attr", "attrs"),
    "cffi": ("cffi", "_cffi_backend"),
    "nvidia-ml-py": ("pynvml", "example"),
    "pynacl": ("nacl",),
}
#: Texts that Debian has in /usr/share/common-licenses, by their first and last words.
_COMMON = {
    "Apache-2.0": r"Apache License\s+Version 2\.0, January 2004.*?additional\s+liability\.(?:\s+END OF TERMS AND CONDITIONS)?",
    "GPL-3": r"GNU GENERAL PUBLIC LICENSE\s+Version 3, 29 June 2007.*?END OF TERMS AND CONDITIONS",
}


def text(built: folder.Built, part: str) -> str:
    """The whole file: one paragraph, with files, holders and licence, for each component of the part."""
    components: dict[str, list[Path]] = {}
    for component, path in built.licences(part):
        components.setdefault(component, []).append(path)
    components.pop("refit-agent", None)
    names = [name for name, _ in built.files(part)]
    paragraphs, claimed = [_HEAD, _OURS], []
    # The last paragraph that matches a file counts: Python, whose folder holds others' libraries, goes first.
    for component in sorted(components, key=lambda c: (c != "python", c)):
        texts = [path.read_text("utf-8", errors="replace") for path in components[component]]
        patterns = _patterns(component, names, built.libraries)
        if not patterns:
            raise folder.FolderError(f"no file of {component} was found; copyright_file.py must be told its modules")
        paragraphs.append(_paragraph(component, patterns, texts))
        claimed += patterns
    for name in names:
        others = name.startswith("lib/") and not name.startswith(("lib/refit_agent", "lib/refit_service"))
        if others and not any(fnmatch.fnmatchcase(f"{_PLACE}/{name}", pattern) for pattern in claimed):
            raise folder.FolderError(
                f"{name} is of no component that has a licence; copyright_file.py must be told whose it is"
            )
    return "".join(paragraphs)


def _patterns(component: str, names: list[str], libraries: dict[str, str]) -> list[str]:
    """Which files of the package are the component's, as DEP-5 patterns; ``libraries`` maps file to Debian package."""
    if component == "python":
        return [f"{_PLACE}/python/*"]
    ours = [f"{_PLACE}/{name}" for name, package in libraries.items() if package == component]
    stem = component.replace("-", "_")
    # The names of NVIDIA's distributions end in the CUDA version, those of their modules do not.
    modules = _MODULES.get(component, (re.sub(r"_cu\d+(?=_|$)", "", stem),))
    for module in (*modules, stem):
        below = [n for n in names if re.match(rf"lib/{re.escape(module)}(?![a-z0-9_])", n, re.IGNORECASE)]
        tops = {"/".join(n.split("/")[: module.count("/") + 2]) for n in below}
        ours += [f"{_PLACE}/{top}" if top in below else f"{_PLACE}/{top}/*" for top in sorted(tops)]
    return list(dict.fromkeys(ours))


def _paragraph(component: str, files: list[str], texts: list[str]) -> str:
    licence = "\n\n".join(text.strip("\n") for text in texts)
    holders = _holders(licence) or ["see the text of the licence"]
    for name, whole in _COMMON.items():
        there = f"On Debian systems the text is in /usr/share/common-licenses/{name}."
        licence = re.sub(whole, there, licence, flags=re.DOTALL)
    return (
        f"\nFiles: {_continued(files)}\nCopyright: {_continued(holders)}\n"
        f"License: {_short_name(component)}\n{_indented(licence)}\n"
    )


def _holders(licence: str) -> list[str]:
    """The lines that claim a copyright, each once, in their order."""
    found = (match[1].strip() for line in licence.splitlines() if (match := _LINE.match(line.strip())))
    return list(dict.fromkeys(found))


def _short_name(component: str) -> str:
    """One of its own for each component: two texts of one licence differ in their names, and both must be shown."""
    return "licence-of-" + re.sub(r"[^A-Za-z0-9.+-]", "-", component)


def _continued(lines: list[str]) -> str:
    return "\n ".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f" {line}" if line.strip() else " ." for line in text.expandtabs().splitlines())
