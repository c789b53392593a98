"""The steps of a build, in order."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from standalone import elf, layout, packages, rules
from standalone.checks import check_folder, check_libraries, check_mentions
from standalone.commands import BuildError, run
from standalone.interpreter import Embedded, embed
from standalone.licences import collect
from standalone.packages import Distribution
from standalone.sbom import write_sboms


class Made(NamedTuple):
    """``folders``: the standalone folder, and that of ONNX Runtime. ``parts``: part -> files, relative to its folder."""

    folders: tuple[Path, Path]
    parts: dict[str, tuple[str, ...]]

    def folder_of(self, part: str) -> Path:
        """Where this part's files are."""
        return self.folders[0 if part in layout.IN_FOLDER else 1]


def assemble(work: Path, *, cuda: str, keep_symbols: bool) -> Made:
    """Make both folders below ``work``. Raises BuildError."""
    strip = None if keep_symbols else shutil.which("strip")
    if strip is None and not keep_symbols:
        raise BuildError("`strip` is missing: install binutils, or take --keep-symbols for a larger folder.")
    folder, apart = (work / layout.folder_name(part) for part in (layout.CORE, layout.ORT))
    places = {part: folder if part in layout.IN_FOLDER else apart for part in layout.PARTS}
    _say("tools")
    tools = packages.fetch_tools(work / "tools")
    _say("Python")
    embedded = embed(folder / "python", tools.patchelf, strip)
    _say("packages")
    distributions = packages.unpack(packages.fetch(layout.locks(cuda), work / "wheels", tools), places)
    for place in (folder, apart):
        if strip:
            packages.strip_symbols(place, strip)
    check_libraries(folder, apart)
    check_mentions(embedded.stdlib)
    _say("licences")
    collected = collect(distributions, embedded, places)
    _say("byte code")
    _compile(folder, apart, embedded)
    _start_files(folder, embedded)
    _say("checks")
    check_folder(folder, apart)
    parts = _parts(folder, apart, distributions, collected)
    write_sboms(distributions, embedded, places)
    _write_parts(folder, apart, parts)
    for place in (folder, apart):
        make_uniform(place)
    return Made((folder, apart), parts)


def make_uniform(folder: Path) -> None:
    """The same modes and times for everything, whatever the build machine's habits are."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", layout.DEFAULT_EPOCH))
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        runs = path.is_dir() or path.parent.name == "bin" or elf.is_elf(path)
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch, epoch))


def _start_files(folder: Path, embedded: Embedded) -> None:
    (folder / "bin").mkdir()
    shutil.copyfile(layout.HERE / "launcher.sh", folder / "bin" / "refit-agent")
    (folder / "bin" / "refit-agent").chmod(0o755)
    # As source: what runs it needs no compiled form, and whoever opens it can read it.
    shutil.copyfile(layout.HERE / "refit_agent_start.py", folder / "lib" / "refit_agent_start.py")
    # For those who run python/bin/python3 themselves, such as an app that names it in REFIT_AGENT_PYTHON.
    site = embedded.stdlib / "site-packages"
    site.mkdir()
    (site / "refit-agent.pth").write_text(os.path.relpath(folder / "lib", site) + "\n", "utf-8")


def _compile(folder: Path, apart: Path, embedded: Embedded) -> None:
    for root in (embedded.stdlib, folder / "lib", apart / "lib"):
        # In a process of its own, with fixed hashes: the order of sets gets into the code.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(layout.HERE)}
        command = [
            sys.executable,
            "-B",
            "-m",
            "standalone.bytecode",
            str(root),
            ",".join(rules.DOCS_KEPT),
            ",".join(rules.SOURCES_KEPT),
        ]
        run(command, environment, cwd=layout.HERE)


def _parts(
    folder: Path, apart: Path, distributions: list[Distribution], collected: dict[str, list[str]]
) -> dict[str, tuple[str, ...]]:
    """Which files belong to which part: those of the lean runtime to its own, all the rest of the folder to the core."""
    named = {*collected.get(layout.LEAN, ())}
    for name in (n for d in distributions if d.part == layout.LEAN for n in d.files):
        stem = name.removesuffix(".py")
        head, _, tail = stem.rpartition("/")
        cached = f"lib/{head}/__pycache__/{tail}.{sys.implementation.cache_tag}.pyc"
        named |= {f"lib/{name}", f"lib/{stem}.pyc", cached}
    lean = sorted(p for p in files_of(folder) if p in named)
    core = sorted({*files_of(folder), layout.PARTS_FILE, layout.SBOM_FILES[layout.CORE]} - set(lean))
    ort = sorted({*files_of(apart), layout.SBOM_FILES[layout.ORT]})
    return {layout.CORE: tuple(core), layout.LEAN: tuple(lean), layout.ORT: tuple(ort)}


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, as relative paths, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def _write_parts(folder: Path, apart: Path, parts: dict[str, tuple[str, ...]]) -> None:
    versions = frozenset().union(*(elf.needs(p).versions for place in (folder, apart) for p in elf.elf_files(place)))
    document = {
        "version": layout.version(),
        "python": ".".join(str(n) for n in sys.version_info[:3]),
        "glibc": elf.highest(versions, "GLIBC"),
        "glibcxx": elf.highest(versions, "GLIBCXX"),
        "parts": parts,
    }
    (folder / layout.PARTS_FILE).write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _say(step: str) -> None:
    print(f"{step} ...", file=sys.stderr, flush=True)
