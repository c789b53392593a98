"""Whether the folder can work: libraries are found, modules can be imported, commands answer."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path

from standalone import elf, layout
from standalone.commands import BuildError, run
from standalone.rules import FROM_SYSTEM, LOADED_BEFORE


def check_libraries(folder: Path, apart: Path) -> None:
    """Every library that a file in ``lib`` needs lies where the linker will look for it.

    Raises BuildError: one does not, and the system is not relied upon for it.
    """
    python = folder / "python" / "lib"
    for place in (folder, apart):
        for path in elf.elf_files(place / "lib"):
            name = path.relative_to(place / "lib").as_posix()
            needs = elf.needs(path)
            # The program's RPATH leads to python/lib, and counts for all that have no RUNPATH of their own.
            search = [*needs.search, *([] if needs.runpath else [str(python)])]
            missing = {n for n in needs.libraries if n not in FROM_SYSTEM and not _found(n, path, search)}
            missing -= LOADED_BEFORE.get(name, frozenset())
            if missing:
                raise BuildError(f"lib/{name} needs {', '.join(sorted(missing))}, and nothing brings that.")


def _found(name: str, path: Path, search: list[str]) -> bool:
    return any((Path(folder.replace("$ORIGIN", str(path.parent))) / name).is_file() for folder in search)


def check_mentions(stdlib: Path) -> None:
    """What our own code imports of the standard library, inside functions too, is in the folder.

    Raises BuildError: it is in this Python, and was left out.
    """
    missing: dict[str, str] = {}
    for source in sorted([*layout.REPOSITORY.glob("agent/**/*.py"), *layout.REPOSITORY.glob("service/**/*.py")]):
        for name in imported_names(source.read_bytes()):
            if name.partition(".")[0] not in sys.stdlib_module_names or name in sys.builtin_module_names:
                continue
            place = stdlib / name.replace(".", "/")
            there = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
            if not there and not [*stdlib.glob(f"lib-dynload/{name}.*")] and importlib.util.find_spec(name) is not None:
                missing[name] = source.relative_to(layout.REPOSITORY).as_posix()
    if missing:
        raise BuildError(f"left out by rules.STDLIB, but imported: {missing}")


def imported_names(source: bytes) -> set[str]:
    """Every module that a source names in an import statement, wherever that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names - {"os.path", "__future__"}


def check_folder(folder: Path, apart: Path) -> None:
    """Import every module and ask every command for its help, with the folder's own Python and nothing else.

    Raises BuildError: something that the program imports was left out.
    """
    python = folder / "python" / "bin" / "python3"
    bare = {"PATH": os.defpath, "HOME": "/nonexistent", "REFIT_AGENT_SOCKET": ""}
    script = layout.HERE / "standalone" / "inside.py"
    run([python, "-I", "-S", "-B", script, folder / "lib", apart / "lib"], bare, cwd=Path("/"))
    launcher = folder / "bin" / "refit-agent"
    said = run([launcher, "--version"], bare, cwd=Path("/"))
    if said.split() != ["refit-agent", layout.version()]:
        raise BuildError(f"{launcher} --version says {said!r}")
    run([launcher, "--help"], bare, cwd=Path("/"))
