"""Documents: manifests, what parent and worker say to each other, signatures, settings."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime

from bundles import make_bundle
from refit_agent.errors import WorkerTimeout, error_classes
from refit_agent.manifest import FileRef, Manifest, decode_manifest
from refit_agent.refit.messages import (
    Done,
    Failed,
    FetchJob,
    FileResult,
    GoldenJob,
    Job,
    Located,
    Phase,
    encoder,
)

from ..harness.bundle_signature import GOOD, MANIFEST, PINNED
from ..harness.worker_jobs import stand_in

HASH = "1ef1" * 16


def _bundle() -> Manifest:
    """The manifest of the bundle that harnesses use, too."""
    with tempfile.TemporaryDirectory() as folder:
        make_bundle(Path(folder, "bundle"))
        return decode_manifest(Path(folder, "bundle", "bundle.json").read_bytes(), "bundle.json")


# ---------------------------------------------------------------- manifests


def manifests() -> Mapping[str, bytes]:
    """Small and large ones, drafts, and some that break a rule each."""
    found = {"real": msgspec.json.encode(_bundle())}
    found |= {label: json.dumps(document).encode() for label, document in _manifests().items()}
    found["newer"] = b'{"schema": 2, "apps": []}'
    found["twice"] = found["tensorrt"][:-1] + b', "schema": 1}'
    found["deep"] = b'{"schema": 1, "app": ' + b"[" * 3000
    found["ignored-endless"] = found["tensorrt"][:-1] + b', "later": 1e999}'
    found["ignored-not-utf-8"] = found["tensorrt"][:-1] + b', "later": "\xff"}'
    return found


def _file(path: str, **more: object) -> dict[str, Any]:
    return {"path": path, "size": 10, "sha256": HASH, **more}


def _engine(**more: object) -> dict[str, Any]:
    facts = {"runtime": "tensorrt", "built_with": "10.16.1.11", "os": ["linux"], "compute_capabilities": ["9.0"]}
    return {**_file("a.plan"), "plan_size": 10, **facts, **more}


def _document(*engines: dict[str, Any], **model: object) -> dict[str, Any]:
    app = {"id": "org.example.test", "name": "Test", "version": "1"}
    return {
        "schema": 1,
        "app": app,
        "models": [{"name": "m", "onnx": _file("m.onnx"), "engines": list(engines), **model}],
    }


def _manifests() -> dict[str, dict[str, Any]]:
    golden = {"inputs": {"x": _file("x.npy")}, "outputs": {"y": _file("y.npy")}, "tolerance": 0.002, "profile": "p"}
    weight_map = {"w": {"from": "w2"}, "n": {"batch_norm": "scale", "scale": "s", "bias": "b", "mean": "m", "variance": "v", "epsilon": 1e-5}, "f": {"fill": 0.0, "count": 3, "dtype": "float32"}}  # fmt: skip
    ranks = [{**_file("r1"), "plan_size": 10, "safetensors": ["b.st"]}]
    llm = _engine(config=_file("config.json"), ranks=ranks, gpu="NVIDIA L4", safetensors=["a.st"], compute_capabilities=["8.9"])  # fmt: skip
    cpu = {**_file("m.cpu"), "plan_size": 10, "runtime": "onnxruntime", "built_with": "1.20.0"}
    return {
        "tensorrt": _document(_engine(), cpu),
        "ampere-plus": _document(_engine(hardware_compatibility="ampere-plus", min_compute_capability="8.0", compute_capabilities=[])),
        "rtx": _document(_engine(runtime="tensorrt-rtx", built_with="1.7.1", compute_capabilities=["12.0"])),
        "everything": _document(
            _engine(
                compression="zstd", plan_size=99, plan_sha256=HASH, version_compatible=True, gpu="NVIDIA H100 80GB HBM3", min_driver="525.60.13",
                hardware_compatibility="same-compute-capability", profile="p", precision="fp16", strip="zeros", refit="identical",
                weights_sha256=HASH, weight_map=weight_map, tolerance=0.05, include_refit=True, lean_runtime=_file("lean.so"), host_code=True,
            ),
            external=[_file("w.bin", url="https://example.org/w.bin")],
            golden=[golden], default_profile="p", version="3",
        ),
        "llm": {**_document(), "models": [{"name": "m", "safetensors": [_file("a.st"), _file("b.st")], "engines": [llm]}]},
        "draft": _document(),
        "no-model": {**_document(), "models": []},
        "path-out": _document(_engine(path="../a.plan")),
        "path-device": _document(_engine(path="con.plan")),
        "url-password": _document(cpu, onnx=_file("m.onnx", url="https://user:secret@example.org/m")),
        "url-ipv6": _document(cpu, onnx=_file("m.onnx", url="https://[::1]:8080/m?a=b")),
        "url-s3": _document(cpu, onnx=_file("m.onnx", url="s3://bucket/key", copied=True)),
        "two-hashes": _document(_engine(), _engine(sha256="0" * 64)),
        "endless-version": _document(_engine(built_with="9" * 5000 + ".1")),
        "foreign-digits": _document(_engine(compute_capabilities=["\u0669.\u0660"])),
        "line-end-in-hash": _document(_engine(sha256=HASH + "\n")),
        "unknown-fields": _document(_engine(colour="blue"), cpu, goldens=[]),
    }  # fmt: skip


# ---------------------------------------------------------------- worker


def worker_events() -> Mapping[str, bytes]:
    """Whole conversations, every error that there is, and nonsense."""
    file = FileResult(name="engine.plan", size=10, sha256=HASH)
    done = Done(files=(file,), runtime_version="10.16.1.11", check="golden", golden_error=0.001, seconds={"refit": 0.5}, notes=("n",))  # fmt: skip
    steps = [Phase(phase=phase, done=i, total=9, part=i % 2, parts=2) for i, phase in enumerate(("start", "unpack", "open", "map", "refit", "verify", "write", "check"))]  # fmt: skip
    facts = {"path": "/p", "detail": "d", "name": "n", "offset": 3, "seconds": 1.5}
    found = {
        "done": _lines(*steps, done),
        "done-alone": _lines(done),
        "no-check": _lines(msgspec.structs.replace(done, golden_error=None, check="none")),
        "fetch": _lines(Phase(phase="fetch", done=5, total=10), done),
        "silence": b"",
        "unfinished": _lines(*steps),
        "half-a-line": _lines(*steps)[:-5],
        "nonsense": _lines(*steps) + b"Segmentation fault\n",
        "unknown-phase": _lines(Phase(phase="dance", done=3, total=1), done),
        "unknown-code": _lines(Failed(code="from-the-future", facts=facts)),
        "nested-facts": _lines(Failed(code=WorkerTimeout.code, facts={"a": [1, {"b": None}], "hint": 3, "self": 1})),
        "after-the-end": _lines(done, done, Failed(code="x", facts={})),
        "part-of-none": _lines(*steps[:2]) + b'{"type":"phase","phase":"map","part":7,"parts":2}\n' + _lines(done),
        "endless-count": b'{"type":"phase","phase":"map","done":' + b"9" * 400 + b',"total":3}\n' + _lines(done),
        "long": b'{"type":"phase","phase":"' + b"x" * 20_000 + b'"}\n' + _lines(done),
    }
    for number, code in enumerate(sorted(error_classes())):
        found[f"failed-{number:02}"] = _lines(Failed(code=code, facts=facts))
    return found


def _lines(*events: object) -> bytes:
    return b"".join(encoder.encode(event) + b"\n" for event in events)


def worker_jobs() -> Mapping[str, bytes]:
    """Jobs for the CPU, for a GPU that is not there, for a download; whole and with a part that does not fit."""
    model = _bundle().models[0]
    engine, onnx, golden = model.engines[0], model.require_onnx(), model.golden[0]

    def located(ref: Any) -> Located:
        return Located(path=f"/bundle/{ref.path}", ref=ref)

    job = Job(
        staging="/staging",
        plan=f"/bundle/{engine.path}",
        engine=engine,
        weights=located(onnx),
        external=(),
        runtime="onnxruntime",
        module="onnxruntime",
        module_folder="",
        module_version=onnxruntime.__version__,
        gpu="",
    )
    replace = msgspec.structs.replace
    check = GoldenJob(
        inputs={k: located(v) for k, v in golden.inputs.items()},
        outputs={k: located(v) for k, v in golden.outputs.items()},
        tolerance=0.01,
    )
    fetch = FetchJob(staging="/staging", target="/staging/part", url="https://example.org/w", size=10, sha256=HASH)
    gpu = replace(engine, runtime="tensorrt", built_with="10.16.1.11", compute_capabilities=("9.0",), os=("linux",))
    jobs = {
        "cpu": job,
        "golden": replace(job, golden=(check,)),
        "smoke": replace(job, smoke_run=True, smoke_inputs=(check.inputs,)),
        "own-weights": replace(job, base=(located(onnx),)),
        "other-hash": replace(job, engine=replace(engine, sha256=HASH, plan_sha256=HASH)),
        "zstd": replace(job, engine=replace(engine, compression="zstd", plan_size=engine.plan_size + 1)),
        "xz": replace(job, engine=replace(engine, compression="xz")),
        "plan-size": replace(job, engine=replace(engine, plan_size=1 << 50)),
        "no-plan": replace(job, plan="/bundle/none"),
        "weight-map": replace(job, engine=replace(engine, weight_map={"w1": {"from": "w2"}, "b1": {"fill": 0.0, "count": 48, "dtype": "float32"}})),
        "safetensors": replace(job, weights=None, safetensors=(located(onnx),)),
        "ranks": replace(job, engine=replace(engine, ranks=(engine,)), ranks=(job.plan,)),
        "rank-missing": replace(job, engine=replace(engine, ranks=(engine,))),
        "config": replace(job, config=located(golden.inputs["x"]), engine=replace(engine, config=golden.inputs["x"])),
        "gpu": replace(job, runtime="tensorrt", module="tensorrt_lean", engine=gpu, gpu="GPU-0", compute_capability="9.0"),
        "lean": replace(job, engine=replace(engine, lean_runtime=golden.inputs["x"]), lean_runtime="/bundle/golden/x.npy"),
        "background": replace(job, background=True),
        "fetch": fetch,
        "fetch-s3": replace(fetch, url="s3://bucket/key", size=0),
    }  # fmt: skip
    refs = {ref.sha256: ref for ref in model.files()}
    found = {label: encoder.encode(_nameless(msgspec.to_builtins(value), refs)) for label, value in jobs.items()}
    return found | {"nothing": b"", "half": found["cpu"][:300]}


def _nameless(value: Any, refs: Mapping[str, FileRef]) -> Any:
    """The document without the hashes and sizes of this bundle's files, see the harness."""
    if isinstance(value, (list, tuple)):
        return [_nameless(item, refs) for item in value]
    if not isinstance(value, dict):
        return value
    ref = refs.get(value.get("sha256", ""))
    found = {key: _nameless(item, refs) for key, item in value.items()}
    if ref is not None:
        found["sha256"] = stand_in(ref.path)
        for key in ("size", "plan_size"):
            if found.get(key) == ref.size:
                found[key] = 0
        if found.get("plan_sha256") == ref.sha256:
            found["plan_sha256"] = stand_in(ref.path)
    return found


# ---------------------------------------------------------------- signatures and settings


def signatures() -> Mapping[str, bytes]:
    """The good one, alone and among others, and what is nearly it."""
    good = {"public_key": PINNED, "signature": base64.b64encode(GOOD).decode()}
    flipped = bytes([GOOD[0] ^ 1]) + GOOD[1:]
    # The other encoding of the same number that a careless verifier takes: S plus the group's order.
    order = (1 << 252) + 27742317777372353535851937790883648493
    second = GOOD[:32] + ((int.from_bytes(GOOD[32:], "little") + order) % (1 << 256)).to_bytes(32, "little")
    documents = {
        "good": [good],
        "others": [{"public_key": "ed25519:" + "A" * 43 + "=", "signature": good["signature"]}, good],
        "flipped": [{**good, "signature": base64.b64encode(flipped).decode()}],
        "second-encoding": [{**good, "signature": base64.b64encode(second).decode()}],
        "short": [{**good, "signature": base64.b64encode(GOOD[:-1]).decode()}],
        "no-base64": [{**good, "signature": "?" * 88}],
        "key-with-space": [{**good, "public_key": f" {PINNED}\n"}],
        "zero-key": [{"public_key": "ed25519:" + base64.b64encode(bytes(32)).decode(), "signature": "A" * 86 + "=="}],
        "none": [],
        "many": [good] * 33,
    }
    found = {label: json.dumps({"schema": 1, "signatures": entries}).encode() for label, entries in documents.items()}
    found["newer"] = json.dumps({"schema": 2, "signatures": [good]}).encode()
    found["manifest"] = MANIFEST
    return found


def settings_files() -> Mapping[str, bytes]:
    """Every setting, right and wrong, and what is no TOML."""
    texts = {
        "all": 'cache_dir = "~/cache/{user}"\ncache_quota = "20G"\nfetch = ["https", "s3"]\npublic_keys = []\nregister_from = ["/opt"]\n'
        'warm = true\nwarm_on_battery = false\nwarm_busy_percent = 20\nwarm_hours = "22:00-06:00"\n',
        "number": "cache_quota = 1000000\n",
        "hex": "cache_quota = 0xffffffffffffffffffffffff\n",
        "endless-number": "cache_quota = " + "9" * 5000,
        "endless-hex": "warm_busy_percent = 0x" + "f" * 5000,
        "endless-tables": "cache_quota" + ".a" * 1500 + " = 1",
        "wrong-forms": 'cache_dir = 3\ncache_quota = "much"\nfetch = "https"\nwarm = 1\nwarm_busy_percent = 1000\nwarm_hours = "25:00-1:0"\n',
        "dates": "cache_quota = 1979-05-27\nwarm = 07:32:00\nwarm_busy_percent = 1979-05-27T07:32:00Z\n",
        "floats": "cache_quota = inf\nwarm_busy_percent = nan\n",
        "tables": "[cache_quota]\na = 1\n[[warm]]\n",
        "unknown": 'colour = "blue"\n',
        "key": 'public_keys = ["ed25519:AAAA"]\n',
        "twice": "warm = true\nwarm = false\n",
        "no-toml": "warm: true\n",
        "deep": "warm = " + "[" * 900 + "]" * 900,
        "not-utf-8": "warm = '\xff'",
    }  # fmt: skip
    found = {label: text.encode("latin-1") for label, text in texts.items()}
    found["byte-order-mark"] = b"\xef\xbb\xbfwarm = true\n"
    return found
