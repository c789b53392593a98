"""The folder for Windows, made here around a stand-in for python.org's zip, with the real Windows wheels."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "packaging" / "windows" / "build.py"
TAG = f"{sys.version_info.major}{sys.version_info.minor}"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("windows_build", BUILD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def python_zip(folder: Path, version: str = platform.python_version(), without: str = "", more: str = "") -> Path:
    """Shaped like python.org's embeddable package."""
    names = {
        "python.exe",
        "pythonw.exe",
        f"python{TAG}.zip",
        "python.cat",
        "LICENSE.txt",
        "_msi.pyd",
        "_ssl.pyd",
        f"python{TAG}._pth",
    }
    path = folder / f"python-{version}-embed-amd64.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(names - {without} | ({more} if more else set())):
            archive.writestr(name, name)
        archive.writestr(f"python{TAG}.dll", b"\0" + version.encode("utf-16-le"))
    return path


def test_python_sees_its_own_folder_and_lib_alone(build: ModuleType, tmp_path: Path) -> None:
    """Whatever else is installed on a user's machine, or named in PYTHONPATH, must not get in."""
    build.unpack_python(python_zip(tmp_path), None, tmp_path / "python")
    assert (tmp_path / "python" / f"python{TAG}._pth").read_bytes() == f"python{TAG}.zip\r\n.\r\n..\\lib\r\n".encode()
    assert sorted(p.name for p in (tmp_path / "python").iterdir()) == sorted(
        [
            "python.exe",
            "pythonw.exe",
            f"python{TAG}.zip",
            "LICENSE.txt",
            "_ssl.pyd",
            f"python{TAG}._pth",
            f"python{TAG}.dll",
        ]
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ({"version": "3.1.0"}, "is not of Python"),
        ({"without": "pythonw.exe"}, "has no pythonw.exe"),
        ({"more": "../outside.txt"}, "holds ../outside.txt"),
    ],
)
def test_other_zips_are_refused(build: ModuleType, tmp_path: Path, kind: dict[str, str], words: str) -> None:
    with pytest.raises(build.BuildError, match=words):
        build.unpack_python(python_zip(tmp_path, **kind), None, tmp_path / "python")


def test_the_hash_is_compared(build: ModuleType, tmp_path: Path) -> None:
    path = python_zip(tmp_path)
    build.unpack_python(path, hashlib.sha256(path.read_bytes()).hexdigest().upper(), tmp_path / "one")
    with pytest.raises(build.BuildError, match="SHA-256"):
        build.unpack_python(path, "0" * 64, tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_no_zip_is_one_line(tmp_path: Path) -> None:
    """Not a traceback."""
    done = subprocess.run(
        [sys.executable, BUILD, "--python-zip", tmp_path / "none.zip", "--dist", tmp_path],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_the_launcher_is_stub_line_and_zip(build: ModuleType, tmp_path: Path) -> None:
    """The stub finds Python by its own place: the folder may be moved anywhere."""
    stub = tmp_path / "t64.exe"
    stub.write_bytes(b"MZ stub")
    build.write_launcher(tmp_path / "refit-agent.exe", stub)
    data = (tmp_path / "refit-agent.exe").read_bytes()
    line, _, archive = data.removeprefix(b"MZ stub").partition(b"\r\n")
    assert line == b'#!"<launcher_dir>\\python\\python.exe" -B'
    with zipfile.ZipFile(io.BytesIO(archive)) as inside:
        compile(inside.read("__main__.py"), "__main__.py", "exec")
        assert b"refit_agent.cli.main" in inside.read("__main__.py")


@pytest.mark.slow
def test_the_folder_has_what_windows_needs(tmp_path: Path) -> None:
    """The wheels of the lock exist for Windows, and what the rules for Linux leave out is there."""
    probe = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        tmp_path / "probe",
        "-r",
        BUILD.with_name("tools.lock"),
    ]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("the package index cannot be reached")
    dist = tmp_path / "dist"
    command = [sys.executable, BUILD, "--python-zip", python_zip(tmp_path), "--dist", dist]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = dist.iterdir()
    lib = folder / "lib"
    for name in (
        "refit_agent/cli/main.pyc", "refit_agent/__main__.pyc", "refit_service/daemon.pyc", "refit_service/_windows.pyc",
        "click/_winconsole.pyc", "rich/_win32_console.pyc", "tensorrt_lean/__init__.py",
    ):  # fmt: skip
        assert (lib / name).is_file(), name
    for pattern in (
        "tensorrt_lean_libs/nvinfer_lean_*.dll",
        "tensorrt_lean_bindings/*.pyd",
        "msgspec/*.pyd",
        "numpy.libs/*.dll",
    ):
        assert list(lib.glob(pattern)), pattern
    assert not [p for p in folder.rglob("*") if p.suffix in (".so", ".pyi", ".whl")]
    assert {p.read_bytes()[:2] for p in lib.rglob("*.pyd")} == {b"MZ"}
    assert {p.name for p in (folder / "windows").iterdir()} == {
        "RefitAgent.psm1",
        "Register-RefitAgent.ps1",
        "Unregister-RefitAgent.ps1",
        "Add-Bundle.ps1",
    }
    assert b"<launcher_dir>" in (folder / "refit-agent.exe").read_bytes()
    bom = json.loads((folder / "share" / "refit-agent" / "sbom.cdx.json").read_text())
    assert {"numpy", "cpython", "tensorrt-lean-cu13-libs"} <= {c["name"] for c in bom["components"]}
    assert (folder / "share" / "refit-agent" / "licences" / "numpy").is_dir()
