"""What is interrupted, and in which state of the cache: each scene is a folder that every case gets a copy of.

    home/      cache and state of the agent, as `REFIT_AGENT_HOME`
    bundle/    what is asked for

Keys of the cache have fixed names: K the engine asked for, W weights fetched for it, N an innocent neighbour (a real
engine of another bundle), A, B and C older entries, L leftovers of a process that was killed.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bundles import MODEL, edit, make_bundle, model_of
from entries import key_of, put
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.keys import engine_key

REQUEST = Path(__file__).with_name("request.py")
_OLD = {"A": 1, "B": 2, "C": 3}
_OLD_BYTES = 15000
_LEFT = 9
_ONNX = "models/mlp.onnx"


@dataclass(frozen=True)
class Scene:
    """One of them. ``quota`` in bytes, or None; ``damaged`` names keys whose entries are damaged from the beginning."""

    name: str
    what: str
    folder: Path
    keys: Mapping[str, str]
    request: tuple[str, ...] = ("provision",)
    quota: int | None = None
    damaged: frozenset[str] = frozenset()
    #: Entries that no fault may take away.
    innocent: frozenset[str] = frozenset({"N"})
    settings: Mapping[str, str] = field(default_factory=dict)
    #: Without a fault the request finds the engine.
    hit: bool = False

    def copy(self, place: Path) -> None:
        """A fresh copy at ``place``, times included."""
        shutil.copytree(self.folder, place, symlinks=True)

    def command(self, place: Path) -> list[str]:
        what, *more = self.request
        return [sys.executable, str(REQUEST), what, *(more or [str(place / "bundle"), MODEL])]

    def environment(self, place: Path) -> dict[str, str]:
        """Of the process that asks: nothing of the tester's shell that the agent would heed."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("REFIT_AGENT_", "FAULTS_", "CUDA_", "XDG_"))}
        env |= {"REFIT_AGENT_HOME": str(place / "home"), "XDG_CONFIG_HOME": str(place / "settings"), **self.settings}
        env.pop("LD_PRELOAD", None)
        if self.quota is not None:
            env["REFIT_AGENT_CACHE_QUOTA"] = str(self.quota)
        return env


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, *args: Any) -> None:
        with suppress(ConnectionError):  # whoever asked was killed
            super().copyfile(*args)


@contextmanager
def weights_server(folder: Path) -> Iterator[str]:
    """Serves ``folder`` on loopback; gives its URL."""
    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: _Handler(*a, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_scenes(folder: Path, url: str, served: Path) -> list[Scene]:
    """All scenes below ``folder``; ``served`` is what is to be had at ``url``."""
    maker = _Maker(folder)
    return [
        maker.cold(),
        maker.first(),
        maker.evict(),
        maker.leftovers(),
        maker.damaged(),
        maker.fetch(url, served),
        maker.hit(),
        maker.prune(),
        maker.service(),
    ]


class _Maker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = make_bundle(folder / "parts" / "bundle", external=True, compression="zstd")
        neighbour = make_bundle(folder / "parts" / "neighbour", seed=5)
        # Entries keep the times of their files, and so do copies of the folder.
        self.before = folder / "parts" / "before"
        self.key_n = _provision(self.before, neighbour)
        after = folder / "parts" / "after"
        shutil.copytree(self.before, after)
        self.key_k = _provision(after, self.bundle)
        self.after = after
        self.keys = {"K": self.key_k, "N": self.key_n}

    def _scene(self, name: str, what: str, home: Path | None, **more: Any) -> Scene:
        place = self.folder / name
        place.mkdir()
        if home is not None:
            shutil.copytree(home, place / "home")
        shutil.copytree(self.bundle, place / "bundle")
        return Scene(name, what, place, **{"keys": self.keys, **more})

    def first(self) -> Scene:
        return self._scene("first", "the first provision of a user", None, innocent=frozenset())

    def cold(self) -> Scene:
        return self._scene("cold", "a provision beside another engine", self.before)

    def evict(self) -> Scene:
        scene = self._scene("evict", "a provision for which two engines have to go", self.before)
        store = _store(scene)
        for at, number in enumerate(_OLD.values()):
            put(store, number, _OLD_BYTES, used=1000.0 + at)
        return Scene(**{**scene.__dict__, "keys": self._with_old(), "quota": self._quota(scene, without=2)})

    def _with_old(self) -> dict[str, str]:
        return self.keys | {name: key_of(number) for name, number in _OLD.items()}

    def _quota(self, scene: Scene, *, without: int) -> int:
        """Bytes that hold everything but so many of the old entries, and the new engine.

        One old entry fewer is too many, and none of the others has to go: not even where one of those that should
        cannot be removed.
        """
        return size_of(_store(scene)) + estimate(scene.folder / "bundle") - without * _OLD_BYTES + _OLD_BYTES // 2

    def leftovers(self) -> Scene:
        scene = self._scene("leftovers", "a provision after a killed one", self.before)
        cache, left = Path(_store(scene).root), key_of(_LEFT)
        for key in (self.key_k, left):
            for at in ("0a1b2c3d", "0a1b2c3e"):
                staging = cache / "tmp" / f"{key}.4711-{at}"
                staging.mkdir()
                (staging / "model.onnx").write_bytes(b"half of it")
                Path(f"{staging}.log").write_text("the last words\n")
            (cache / "locks" / f"{key}.lock").touch(0o600)
        set_aside = cache / "quarantine" / f"{left}.0a1b2c3d"
        set_aside.mkdir()
        (set_aside / "model.onnx").write_bytes(b"damaged")
        return Scene(**{**scene.__dict__, "keys": self.keys | {"L": left}})

    def damaged(self) -> Scene:
        scene = self._scene("damaged", "a provision in place of a damaged entry", self.after, damaged=frozenset("K"))
        with Path(_store(scene).folder(self.key_k), "weights.bin").open("r+b") as file:
            file.truncate(100)
        return scene

    def fetch(self, url: str, served: Path) -> Scene:
        scene = self._scene("fetch", "a provision with weights from a server", self.before)
        bundle = scene.folder / "bundle"
        data = (bundle / _ONNX).read_bytes()
        (served / "mlp.onnx").write_bytes(data)
        (bundle / _ONNX).unlink()
        edit(bundle, lambda d: model_of(d)["onnx"].update(url=f"{url}/mlp.onnx"))
        key_w = engine_key({"fetched": hashlib.sha256(data).hexdigest(), "size": str(len(data))})
        more = {"keys": self.keys | {"W": key_w}, "settings": {"REFIT_AGENT_FETCH": "http", "no_proxy": "*"}}
        return Scene(**{**scene.__dict__, **more})

    def hit(self) -> Scene:
        innocent = frozenset({"K", "N"})
        return self._scene("hit", "an engine that is there", self.after, innocent=innocent, hit=True)

    def prune(self) -> Scene:
        scene = self.leftovers_and_old()
        quota = size_of(_store(scene)) - 2 * _OLD_BYTES
        return Scene(**{**scene.__dict__, "request": ("prune", str(quota)), "quota": quota})

    def leftovers_and_old(self) -> Scene:
        scene = self._scene("prune", "the cache looked after", self.before)
        left = self.folder / "leftovers" / "home" / "cache"
        cache = Path(_store(scene).root)
        for name in ("tmp", "quarantine", "locks"):
            shutil.copytree(left / name, cache / name, dirs_exist_ok=True)
        for at, number in enumerate(_OLD.values()):
            put(_store(scene), number, _OLD_BYTES, used=1000.0 + at)
        return Scene(**{**scene.__dict__, "keys": self._with_old() | {"L": key_of(_LEFT)}})

    def service(self) -> Scene:
        scene = self._scene("service", "a provision by the service", self.before, request=("by-service",))
        return Scene(**{**scene.__dict__, "settings": {"REFIT_AGENT_WARM": "0"}})


def _store(scene: Scene) -> Store:
    return Store(str(scene.folder / "home" / "cache"))


def estimate(bundle: Path) -> int:
    """Bytes that the manifest gives for the finished engine: without padding, and without its entry.json."""
    model = Bundle.open(bundle).model(MODEL)
    return model.engines[0].plan_size + sum(f.size for f in model.weight_files())


def size_of(store: Store) -> int:
    """Bytes of everything below ``engines/``."""
    return sum(f.stat().st_size for f in Path(store.root, "engines").rglob("*") if f.is_file())


def _provision(home: Path, bundle: Path) -> str:
    """Make the bundle's engine in this home, without any fault; gives its key."""
    command = [sys.executable, "-c", _PROVISION, str(bundle), MODEL]
    env = {**os.environ, "REFIT_AGENT_HOME": str(home)}
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


_PROVISION = """
import sys
from refit_agent import ensure_engine
with ensure_engine(*sys.argv[1:], service=False) as engine:
    print(engine.key)
"""
