"""Where the storm takes place: a bundle of many small models, a cache, and what each engine must be."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime

from bundles import GOLDEN_INPUT, GOLDEN_OUTPUT
from refit_agent import ensure_engine
from refit_agent.cache.store import Store
from several_models import several_models

from . import workers


class Expected(NamedTuple):
    """What the engine of one model must be: its key, and the bytes of its files."""

    key: str
    files: dict[str, bytes]
    golden_input: np.ndarray
    golden_output: np.ndarray

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))


class Ground(NamedTuple):
    """The place. ``notes`` is where processes write what they saw."""

    bundle: Path
    store: Store
    notes: Path
    models: dict[str, Expected]

    def complain(self, text: str) -> None:
        """Note a violation, in one write, which others cannot get between."""
        with open(self.notes / "violations", "ab", buffering=0) as file:
            file.write(text.replace("\n", " | ").encode() + b"\n")


def prepare(root: Path, engines: int) -> Ground:
    """Make bundle and cache. The engines have been made once, elsewhere, and compared with golden data."""
    bundle, notes = several_models(root / "bundle", engines), root / "notes"
    notes.mkdir()
    sys.path.insert(0, str(workers.install(notes)))
    os.environ["REFIT_AGENT_HOME"] = str(root / "reference")
    models = {}
    for number in range(1, engines + 1):
        name = f"m{number}"
        x, y = (np.load(bundle / name / part) for part in (GOLDEN_INPUT, GOLDEN_OUTPUT))
        with ensure_engine(bundle, name, service=False) as engine:
            files = {p.name: p.read_bytes() for p in engine.path.parent.iterdir() if p.name != "entry.json"}
            models[name] = Expected(engine.key, files, x, y)
            require_golden(engine.path, models[name])
    workers.forget(notes)
    os.environ["REFIT_AGENT_HOME"] = str(root / "home")
    store = Store(str(root / "home" / "cache"))
    store.prepare()
    return Ground(bundle, store, notes, models)


def require_golden(path: Path, expected: Expected) -> None:
    """Load the engine and run it; raises if its output is not the golden one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": expected.golden_input})[0]
    np.testing.assert_allclose(got, expected.golden_output, atol=1e-4)
