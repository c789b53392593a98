"""Many engines in one cache, made cheaply but real in form; and the same number of files in huggingface_hub's cache.

One engine is made by `ensure_engine`. All others are it again under another app's name and weights: a bundle whose
manifest differs, the key that follows from it, an entry with that key, and links to the one engine's files. Nothing of
these bundles exists but their manifests, since a hit reads nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.measured import OURS
from refit_agent import ensure_engine, paths
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.cache.entry import ENTRY_NAME, Entry, encode_entry
from refit_agent.cache.store import Store
from refit_agent.gpu.detect import detect
from refit_agent.keys import engine_facts, engine_key
from refit_agent.manifest import Manifest
from refit_agent.selection import select

#: A small engine: 10,000 of them count as 0.6 GB against the cache's quota.
_WIDTH = 4
_REVISION = hashlib.sha1(b"the only revision", usedforsecurity=False).hexdigest()
HUB_FILE = "model.onnx"
HUB_LOOK, HUB_LOCAL = "huggingface_hub try_to_load_from_cache", "huggingface_hub hf_hub_download, local"


class ManyEngines:
    """A cache below REFIT_AGENT_HOME that grows; ``bundles`` are the folders whose engine is in it."""

    def __init__(self, work: Path) -> None:
        self._bundles = work / "bundles"
        self.model = write_demo_bundle(str(work / "demo"), width=_WIDTH).models[0].name
        self._home = paths.home()
        self._store = Store(self._home.cache)
        with ensure_engine(str(work / "demo"), self.model, service=False) as engine:
            found = self._store.lookup(engine.key)
        assert isinstance(found, tuple)
        self._entry, self._folder, self._lease = found
        self._manifest = Bundle.open(str(work / "demo")).manifest
        self.bundles: list[str] = []
        self.keys: list[str] = []

    def grow(self, count: int, weights_bytes: int | None = None) -> None:
        """Have ``count`` engines; new ones have weights of ``weights_bytes``, a sparse file, instead of the one's own."""
        while len(self.bundles) < count:
            self._add(len(self.bundles), weights_bytes)

    def _add(self, number: int, weights_bytes: int | None) -> None:
        manifest = _of_another_app(self._manifest, number)
        bundle = self._bundles / f"{number:05}"
        bundle.mkdir(parents=True)
        (bundle / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        key, facts = self._key(manifest)
        folder = self._store.folder(key)
        os.mkdir(folder, mode=0o700)
        files = []
        for file in self._entry.files:
            target = f"{folder}/{file.name}"
            if weights_bytes is not None and file.name != self._entry.plan:
                with open(target, "wb") as sparse:
                    sparse.truncate(weights_bytes)
                status = os.stat(target)
                file = msgspec.structs.replace(file, size=status.st_size, mtime_ns=status.st_mtime_ns)
            else:
                os.link(f"{self._folder}/{file.name}", target)
            files.append(file)
        app = f"{manifest.app.id} {manifest.app.version}"
        entry: Entry = msgspec.structs.replace(self._entry, key=key, app=app, facts=facts, files=tuple(files))
        Path(folder, ENTRY_NAME).write_bytes(encode_entry(entry))
        self.bundles.append(str(bundle))
        self.keys.append(key)

    def _key(self, manifest: Manifest) -> tuple[str, dict[str, str]]:
        machine = detect(home=self._home)
        model = manifest.models[0]
        selection = select(manifest, model, None, machine, None)
        facts = engine_facts(selection.candidates[0], model, selection.profile, machine)
        return engine_key(facts), facts


def _of_another_app(manifest: Manifest, number: int) -> Manifest:
    model = manifest.models[0]
    assert model.onnx is not None
    onnx = msgspec.structs.replace(model.onnx, sha256=hashlib.sha256(b"%d" % number).hexdigest())
    app = msgspec.structs.replace(manifest.app, id=f"org.example.app{number}")
    return msgspec.structs.replace(manifest, app=app, models=(msgspec.structs.replace(model, onnx=onnx),))


# ---------------------------------------------------------------- huggingface_hub


class HubCache:
    """A cache of huggingface_hub's with one file in each of many repositories, as a download leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        root.mkdir()
        self._content = root / "content"
        self._content.write_bytes(b"an engine" * 1000)
        self.repos: list[str] = []

    def grow(self, count: int, file_bytes: int | None = None) -> None:
        """Have ``count`` repositories; new ones with a sparse file of ``file_bytes``, if given."""
        while len(self.repos) < count:
            number = len(self.repos)
            blob = hashlib.sha256(b"%d" % number).hexdigest()
            folder = Path(self.root, f"models--example--app{number}")
            for name in ("refs", "blobs", f"snapshots/{_REVISION}"):
                (folder / name).mkdir(parents=True)
            (folder / "refs/main").write_text(_REVISION)
            if file_bytes is None:
                os.link(self._content, folder / "blobs" / blob)
            else:
                with open(folder / "blobs" / blob, "wb") as sparse:
                    sparse.truncate(file_bytes)
            os.symlink(f"../../blobs/{blob}", folder / "snapshots" / _REVISION / HUB_FILE)
            self.repos.append(f"example/app{number}")


def hub_lookups(root: str) -> dict[str, Callable[[str], object]]:
    """Its ways from a repository's name to the path of the file; none if it is not installed."""
    with contextlib.suppress(ImportError):
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        return {
            HUB_LOOK: lambda repo: _path(try_to_load_from_cache(repo, HUB_FILE, cache_dir=root)),
            HUB_LOCAL: lambda repo: _path(hf_hub_download(repo, HUB_FILE, cache_dir=root, local_files_only=True)),
        }
    return {}


def _path(found: object) -> str:
    assert isinstance(found, str), "the file is not in the cache"
    return found


#: For a new process: what it needs to ask for one engine, and asking.
START = {
    OURS: (
        "import sys; from refit_agent import ensure_engine",
        "ensure_engine(sys.argv[1], sys.argv[2])",
    ),
    HUB_LOOK: (
        "import sys; from huggingface_hub import try_to_load_from_cache",
        f"try_to_load_from_cache(sys.argv[3], {HUB_FILE!r}, cache_dir=sys.argv[4])",
    ),
    HUB_LOCAL: (
        "import sys; from huggingface_hub import hf_hub_download",
        f"hf_hub_download(sys.argv[3], {HUB_FILE!r}, cache_dir=sys.argv[4], local_files_only=True)",
    ),
}
