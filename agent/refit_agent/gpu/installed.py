"""Which runtimes a worker could import, read off folder names: nothing is imported or executed.

Importing a runtime to ask its version would load CUDA into the caller, and importlib.metadata costs
30 ms; pip writes the version into the name of the dist-info folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from refit_agent.machine import InstalledRuntime, version_tuple

MODULES = ("tensorrt_lean", "tensorrt", "tensorrt_rtx", "onnxruntime")

#: Distributions that put the module itself on disk, by normalised name. A pattern any wider would take
#: onnxruntime-extensions, tensorrt-dispatch or torch-tensorrt for a runtime.
_DISTRIBUTION = (
    r"(?P<module>tensorrt_lean|tensorrt_rtx|tensorrt)(?:_cu(?P<cuda>\d+))?(?P<kind>_bindings|_libs)?"
    r"|(?P<ort>onnxruntime)"
    r"(?:_(?:gpu|directml|openvino|qnn|rocm|migraphx|silicon|azure|cann|vitisai|training|training_cpu|noopenmp))?"
)
_VERSION = rb"""^__version__\s*(?::[^=\n]*)?=\s*["']([^"'\n]{1,60})["']"""
_MOST_SOURCE = 1 << 18


class _Distribution(NamedTuple):
    version: str
    cuda_major: int
    bindings: bool


def installed_runtimes(on_path: Iterable[str], apart: Iterable[str] = ()) -> tuple[InstalledRuntime, ...]:
    """Every runtime found: of ``on_path`` the first of each module, as an import would take it; of
    ``apart`` all, with their folder.

    ``version`` is "" where a package gives none. Folders that are missing or unreadable hold nothing.
    Whether a package loads in this Python is not tried here.
    """
    found: dict[str, InstalledRuntime] = {}
    for folder in on_path:
        for runtime in _scan(folder, shown=""):
            found.setdefault(runtime.module, runtime)
    more = [runtime for folder in apart for runtime in _scan(folder, shown=folder)]
    return (*(found[m] for m in MODULES if m in found), *more)


def _scan(folder: str, shown: str) -> list[InstalledRuntime]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    present = set(names)
    modules = [m for m in MODULES if m in present and os.path.isfile(os.path.join(folder, m, "__init__.py"))]
    if not modules:
        return []
    distributions = _distributions(names)
    return [_runtime(folder, shown, module, distributions.get(module, [])) for module in modules]


def _distributions(names: Iterable[str]) -> dict[str, list[_Distribution]]:
    """What the dist-info names in one folder say, by module."""
    pattern = re.compile(_DISTRIBUTION)
    found: dict[str, list[_Distribution]] = {}
    for name in names:
        stem, dot, ending = name.rpartition(".")
        if not dot or ending not in ("dist-info", "egg-info"):
            continue
        distribution, dash, rest = stem.partition("-")
        match = pattern.fullmatch(re.sub(r"[.-]", "_", distribution).lower())
        if match is None or not dash:
            continue
        version = rest.split("-", 1)[0]
        cuda = match["cuda"]
        entry = _Distribution(version, int(cuda) if cuda else 0, match["kind"] == "_bindings")
        found.setdefault(match["module"] or match["ort"], []).append(entry)
    return found


def _runtime(folder: str, shown: str, module: str, distributions: list[_Distribution]) -> InstalledRuntime:
    # The bindings are the module; the metapackages round them may have been left behind by an upgrade.
    telling = [d for d in distributions if d.bindings] or distributions
    versions = {d.version for d in telling}
    version = versions.pop() if len(versions) == 1 else _version_in_source(folder, module)
    if not version and telling:
        version = max((d.version for d in telling), key=version_tuple)
    cudas = {d.cuda_major for d in distributions if d.version == version and d.cuda_major}
    # Two CUDA majors unpacked over one another: which of them lies there cannot be told.
    cuda_major = cudas.pop() if len(cudas) == 1 else 0
    return InstalledRuntime(module=module, version=version, cuda_major=cuda_major, folder=shown)


def _version_in_source(folder: str, module: str) -> str:
    """``__version__`` as the package's own source writes it, or ""."""
    for package in (module, module + "_bindings"):
        for file in ("__init__.py", "version.py", "_version.py"):
            try:
                with open(os.path.join(folder, package, file), "rb") as source:
                    match = re.search(_VERSION, source.read(_MOST_SOURCE), re.MULTILINE)
            except OSError:
                continue
            if match is not None:
                return match[1].decode("ascii", "replace")
    return ""
