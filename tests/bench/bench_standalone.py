"""Start of the standalone program against the same from a virtual environment, and from PyInstaller.

    python tests/bench/bench_standalone.py [--rounds N] [--pyinstaller]

Builds the standalone folder and a virtual environment, by the Python that runs this, and asks each for a path that is in
the cache, in turn. ``--pyinstaller`` builds the same command with PyInstaller (one folder) in an environment of its own,
which it installs. Needs a network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from refit_agent.authoring.demo_bundle import write_demo_bundle
from standalone_folder import BUILDER, NAME, ORT_NAME, ROOT

#: As the project promises: the standalone program's start, by that from a virtual environment.
_MOST = 1.3
#: What the standalone folder holds with ONNX Runtime, which the demo's engine needs.
_EXTRAS = "service,signing,cu13,cpu"


def main() -> int:
    """Measure, print; the exit code is 1 if the ratio is beyond what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--pyinstaller", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-standalone-") as work:
        return _measure(Path(work), options.rounds, pyinstaller=options.pyinstaller)


def _measure(work: Path, rounds: int, *, pyinstaller: bool) -> int:
    write_demo_bundle(str(work / "bundle"))
    folder, venv = _folder(work), _venv(work)
    programs = {"standalone": folder / "bin" / "refit-agent", "venv": venv / "bin" / "refit-agent"}
    sizes = {"standalone": folder, "venv": venv}
    if pyinstaller:
        sizes["pyinstaller"] = _pyinstaller(work)
        programs["pyinstaller"] = sizes["pyinstaller"] / "refit-agent"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT_", "PYTHON"))}
    env |= {"REFIT_AGENT_HOME": str(work / "home"), "REFIT_AGENT_SOCKET": "", "REFIT_AGENT_LOG_LEVEL": "error"}
    # What is measured is a hit. PyInstaller's program has no Python for a worker, and finds the engine of the others.
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 2):
        for name, program in programs.items():
            command = [str(program), "path", str(work / "bundle"), "classifier"]
            took = _call(command, env)
            if number >= 2:  # the first ones read from the disk
                times[name].append(took)
    for name, took in times.items():
        size = sum(p.lstat().st_blocks * 512 for p in sizes[name].rglob("*"))
        print(
            f"{name:12} median {statistics.median(took) * 1e3:6.1f} ms, least {min(took) * 1e3:6.1f} ms, {size / 1e6:6.1f} MB"
        )
    ratio = statistics.median(a / b for a, b in zip(times["standalone"], times["venv"], strict=True))
    print(f"standalone / venv: {ratio:.2f} (median of pairs), at most {_MOST}")
    return 0 if ratio <= _MOST else 1


def _call(command: list[str], env: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=env, cwd=os.sep, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _folder(work: Path) -> Path:
    command = [sys.executable, str(BUILDER / "build.py"), "--no-archives", "--dist", str(work / "dist")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(work / "dist" / ORT_NAME, work / "dist" / NAME, dirs_exist_ok=True)
    return work / "dist" / NAME


def _venv(work: Path, *more: str) -> Path:
    place = work / f"venv{len(more)}"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    subprocess.run([place / "bin" / "pip", "install", "-q", f"{ROOT}[{_EXTRAS}]", *more], check=True)
    return place


def _pyinstaller(work: Path) -> Path:
    venv = _venv(work, "pyinstaller")
    (work / "start.py").write_text("from refit_agent.cli.main import run\n\nrun()\n")
    command = [venv / "bin" / "pyinstaller", "--onedir", "--name", "refit-agent", "--strip"]
    command += [f"--collect-submodules={name}" for name in ("refit_agent", "refit_service")]
    packages = next((venv / "lib").glob("python3*")) / "site-packages"
    for name in ("tensorrt_lean", "tensorrt_lean_bindings", "tensorrt_lean_libs", "onnxruntime"):
        command.append(f"--collect-all={name}")
    for name in ("tensorrt_lean", "onnxruntime"):  # by which the agent knows a runtime
        command.append(f"--add-data={packages / name / '__init__.py'}:{name}")
    command += ["--copy-metadata=onnxruntime", "--copy-metadata=tensorrt_lean_cu13_bindings"]
    command += ["--collect-data=refit_service", "--distpath", work / "pyinstaller", work / "start.py"]
    subprocess.run(command, check=True, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return work / "pyinstaller" / "refit-agent"


if __name__ == "__main__":
    sys.exit(main())
