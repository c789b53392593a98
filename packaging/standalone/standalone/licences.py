"""The licences of everything in the folder, each in share/refit-agent/licences/<name>/."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from standalone import layout
from standalone.commands import BuildError
from standalone.interpreter import NUMBERS, Embedded
from standalone.packages import Distribution

_NAMES = re.compile(r"(licen[cs]es?|copying|copyright|notice|thirdpartynotices|authors)\b", re.IGNORECASE)

#: Modules whose wheels hold no licence text but in the comment that the source begins with: module -> file to write.
_IN_SOURCE = {"pynvml.py": "LICENSE.txt"}


def collect(distributions: list[Distribution], embedded: Embedded, places: dict[str, Path]) -> dict[str, list[str]]:
    """Write the licence texts; gives the files by part, relative to the part's folder.

    Raises BuildError: something in the folder comes without one.
    """
    texts: dict[tuple[str, str], dict[str, bytes]] = {}
    for distribution in distributions:
        texts[distribution.part, distribution.name] = {
            n: data for n, data in _of_wheel(distribution.wheel).items() if data
        }
    texts[layout.CORE, "python"] = _of_python()
    for name, origin in embedded.libraries.items():
        if name.startswith("libpython"):
            continue
        # One package may bring several libraries.
        package, files = _of_library(origin)
        texts[layout.CORE, package] = files
    without = sorted(name for (_, name), files in texts.items() if not files)
    if without:
        raise BuildError(f"no licence text was found for: {', '.join(without)}")
    written: dict[str, list[str]] = {}
    for (part, name), files in sorted(texts.items()):
        for file, data in sorted(files.items()):
            relative = f"{layout.LICENCES}/{name}/{file}"
            target = places[part] / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            written.setdefault(part, []).append(relative)
    return written


def _of_wheel(wheel: Path) -> dict[str, bytes]:
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for source, text in _IN_SOURCE.items():
            if source in archive.namelist():
                found[text] = _first_comment(archive.read(source))
        for info in archive.infolist():
            path = info.filename
            inside = re.match(r"[^/]+\.dist-info/(?:licenses/)?(.+)", path)
            base = path.rsplit("/", 1)[-1]
            top = path.count("/") == 1 and inside is None
            if info.is_dir() or not (inside or top) or not (_NAMES.match(base) or "/licenses/" in path):
                continue
            name = (inside[1] if inside else base).replace("/", "-")
            found[name] = archive.read(info)
    return found


def _first_comment(source: bytes) -> bytes:
    lines = re.match(rb"(?:#.*\n|\s*\n)*", source)
    return lines[0] if lines and b"edistribution" in lines[0] else b""


def _of_python() -> dict[str, bytes]:
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    for place in (
        stdlib / "LICENSE.txt",
        Path(sys.base_prefix) / "LICENSE.txt",
        Path(f"/usr/share/doc/python{NUMBERS}/copyright"),
    ):
        if place.is_file():
            return {"LICENSE.txt": place.read_bytes()}
    return {}


def _of_library(origin: Path) -> tuple[str, dict[str, bytes]]:
    """The Debian package that a library of the build machine belongs to, and its licence."""
    package = debian_package(origin)
    place = Path("/usr/share/doc") / package / "copyright"
    return package or origin.name, {"copyright": place.read_bytes()} if package and place.is_file() else {}


def debian_package(file: Path) -> str:
    """The name of the Debian package that brought a file, "" if none did (or this is no Debian)."""
    # Packages made before /lib became a link to /usr/lib know the file by its old name.
    for name in (str(file), str(file).removeprefix("/usr"), os.path.join("/usr", str(file).lstrip("/"))):
        found = _dpkg_query("-S", name).partition(":")[0].strip()
        if found:
            return found
    return ""


def debian_version(package: str) -> str:
    """The installed version of a Debian package, "" if it is not installed."""
    return _dpkg_query("-W", "-f", "${Version}", package).strip()


def _dpkg_query(*words: str) -> str:
    program = shutil.which("dpkg-query")
    if program is None:
        return ""
    done = subprocess.run([program, *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""
