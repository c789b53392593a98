#!/usr/bin/env python3
"""Make the agent's folder for Windows: agent, service, an embedded Python and the lean runtime.

    python packaging/windows/build.py --python-zip python-3.12.10-embed-amd64.zip

Runs on Windows and on Linux. The zip is python.org's "Windows embeddable package (64-bit)"; the Python that runs this
must be of exactly its version, since byte code and markers of requirements depend on it. Writes
dist/refit-agent-<version>-windows-x86_64 and needs pip and a network. Packages are those of packaging/standalone, pinned
by the same lock.

The folder has not been run on Windows yet: on Linux it is made, and what is in it is checked.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "standalone"))

from standalone import layout, packages, rules  # noqa: E402 - found by the path set above
from standalone.commands import BuildError, pip, run  # noqa: E402
from standalone.interpreter import Embedded  # noqa: E402
from standalone.licences import collect  # noqa: E402
from standalone.pack import publish  # noqa: E402
from standalone.packages import Distribution  # noqa: E402
from standalone.rules import Rule, kept  # noqa: E402
from standalone.sbom import write_sboms  # noqa: E402

TAG = f"{sys.version_info.major}{sys.version_info.minor}"
VERSION = ".".join(str(n) for n in sys.version_info[:3])
SCRIPTS = ("RefitAgent.psm1", "Register-RefitAgent.ps1", "Unregister-RefitAgent.ps1", "Add-Bundle.ps1")

#: What packaging/standalone leaves out as meant for Windows, and the Windows names of what it keeps.
KEPT_HERE = [
    Rule(True, pattern, "needed on Windows")
    for pattern in ("click/_winconsole.py", "rich/_win32_console.py", "rich/_windows_renderer.py")
]
#: The signature's catalogue of the whole Python, installers, sound, databases.
DROPPED_HERE = [
    Rule(False, name, "not used") for name in ("python.cat", "_msi.pyd", "winsound.pyd", "_sqlite3.pyd", "sqlite3.dll")
]
#: Without these the folder could not start.
_NEEDED = ("python.exe", "pythonw.exe", f"python{TAG}.dll", f"python{TAG}.zip", f"python{TAG}._pth")
#: distlib's launcher puts its own folder in place of the word, and hands on its arguments and its exit code.
_SHEBANG = '#!"<launcher_dir>\\python\\python.exe" -B\r\n'
_MAIN = "from refit_agent.cli.main import run\n\nrun()\n"


def main() -> int:
    """Build; gives the exit code."""
    parser = argparse.ArgumentParser(description="Make the folder of refit-agent for Windows, in dist/.")
    parser.add_argument("--python-zip", type=Path, required=True, help="python.org's embeddable package, 64-bit")
    parser.add_argument("--python-sha256", help="refuse the zip unless it has this hash")
    parser.add_argument(
        "--dist", type=Path, default=layout.REPOSITORY / "dist", help="where to put the result (default: dist/)"
    )
    parser.add_argument(
        "--cuda",
        choices=layout.CUDA_MAJORS,
        default=layout.CUDA_MAJORS[0],
        help="13 for NVIDIA drivers from 580 on (default), 12 from 525 on",
    )
    parser.add_argument(
        "--onnxruntime", action="store_true", help="with ONNX Runtime, for people without an NVIDIA GPU"
    )
    options = parser.parse_args()
    options.dist.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".windows-", dir=options.dist) as work:
            folder = assemble(
                Path(work), options.python_zip, options.python_sha256, options.cuda, with_ort=options.onnxruntime
            )
            for path in publish([folder], options.dist):
                size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
                print(f"{os.path.relpath(path)}  {size / 1e6:.1f} MB")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def assemble(work: Path, python_zip: Path, sha256: str | None, cuda: str, *, with_ort: bool) -> Path:
    """Make the folder below ``work``; gives it. Raises BuildError."""
    folder = work / f"refit-agent-{layout.version()}-windows-x86_64"
    parts = layout.PARTS if with_ort else layout.IN_FOLDER
    unpack_python(python_zip, sha256, folder / "python")
    tools = work / "tools"
    pip(
        "install",
        "--require-hashes",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--target",
        tools,
        "-r",
        HERE / "tools.lock",
    )
    wheels = fetch(layout.locks(cuda), work / "wheels", parts)
    distributions = [unpack(wheel, folder / "lib", parts) for wheel in wheels]
    places = dict.fromkeys(layout.PARTS, folder)
    embedded = Embedded(folder / "python", folder / "python", {})
    collect(distributions, embedded, places)
    write_sboms(distributions, embedded, places)
    if not with_ort:
        (folder / layout.SBOM_FILES[layout.ORT]).unlink(missing_ok=True)
    compile_packages(folder / "lib")
    write_launcher(folder / "refit-agent.exe", tools / "distlib" / "t64.exe")
    (folder / "windows").mkdir()
    for name in SCRIPTS:
        shutil.copyfile(HERE / name, folder / "windows" / name)
    return folder


def unpack_python(python_zip: Path, sha256: str | None, root: Path) -> None:
    """Unpack the embeddable Python, and let it find ``lib`` beside it and nothing else of the machine's.

    Raises BuildError: it is none, of another version than the running one, or has another hash than was asked for.
    """
    try:
        data = python_zip.read_bytes()
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (OSError, zipfile.BadZipFile) as error:
        raise BuildError(f"{python_zip} cannot be read: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and sha256.lower() != found:
        raise BuildError(f"{python_zip} has the SHA-256 {found}, and not {sha256}.")
    print(f"{python_zip.name}  sha256 {found}", file=sys.stderr)
    with archive:
        missing = sorted(set(_NEEDED) - set(archive.namelist()))
        if missing:
            raise BuildError(
                f"{python_zip} is no embeddable package of Python {VERSION[:4]}: it has no {', '.join(missing)}."
            )
        # In the library's version resource.
        if VERSION.encode("utf-16-le") not in archive.read(f"python{TAG}.dll"):
            raise BuildError(
                f"{python_zip} is not of Python {VERSION}, which runs this build. Take the two of one version."
            )
        for info in archive.infolist():
            if "/" in info.filename or "\\" in info.filename or info.filename.startswith("."):
                raise BuildError(f"{python_zip} holds {info.filename}, which no embeddable package does.")
            if kept(info.filename, DROPPED_HERE):
                root.mkdir(parents=True, exist_ok=True)
                (root / info.filename).write_bytes(archive.read(info))
    # This file isolates it: no registry, no PYTHONPATH, no user's packages. Without "import site" no .pth either.
    (root / f"python{TAG}._pth").write_bytes(f"python{TAG}.zip\r\n.\r\n..\\lib\r\n".encode())


def fetch(lock: Path, wheels: Path, parts: Sequence[str]) -> list[Path]:
    """Download the Windows wheels of these parts as the lock pins them, and build our own. Raises BuildError."""
    blocks = packages.requirement_blocks(lock.read_text("utf-8"))
    unknown = sorted({name for name, _ in blocks} - set(rules.DISTRIBUTIONS))
    if unknown:
        raise BuildError(f"{lock.name}: say in rules.DISTRIBUTIONS which part these belong to: {', '.join(unknown)}")
    wheels.mkdir()
    for source in (False, True):
        chosen = [b for n, b in blocks if rules.DISTRIBUTIONS[n] in parts and (n in rules.FROM_SOURCE) is source]
        wanted = wheels.parent / f"{'source' if source else 'wheel'}-requirements.txt"
        wanted.write_text("\n".join(chosen) + "\n", "utf-8")
        if source:
            # A module that loads whatever libraries lie beside it, the same on every system.
            pip("wheel", "--no-deps", "--require-hashes", "--no-binary", ":all:", "-w", wheels, "-r", wanted)
            continue
        numbers = f"{sys.version_info.major}.{sys.version_info.minor}"
        target = ["--platform", "win_amd64", "--implementation", "cp", "--python-version", numbers]
        for abi in (f"cp{TAG}", "abi3", "none"):
            target += ["--abi", abi]
        pip("download", "--no-deps", "--require-hashes", "--only-binary", ":all:", *target, "-d", wheels, "-r", wanted)
    pip("wheel", "--no-deps", "-w", wheels, layout.REPOSITORY)
    return sorted(wheels.glob("*.whl"))


def unpack(wheel: Path, lib: Path, parts: Sequence[str]) -> Distribution:
    """Unpack a wheel into ``lib`` but for what the rules leave out. Raises BuildError: it is not for Windows."""
    name, version = wheel.name.split("-")[:2]
    part = rules.DISTRIBUTIONS[packages.normalised(name)]
    if part not in parts or not wheel.name.endswith(("-any.whl", "-win_amd64.whl")):
        raise BuildError(f"{wheel.name} does not belong into a folder for Windows.")
    files = []
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            path = re.sub(r"^[^/]+\.data/(?:purelib|platlib)/", "", info.filename)
            if (
                info.is_dir()
                or re.match(r"[^/]+\.data/", path)
                or not kept(path, [*rules.PACKAGES, *KEPT_HERE, *DROPPED_HERE])
            ):
                continue
            target = lib / path
            if not target.resolve().is_relative_to(lib.resolve()) or target.exists():
                raise BuildError(f"{wheel.name} would write outside of its folder or over another package: {path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(info))
            files.append(path)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Distribution(packages.normalised(name), version, part, wheel, digest, tuple(sorted(files)))


def compile_packages(lib: Path) -> None:
    """Byte code in place of the sources, as in the standalone folder."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(layout.HERE)}
    ours = "refit_agent,refit_service"
    run(
        [sys.executable, "-B", "-m", "standalone.bytecode", str(lib), ours, ",".join(rules.SOURCES_KEPT)],
        environment,
        cwd=layout.HERE,
    )


def write_launcher(target: Path, stub: Path, shebang: str = _SHEBANG, program: str = _MAIN) -> None:
    """A program that starts the folder's Python with the command line, as pip makes them: stub, shebang, zip."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", (2026, 1, 1, 0, 0, 0)), program)
    target.write_bytes(stub.read_bytes() + shebang.encode() + data.getvalue())


if __name__ == "__main__":
    sys.exit(main())
