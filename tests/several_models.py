"""A bundle of several models that differ, and a runtime that waits where a test wants it to."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from bundles import REAL, make_bundle, shim


def several_models(root: Path, count: int, **options: Any) -> Path:
    """Models m1, m2, ... with weights of their own, each as `bundles.make_bundle` makes its one."""
    root.mkdir()
    models = []
    for number in range(1, count + 1):
        part = make_bundle(root / f"m{number}", seed=number, **options)
        document = json.loads((part / "bundle.json").read_bytes())
        (part / "bundle.json").unlink()
        (model,) = document["models"]
        model["name"] = part.name
        _below(model, part.name)
        models.append(model)
    (root / "bundle.json").write_text(json.dumps(document | {"models": models}))
    return root


def _below(node: Any, folder: str) -> None:
    if isinstance(node, dict):
        if {"path", "size", "sha256"} <= node.keys():
            node["path"] = f"{folder}/{node['path']}"
        for value in node.values():
            _below(value, folder)
    elif isinstance(node, list):
        for value in node:
            _below(value, folder)


class WaitingRuntime:
    """A folder for the module search path whose onnxruntime waits, from the import with number ``waits_from`` on (the
    first is 1), until `go` was called. Each engine is one import. With ``session`` it waits where a session is made
    instead, when the worker has told its first steps."""

    def __init__(self, folder: Path, waits_from: int, session: bool = False) -> None:
        begin = f"""
        with open(os.path.join(HERE, "count"), "a") as file:
            file.write("x")
        _number = os.path.getsize(os.path.join(HERE, "count"))

        def _wait(here=HERE):
            ends = time.monotonic() + 100
            while _number >= {waits_from} and not os.path.exists(os.path.join(here, "go")) and time.monotonic() < ends:
                time.sleep(0.02)
        """
        held = """
        class _Session(onnxruntime.InferenceSession):
            def __init__(self, *args, **options):
                _wait()
                super().__init__(*args, **options)

        onnxruntime.InferenceSession = _Session
        """
        code = (
            [textwrap.dedent(begin), REAL, textwrap.dedent(held)]
            if session
            else [textwrap.dedent(begin), "_wait()\n", REAL]
        )
        self.folder = shim(folder, "".join(code))

    def go(self) -> None:
        """Let it work from now on."""
        (self.folder / "go").touch()

    def imports(self) -> int:
        """How many workers have begun."""
        count = self.folder / "count"
        return count.stat().st_size if count.exists() else 0
