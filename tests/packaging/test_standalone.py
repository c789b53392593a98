"""The standalone folder as users get it: built by the one command, then run."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from refit_agent import ServiceClient, ensure_engine
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.client.messages import EnsureRequest
from standalone_folder import BUILDER, NAME, ROOT, Built, bare, build, built, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

#: As the issue of this part says: MB of 10^6 bytes.
ON_DISK, COMPRESSED = 190e6, 75e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built(tmp_path_factory.mktemp("standalone"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("demo") / "bundle"
    write_demo_bundle(str(root))
    return root


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def parts(folder: Built) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder.core / "share/refit-agent/parts.json").read_text())
    return document


def test_folder_is_no_larger_than_promised(folder: Built) -> None:
    on_disk = sum(p.lstat().st_blocks * 512 for p in [folder.core, *folder.core.rglob("*")])
    assert on_disk <= ON_DISK
    # At the fastest setting: the archive that is shipped takes a minute, and is smaller.
    packer, packed = lzma.LZMACompressor(preset=0), 0
    for name in names(folder.core):
        packed += len(packer.compress((folder.core / name).read_bytes()))
    assert packed + len(packer.flush()) <= COMPRESSED


def test_every_file_belongs_to_one_part(folder: Built) -> None:
    document = parts(folder)
    core, lean, ort = (document["parts"][part] for part in ("core", "tensorrt-lean", "onnxruntime"))
    assert sorted([*core, *lean]) == names(folder.core)
    assert ort == names(folder.ort)
    assert document["version"] == "0.1.0"
    assert "lib/tensorrt_lean_libs/__init__.pyc" in lean
    assert "share/refit-agent/licences/tensorrt-lean-cu13-libs/LICENSE.txt" in lean
    assert not [n for n in core if n.startswith("lib/tensorrt")]


def test_glibc_of_parts_is_the_highest_that_any_file_asks_for(folder: Built) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    found = set()
    for path in folder.whole.rglob("*"):
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF":
            said = subprocess.run(["objdump", "-p", path], capture_output=True, text=True, check=True).stdout
            found |= {tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([0-9.]+)", said)}
    assert ".".join(map(str, max(found))) == parts(folder)["glibc"]


def test_second_build_is_the_same_byte_for_byte_and_the_sizes_are_told(folder: Built, tmp_path: Path) -> None:
    said = build(tmp_path / "at another place", "--no-archives")
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if len(line.split()) >= 4}
    assert {"core", "tensorrt-lean", "onnxruntime", NAME} <= set(lines)
    assert int(lines[NAME][0]) == len(names(folder.core))
    for first in (folder.core, folder.ort):
        second = tmp_path / "at another place" / first.name
        assert names(second) == names(first)
        for name in names(first):
            one, two = first / name, second / name
            assert one.read_bytes() == two.read_bytes(), name
            assert (one.stat().st_mode, one.stat().st_mtime) == (two.stat().st_mode, two.stat().st_mtime), name


def test_nothing_of_the_build_machine_is_in_our_own_files(folder: Built) -> None:
    # The compiled-in prefix of the interpreter itself is the one exception.
    for name in names(folder.whole):
        path = folder.whole / name
        if not name.startswith("python/") or name.endswith((".pyc", ".pth", ".py")):
            data = path.read_bytes()
            assert str(ROOT).encode() not in data, name
            assert sys.base_prefix.encode() not in data or sys.base_prefix in ("/usr", "/usr/local"), name


def test_no_source_but_what_must_be_there(folder: Built) -> None:
    sources = [n for n in names(folder.whole) if n.endswith(".py")]
    assert sources == ["lib/onnxruntime/__init__.py", "lib/refit_agent_start.py", "lib/tensorrt_lean/__init__.py"]


def test_version_help_and_exit_codes(folder: Built, tmp_path: Path) -> None:
    env = bare(tmp_path)
    assert run(folder.core, "--version", env=env).stdout == "refit-agent 0.1.0\n"
    shown = run(folder.core, "provision", "--help", env=env)
    assert shown.returncode == 0 and "Usage: refit-agent provision" in shown.stdout and "Example" in shown.stdout
    assert run(folder.core, "no-such-command", env=env).returncode == 2
    assert run(folder.core, "path", "/no/such/bundle", "m", env=env).returncode == 3


def test_launcher_is_found_by_link_by_name_and_from_its_own_folder(folder: Built, tmp_path: Path) -> None:
    program = folder.whole / "bin" / "refit-agent"
    (tmp_path / "one").symlink_to(program)
    (tmp_path / "two links").symlink_to("one")
    (tmp_path / "tree").symlink_to(folder.whole)
    env = bare(tmp_path, PATH=f"{folder.whole}/bin:/usr/bin:/bin")
    ways: list[tuple[list[str], Path]] = [
        ([str(tmp_path / "two links")], tmp_path),
        (["./two links"], tmp_path),
        (["./refit-agent"], program.parent),
        (["bin/refit-agent"], folder.whole),
        (["refit-agent"], tmp_path),
        (["sh", "refit-agent"], program.parent),
        ([str(tmp_path / "tree" / "bin" / "refit-agent")], tmp_path),
    ]
    for command, cwd in ways:
        done = subprocess.run([*command, "--version"], env=env, cwd=cwd, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "refit-agent 0.1.0\n"), (command, done.stderr)


def test_demo_without_onnx_runtime_says_what_is_missing(folder: Built, tmp_path: Path) -> None:
    done = run(folder.core, "demo", env=bare(tmp_path))
    assert done.returncode == 5
    assert "ONNX Runtime" in done.stderr and "Traceback" not in done.stderr
    # There is no pip in the folder.
    assert "install the package refit-agent-onnxruntime" in done.stderr and "pip" not in done.stderr


def test_demo_with_onnx_runtime_provisions_and_compares(folder: Built, tmp_path: Path) -> None:
    done = run(folder.whole, "demo", env=bare(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Done: the results agree, and the second answer came from the cache." in done.stdout


def test_settings_of_another_python_do_not_reach_it(folder: Built, demo: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "msgspec.py").write_text("raise SystemExit('the wrong one')\n")
    for library in ("libcrypto.so.3", "libz.so.1"):
        (planted / library).write_bytes(b"no library")
    env = bare(tmp_path, PYTHONPATH=str(planted), PYTHONHOME=str(planted), LD_LIBRARY_PATH=str(planted))
    env |= {"PYTHONEXECUTABLE": str(planted), "PYTHONPLATLIBDIR": "planted", "PYTHONINSPECT": "1"}
    done = run(folder.whole, "provision", demo, env=env)
    assert done.returncode == 0, done.stderr


def test_folder_is_not_written_to(folder: Built, demo: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.whole.rglob("*")}

    before = state()
    assert run(folder.whole, "path", demo, "classifier", env=bare(tmp_path)).returncode == 0
    assert run(folder.whole, "doctor", env=bare(tmp_path)).returncode == 0
    assert state() == before


def test_signal_reaches_the_program_and_its_exit_code_the_caller(folder: Built, tmp_path: Path) -> None:
    env = bare(tmp_path, REFIT_AGENT_SOCKET=str(tmp_path / "s"))
    process = subprocess.Popen(
        [folder.whole / "bin" / "refit-agent", "serve"], env=env, cwd="/", stderr=subprocess.PIPE
    )
    try:
        ends = time.monotonic() + 60
        while not (tmp_path / "s").exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        assert (tmp_path / "s").exists(), process.communicate(timeout=10)
        # The socket is there before the service hears signals; once it answers, it does.
        assert run(folder.whole, "status", env=env).returncode == 0
        # Not the shell that was started: it has become the program.
        assert "python3" in os.readlink(f"/proc/{process.pid}/exe")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_service_of_the_folder_makes_engines(
    folder: Built, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = str(tmp_path / "s")
    env = bare(tmp_path, REFIT_AGENT_SOCKET=socket)
    process = subprocess.Popen([folder.whole / "bin" / "refit-agent", "serve"], env=env, cwd="/")
    try:
        ends = time.monotonic() + 60
        while not Path(socket).exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        done = run(folder.whole, "status", "--json", env=env)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv("REFIT_AGENT_HOME", str(tmp_path))
        monkeypatch.setenv("REFIT_AGENT_SOCKET", socket)
        with ServiceClient() as client:
            engine = client.ensure(EnsureRequest(bundle=str(demo), model="classifier"))
        assert Path(engine.path).is_file()
        assert run(folder.whole, "path", demo, "classifier", env=bare(tmp_path)).stdout == f"{engine.path}\n"
    finally:
        process.terminate()
        process.wait(30)


def test_host_app_may_name_the_embedded_python(
    folder: Built, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = folder.whole / "python" / "bin" / "python3"
    monkeypatch.setenv("REFIT_AGENT_PYTHON", str(python))
    monkeypatch.setenv("REFIT_AGENT_SOCKET", "")
    with ensure_engine(str(demo), "classifier") as engine:
        assert Path(engine.path).is_file() and not engine.hit
    # By itself it finds the agent as well.
    said = subprocess.run(
        [python, "-I", "-m", "refit_agent", "--version"], env=bare(tmp_path), cwd="/", capture_output=True, text=True
    )
    assert said.stdout == "refit-agent 0.1.0\n", said.stderr


def test_certificates_of_other_systems_are_found(folder: Built, tmp_path: Path) -> None:
    start = (folder.whole / "lib" / "refit_agent_start.py").read_text()
    place = tmp_path / "ca-bundle.crt"
    place.write_text("")
    changed = start.replace("/etc/ssl/certs/ca-certificates.crt", str(place))
    changed = changed.replace(
        "from refit_agent.cli.main import run", "run = lambda: print(os.environ['SSL_CERT_FILE'])"
    )
    script = tmp_path / "start.py"
    script.write_text(changed)
    python = folder.whole / "python" / "bin" / "python3"
    done = subprocess.run([python, "-I", "-S", script], env=bare(tmp_path), capture_output=True, text=True)
    assert done.stdout.strip() == str(place), done.stderr
    kept = subprocess.run(
        [python, "-I", "-S", script], env=bare(tmp_path, SSL_CERT_FILE="/mine"), capture_output=True, text=True
    )
    assert kept.stdout.strip() == "/mine"


@pytest.mark.parametrize("which", ["core", "ort"])
def test_bill_of_materials_is_valid_and_lists_what_is_there(folder: Built, which: str) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    name = "sbom.cdx.json" if which == "core" else "sbom-onnxruntime.cdx.json"
    place = folder.core if which == "core" else folder.ort
    text = (place / "share/refit-agent" / name).read_text()
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {c["name"]: c for c in json.loads(text)["components"]}
    if which == "ort":
        assert set(components) == {"onnxruntime"}
        return
    brought = {p.name.split("-")[0].replace("_", "-") for p in (place / "lib").glob("*.dist-info")}
    assert brought - set(components) == {"refit-agent"}
    assert components["cpython"]["version"] == ".".join(map(str, sys.version_info[:3]))
    for library in (place / "python" / "lib").glob("*.so*"):
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        assert components[library.name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    inside = {c["name"] for c in components["numpy"]["components"]}
    assert any("openblas" in n for n in inside)


def test_hashes_of_the_bill_are_those_of_the_lock(folder: Built) -> None:
    lock = (BUILDER / "cu13.lock").read_text()
    document = json.loads((folder.core / "share/refit-agent/sbom.cdx.json").read_text())
    wheels = [c for c in document["components"] if c.get("purl", "").startswith("pkg:pypi/")]
    assert len(wheels) > 20
    for component in wheels:
        if component["name"] != "tensorrt-lean-cu13":  # built here, from the source archive that the lock pins
            assert f"sha256:{component['hashes'][0]['content']}" in lock, component["name"]


def test_every_part_brings_its_licence(folder: Built) -> None:
    licences = {p.name for p in (folder.whole / "share/refit-agent/licences").iterdir()}
    brought = {p.name.split("-")[0].replace("_", "-") for p in (folder.whole / "lib").glob("*.dist-info")}
    assert brought | {"python"} <= licences
    for place in (folder.whole / "share/refit-agent/licences").rglob("*"):
        assert place.is_dir() or place.stat().st_size > 50, place
