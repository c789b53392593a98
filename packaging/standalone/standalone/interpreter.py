"""The embedded Python: the interpreter that runs the build, less what `rules.STDLIB` leaves out.

Relocatable: it finds its library by its own place, and every library that it needs apart from glibc lies in python/lib,
found by RPATH. (RUNPATH would let LD_LIBRARY_PATH of the calling app put its own OpenSSL in between.)
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from standalone import elf
from standalone.commands import BuildError, run
from standalone.rules import FROM_SYSTEM, STDLIB, kept

#: Python's version as in the names of its folders.
NUMBERS = f"{sys.version_info.major}.{sys.version_info.minor}"


class Embedded(NamedTuple):
    """``libraries`` are the shared libraries taken from the build machine: name in python/lib -> where from."""

    root: Path
    stdlib: Path
    libraries: dict[str, Path]


def embed(root: Path, patchelf: Path, strip: str | None) -> Embedded:
    """Copy the running interpreter to ``root`` (the folder ``python``). ``strip``: the program, None to keep symbols."""
    if sys.implementation.name != "cpython" or not sys.platform.startswith("linux"):
        raise BuildError("This needs CPython on Linux.")
    # The real one, not that of a virtual environment: only it has the standard library beside it.
    executable = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    target = root / "bin" / "python3"
    target.parent.mkdir(parents=True)
    shutil.copyfile(executable, target)
    target.chmod(0o755)
    stdlib = root / sys.platlibdir / f"python{NUMBERS}"
    _copy_stdlib(Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})), stdlib)
    libraries = _libraries([executable, *(_original(p, stdlib) for p in elf.elf_files(stdlib))])
    folder = root / "lib"
    folder.mkdir(exist_ok=True)
    for name, origin in libraries.items():
        shutil.copyfile(origin, folder / name)
        (folder / name).chmod(0o755)
    for path in [target, *elf.elf_files(stdlib), *(folder / name for name in libraries)]:
        if strip:
            run([strip, "--strip-unneeded", path])
        _set_rpath(path, folder, patchelf)
    return Embedded(root, stdlib, libraries)


def _copy_stdlib(origin: Path, target: Path) -> None:
    for path in sorted(origin.rglob("*")):
        name = path.relative_to(origin).as_posix()
        # Whole folders first: site-packages may hold a gigabyte.
        if path.is_dir() or not kept(name, STDLIB) or not path.is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / name)
    if not (target / "os.py").is_file():
        raise BuildError(f"{origin} holds no standard library.")
    # What `sysconfig` imports: the real one is full of the build machine's paths, and says nothing true elsewhere.
    for path in origin.glob("_sysconfigdata_*.py"):
        (target / path.name).write_text("build_time_vars: dict[str, object] = {}\n", "utf-8")
    # Python takes its own place from this folder; some have every extension module built in.
    (target / "lib-dynload").mkdir(exist_ok=True)


def _original(path: Path, stdlib: Path) -> Path:
    return Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})) / path.relative_to(stdlib)


def _libraries(files: list[Path]) -> dict[str, Path]:
    """Every library that these files need, and those that it needs, but for glibc's: name -> place."""
    found: dict[str, Path] = {}
    for file in files:
        for line in run(["ldd", file]).splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if not arrow or name in FROM_SYSTEM:
                continue
            if rest.startswith("not found"):
                raise BuildError(f"{file} needs {name}, which is not on this machine.")
            found[name] = Path(os.path.realpath(rest.rpartition(" (")[0]))
    return dict(sorted(found.items()))


def _set_rpath(path: Path, folder: Path, patchelf: Path) -> None:
    """So that libraries are found in ``folder``. The program's own counts for all that it loads, NumPy's too."""
    wanted = [n for n in elf.needs(path).libraries if n not in FROM_SYSTEM]
    if path.parent.name != "bin" and not wanted and not elf.needs(path).search:
        return
    relative = os.path.relpath(folder, path.parent)
    origin = "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}"
    run([patchelf, "--force-rpath", "--set-rpath", origin, path])
