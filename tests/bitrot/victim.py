"""A published engine to be damaged, again and again: what was set aside is put back as it was published."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime

from bundles import GOLDEN_INPUT, GOLDEN_OUTPUT, MODEL
from refit_agent import Engine, ensure_engine
from refit_agent.cache.store import Store
from refit_agent.cache.verify import Verdict, verify


class Victim:
    """One engine in the cache of the present home, made from ``bundle``."""

    def __init__(self, home: Path, bundle: Path, key: str) -> None:
        self.bundle, self.key = bundle, key
        self.store = Store(str(home / "cache"))
        self.folder = Path(self.store.folder(key))
        self.quarantine = home / "cache" / "quarantine"
        self.locks = home / "cache" / "locks"

    @property
    def names(self) -> list[str]:
        """Its files but ``entry.json``."""
        return sorted(p.name for p in self.folder.iterdir() if p.name != "entry.json")

    def look_up(self) -> str:
        """What a look-up says is damaged, "" for a hit."""
        found = self.store.lookup(self.key)
        assert found is not None
        if isinstance(found, str):
            return found
        found[2].close()
        return ""

    def verify(self) -> Verdict:
        """What `refit-agent cache verify` does."""
        (verdict,) = verify(self.store)
        return verdict

    def set_aside(self) -> list[Path]:
        """What is in the quarantine."""
        return sorted(self.quarantine.iterdir())

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Afterwards all is as it was before, wherever it has been moved meanwhile."""
        before = self.quarantine.parents[1] / "before"
        shutil.copytree(self.folder, before)
        yield
        for place in [self.folder, *self.set_aside()]:
            self.store.discard(str(place))
        before.rename(self.folder)

    def ask_unchecked(self) -> Engine:
        """As an app asks."""
        return ensure_engine(self.bundle, MODEL)

    def ask(self) -> Engine:
        """As an app asks; the output has been compared with the golden one."""
        engine = self.ask_unchecked()
        session = onnxruntime.InferenceSession(os.fspath(engine), providers=["CPUExecutionProvider"])
        got = session.run(None, {"x": np.load(self.bundle / GOLDEN_INPUT)})[0]
        np.testing.assert_allclose(got, np.load(self.bundle / GOLDEN_OUTPUT), atol=1e-4)
        return engine


def write(path: Path, data: bytes) -> None:
    """Overwrite it in place, as a disk does that goes bad: size and times as they were as far as they can be."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flipped(data: bytes, at: int, bit: int) -> bytes:
    """With one bit another."""
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
