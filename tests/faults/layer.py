"""The fault layer as Python sees it: compiled, put under a process, and read back.

layer = build(folder)
spot = Spot(root, notes, {"K": key})
subprocess.run(command, env=env | layer.environment(spot, Fault(call, "kill")))
calls, fired = read_trace(spot)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("fault.c")
_STATE_BYTES = 64


class NoCompiler(Exception):  # noqa: N818 - a reason to skip
    """The layer cannot be made here; the message says why."""


class Call(NamedTuple):
    """One call to the file system: the ``number``-th of this kind by a process in this role. ``phase`` is what its
    worker was at, "-" in any other process."""

    role: str
    process: int
    call: str
    path: str
    number: int
    phase: str

    @property
    def words(self) -> str:
        return f"{self.role} {self.call} {self.path} #{self.number}"

    @property
    def name(self) -> str:
        """As ``FAULTS_AT`` has it."""
        return f"{self.role}\t{self.call}\t{self.path}\t{self.number}"


class Fault(NamedTuple):
    """A call to spoil, and how (see ``FAULTS_DO`` in fault.c)."""

    call: Call
    deed: str

    @property
    def words(self) -> str:
        return f"{self.deed} at {self.call.words}"


class Spot(NamedTuple):
    """The folder whose calls count, the folder beside it that the layer writes to, and names for the cache's keys."""

    root: Path
    notes: Path
    keys: Mapping[str, str]


class Layer(NamedTuple):
    """The compiled layer."""

    library: Path

    def environment(self, spot: Spot, fault: Fault | None, role: str = "parent") -> dict[str, str]:
        """What to add to the environment of a process. Begins a new trace, and a disk that is sound."""
        spot.notes.mkdir(parents=True, exist_ok=True)
        (spot.notes / "state").write_bytes(bytes(_STATE_BYTES))
        (spot.notes / "trace").write_bytes(b"")
        return {
            "LD_PRELOAD": str(self.library),
            "FAULTS_ROOT": os.path.realpath(spot.root),
            "FAULTS_TRACE": str(spot.notes / "trace"),
            "FAULTS_STATE": str(spot.notes / "state"),
            "FAULTS_KEYS": ",".join(f"{name}={key}" for name, key in spot.keys.items()),
            "FAULTS_ROLE": role,
            "FAULTS_AT": "" if fault is None else fault.call.name,
            "FAULTS_DO": "" if fault is None else fault.deed,
        }


def build(folder: Path) -> Layer:
    """Compile the layer. Raises NoCompiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("the fault layer is compiled with gcc, and there is none")
    library = folder / "fault.so"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True)
    if done.returncode:
        raise NoCompiler(f"gcc does not make the fault layer here: {done.stderr[:2000]}")
    return Layer(library)


def read_trace(spot: Spot) -> tuple[list[Call], bool]:
    """Every call in its order, and whether the fault was injected."""
    calls: list[Call] = []
    fired = False
    for line in (spot.notes / "trace").read_text().splitlines():
        role, process, call, path, number, phase = line.split("\t")
        if role == "FIRED":
            fired = True
        else:
            calls.append(Call(role, int(process), call, path, int(number), phase))
    return calls, fired
