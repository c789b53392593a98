"""The standalone folder as its `parts.json` describes it: which files belong to which part."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

_SHARE = "share/refit-agent"


class FolderError(Exception):
    """There is no folder that packages could be made from; the message says why."""


class Built:
    """The standalone folder, and the optional parts that lie beside it.

    Attributes:
        version: the program's.
        glibc: the oldest glibc with which it runs, such as "2.34".
        glibcxx: the newest symbol version of libstdc++ that it asks for, such as "3.4.30".
        date: seconds since 1970 that every packaged file gets.
        parts: names of the parts that are there.
    """

    def __init__(self, root: Path, more: Mapping[str, Path], date: int | None) -> None:
        described = root / _SHARE / "parts.json"
        try:
            document = json.loads(described.read_bytes())
            self.version: str = document["version"]
            self.glibc: str = document["glibc"]
            self.glibcxx: str = document["glibcxx"]
            self._names: dict[str, list[str]] = document["parts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{described} is not what packaging/standalone/build.py writes: {error!r}") from error
        self.date = int(described.stat().st_mtime) if date is None else date
        self.root = root
        self._more = more
        self.parts = [part for part in self._names if part in more or self._is_here(part)]

    def files(self, part: str) -> Iterator[tuple[str, Path]]:
        """Name below the folder, and place, of every file of the part that the program runs with, sorted.

        What Debian keeps elsewhere is left out: licences (in the package's copyright file) and the bill of materials.
        """
        for name in sorted(self._names[part]):
            if not name.startswith((f"{_SHARE}/licences/", f"{_SHARE}/sbom")):
                yield name, self._root_of(part) / name

    def sbom(self, part: str) -> Path | None:
        """The bill of materials that lies with the part; that of the core covers the lean runtime as well."""
        names = (name for name in self._names[part] if name.startswith(f"{_SHARE}/sbom"))
        return next((self._root_of(part) / name for name in names), None)

    @property
    def libraries(self) -> dict[str, str]:
        """Libraries that Python brings from the machine of the build: name below the folder, and Debian package."""
        sbom = self.sbom("core")
        document = json.loads(sbom.read_bytes()) if sbom is not None else {}
        found = {}
        for component in document.get("components", []):
            name, purl = component["bom-ref"], component.get("purl", "")
            if name.startswith("python/lib/") and purl.startswith("pkg:deb/debian/"):
                found[name] = purl.removeprefix("pkg:deb/debian/").split("@")[0]
        return found

    def licences(self, part: str) -> Iterator[tuple[str, Path]]:
        """Name of a component (such as "click"), and a file with its licence, of everything in the part."""
        prefix = f"{_SHARE}/licences/"
        for name in sorted(self._names[part]):
            if name.startswith(prefix):
                yield name.removeprefix(prefix).split("/")[0], self._root_of(part) / name

    def run_script(self, script: Path) -> dict[str, str]:
        """Run a script with the folder's own interpreter and packages; gives the document that it prints."""
        boot = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
        command = [self.root / "python/bin/python3", "-I", "-S", "-B", "-c", boot, self.root / "lib", script]
        try:
            done = subprocess.run([*command, str(self.date)], stdout=subprocess.PIPE, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FolderError(f"{script.name} cannot be run by the Python in {self.root}: {error}") from error
        document: dict[str, str] = json.loads(done.stdout)
        return document

    def _root_of(self, part: str) -> Path:
        return self._more.get(part, self.root)

    def _is_here(self, part: str) -> bool:
        names = self._names[part]
        return bool(names) and (self.root / names[0]).exists()


def find(dist: Path, environment: Mapping[str, str]) -> Built:
    """The folders below ``dist``; SOURCE_DATE_EPOCH of ``environment`` has precedence over the folder's date.

    Raises:
        FolderError: not exactly one standalone folder is there.
    """
    folders = sorted(path for path in dist.glob("refit-agent-[0-9]*-linux-x86_64") if path.is_dir())
    if len(folders) != 1:
        found = ", ".join(path.name for path in folders) or "none"
        raise FolderError(
            f"{dist} must hold one standalone folder (found: {found}); packaging/standalone/build.py makes it"
        )
    version = folders[0].name.removeprefix("refit-agent-")
    more = dist / f"refit-agent-onnxruntime-{version}"
    date = environment.get("SOURCE_DATE_EPOCH")
    return Built(folders[0], {"onnxruntime": more} if more.is_dir() else {}, int(date) if date else None)
