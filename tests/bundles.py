"""Small real bundles: ONNX models made with the onnx package, CPU plans, golden data by ONNX Runtime."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import zstandard
from onnx import TensorProto, helper, numpy_helper

import refit_agent
from refit_agent.authoring.cpu_plan import make_cpu_plan
from refit_agent.authoring.write_bundle import file_ref, write_manifest
from refit_agent.manifest import App, Engine, Golden, Manifest, Model

MODEL = "mlp"
SIZE = 48
GOLDEN_INPUT = "golden/x.npy"
GOLDEN_OUTPUT = "golden/y.npy"


def make_onnx(path: Path, *, seed: int = 0, external: str = "") -> None:
    """Two layers, with weights large enough to be stripped; ``external`` names a file for the first one's."""
    rng = np.random.default_rng(seed)
    arrays = {
        "w1": rng.standard_normal((SIZE, SIZE), np.float32),
        "b1": rng.standard_normal(SIZE, np.float32),
        "w2": rng.standard_normal((SIZE, SIZE), np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"]),
        helper.make_node("Add", ["h1", "b1"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["h3"]),
        helper.make_node("MatMul", ["h3", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external:
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], location=external)
        (path.parent / external).write_bytes(arrays["w1"].tobytes())
        model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def make_bundle(root: Path, *, seed: int = 0, external: bool = False, compression: str = "none") -> Path:
    """A bundle with one model, one CPU engine and golden data."""
    for folder in ("models", "plans", "golden"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    source = root / "models" / "mlp.onnx"
    make_onnx(source, seed=seed, external="w1.bin" if external else "")
    plan = root / "plans" / "mlp.cpu"
    make_cpu_plan(str(source), str(plan))
    plan_bytes = plan.read_bytes()
    plan.write_bytes(compressed(plan_bytes, compression))
    x = np.random.default_rng(1).standard_normal((3, SIZE), np.float32)
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    np.save(root / GOLDEN_INPUT, x)
    np.save(root / GOLDEN_OUTPUT, session.run(["y"], {"x": x})[0])
    ref = file_ref(str(root), "plans/mlp.cpu")
    engine = Engine(
        path=ref.path,
        size=ref.size,
        sha256=ref.sha256,
        runtime="onnxruntime",
        built_with="1.18.0",
        plan_size=len(plan_bytes),
        plan_sha256=hashlib.sha256(plan_bytes).hexdigest(),
        compression=compression,  # type: ignore[arg-type]
    )
    golden = Golden(inputs={"x": file_ref(str(root), GOLDEN_INPUT)}, outputs={"y": file_ref(str(root), GOLDEN_OUTPUT)})
    model = Model(
        name=MODEL,
        onnx=file_ref(str(root), "models/mlp.onnx"),
        external=(file_ref(str(root), "models/w1.bin"),) if external else (),
        engines=(engine,),
        golden=(golden,),
    )
    app = App(id="org.example.test", name="Test", version="1.0")
    write_manifest(str(root), Manifest(schema=1, app=app, models=(model,)))
    return root


def compressed(data: bytes, compression: str) -> bytes:
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return lzma.compress(data) if compression == "xz" else data


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a document, unchecked."""
    path = root / "bundle.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def model_of(document: dict[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = document["models"][0]
    return model


def rehash(root: Path) -> None:
    """Bring size and hash of every file in the manifest up to date."""

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            if {"path", "size", "sha256"} <= node.keys():
                ref = file_ref(str(root), node["path"])
                node["size"], node["sha256"] = ref.size, ref.sha256
            for value in node.values():
                visit(value)
        elif isinstance(node, list):
            for value in node:
                visit(value)

    edit(root, visit)


def add_broken_engine(root: Path, plan: bytes = b"this is no ONNX graph", *, first: bool = True) -> None:
    """A second engine whose plan is what the manifest says, and no good."""
    (root / "plans" / "broken.cpu").write_bytes(plan)
    ref = file_ref(str(root), "plans/broken.cpu")
    entry = {
        "path": ref.path,
        "size": ref.size,
        "sha256": ref.sha256,
        "runtime": "onnxruntime",
        # The newer builder ranks first.
        "built_with": "1.19.0" if first else "1.17.0",
        "plan_size": ref.size,
    }
    edit(root, lambda d: model_of(d)["engines"].insert(0 if first else 1, entry))


def other_onnx_weights(root: Path) -> None:
    """Other weights under the same names, with a manifest that says so."""
    make_onnx(root / "models" / "mlp.onnx", seed=99)
    rehash(root)


# ---------------------------------------------------------------- runtimes that misbehave

#: It claims the version of the real one: a worker refuses a runtime that is not the one it was sent for.
_SHIM_HEAD = f"""\
__version__ = "{onnxruntime.__version__}"
import ctypes, os, sys, time
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""
#: Ends a shim that lets the real runtime do its work after all.
REAL = "sys.path.remove(HERE)\ndel sys.modules['onnxruntime']\nimport onnxruntime\n"


def shim(folder: Path, code: str) -> Path:
    """A package ``onnxruntime`` that runs ``code`` when a worker imports it; put ``folder`` first on the path."""
    package = folder / "onnxruntime"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(_SHIM_HEAD + textwrap.dedent(code))
    return folder


def python(code: str, *args: str | os.PathLike[str], path: Sequence[Path] = ()) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a child that runs ``code`` with ``args`` and sees ``path`` first."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(os.fspath, args)]
    entries = [*map(str, path), str(Path(__file__).parent), str(Path(refit_agent.__file__).parents[1])]
    return command, {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
