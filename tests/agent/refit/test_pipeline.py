from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from bundles import GOLDEN_INPUT, GOLDEN_OUTPUT, edit, make_bundle, make_onnx, model_of, other_onnx_weights, rehash
from jobs import job_for
from refit_agent.errors import (
    BundleFileMismatch,
    BundleFileMissing,
    GoldenMismatch,
    OnnxError,
    PlanInvalid,
    PlanRefused,
    RefitAgentError,
    WeightsMismatch,
    WeightsUncovered,
    WeightUnsupported,
)
from refit_agent.manifest import FileRef
from refit_agent.refit.messages import Done, Job, Phase
from refit_agent.refit.pipeline import run
from refit_agent.runtimes.onnxruntime_cpu import OnnxRuntime


def refit(root: Path, tmp_path: Path, **changes: Any) -> Done:
    return run(job_for(root, tmp_path / "staging", **changes), lambda _: None)


def test_what_is_reported_done_is_on_the_disk_and_computes_what_the_source_computes(
    bundle: Path, tmp_path: Path
) -> None:
    """Sizes and hashes are those of the files."""
    done = refit(bundle, tmp_path)
    for file in done.files:
        data = (tmp_path / "staging" / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    assert done.check == "golden"
    assert set(done.seconds) == {"start", "unpack", "open", "map", "refit", "verify", "write", "check"}


@pytest.mark.parametrize(
    ("asked", "check"),
    [
        ({}, "golden"),
        ({"golden": ()}, "loaded"),
        ({"golden": (), "smoke_run": True}, "smoke"),
        ({"load": False}, "golden"),
        ({"load": False, "golden": ()}, "none"),
    ],
)
def test_an_engine_is_loaded_beside_every_other_check(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], check: str
) -> None:
    """As a host app loads it, where the job asks for that, and once."""
    loaded: list[str] = []
    load = OnnxRuntime.load
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, path: (loaded.append(path), load(self, path)))
    assert refit(bundle, tmp_path, **{"load": True, **asked}).check == check
    assert loaded == ([str(tmp_path / "staging" / "model.onnx")] if asked.get("load", True) else [])


@pytest.mark.parametrize("path", ["plans/mlp.cpu", "models/mlp.onnx", "models/w1.bin", GOLDEN_INPUT, GOLDEN_OUTPUT])
@pytest.mark.parametrize("damage", ["one bit", "cut", "gone"])
def test_every_file_is_checked_against_its_hash(tmp_path: Path, path: str, damage: str) -> None:
    """One bit is enough, and the file is named."""
    root = make_bundle(tmp_path / "bundle", external=True)
    job = job_for(root, tmp_path / "staging")
    file = root / path
    data = bytearray(file.read_bytes())
    data[-200] ^= 1
    os.unlink(file)
    if damage != "gone":
        file.write_bytes(data if damage == "one bit" else data[:-1])
    kind: type[RefitAgentError] = BundleFileMissing if damage == "gone" else BundleFileMismatch
    with pytest.raises(kind, match=path):
        run(job, lambda _: None)


def test_a_damaged_model_is_called_damaged_and_not_unfit_for_the_plan(bundle: Path, tmp_path: Path) -> None:
    """What is remembered of a machine must not come from a file that a new download mends."""
    job = job_for(bundle, tmp_path / "staging")
    model = onnx.load(str(bundle / "models/mlp.onnx"))
    for tensor in model.graph.initializer:
        tensor.name = "x" + tensor.name
    (bundle / "models/mlp.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleFileMismatch, match=r"mlp\.onnx"):
        run(job, lambda _: None)
    rehash(bundle)
    with pytest.raises(WeightsUncovered, match="2 of the plan's weights have no source"):
        refit(bundle, tmp_path)


def test_an_unpacked_plan_is_checked_too(tmp_path: Path) -> None:
    """The key is made from its hash."""
    root = make_bundle(tmp_path / "bundle", compression="zstd")
    edit(root, lambda d: model_of(d)["engines"][0].update(plan_sha256="0" * 64))
    with pytest.raises(PlanInvalid, match="unpacked, its SHA-256 is not 0000"):
        refit(root, tmp_path)


@pytest.mark.parametrize("kind", ["zstd", "xz"])
def test_a_compressed_plan_and_external_weights_work(tmp_path: Path, kind: str) -> None:
    """The golden data says so."""
    root = make_bundle(tmp_path / "bundle", compression=kind, external=True)
    assert refit(root, tmp_path).check == "golden"


def test_weights_from_a_file_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    """Nobody has checked its hash, and it does not stand in the key."""
    root = make_bundle(tmp_path / "bundle", external=True)
    edit(root, lambda d: model_of(d).pop("external"))
    with pytest.raises(WeightUnsupported, match=r"w1\.bin, which the manifest does not list"):
        refit(root, tmp_path)
    extra = root / "models" / "w1.bin"
    edit(root, lambda d: model_of(d).update(external=[{"path": "models/extra", "size": 1, "sha256": "0" * 64}]))
    extra.rename(root / "models" / "extra")
    extra.symlink_to("extra")
    rehash(root)
    assert refit(root, tmp_path / "again").check == "golden", "a link to a listed file is that file"


def test_other_weights_under_a_manifest_that_fits_them_fail_the_golden_check(bundle: Path, tmp_path: Path) -> None:
    """Hashes say nothing about results."""
    other_onnx_weights(bundle)
    with pytest.raises(GoldenMismatch, match="differs from the expected one by"):
        refit(bundle, tmp_path)
    # Without golden data there is nothing to compare with, and the entry says so.
    edit(bundle, lambda d: model_of(d).pop("golden"))
    assert refit(bundle, tmp_path / "again").check == "none"


def test_the_tolerance_decides(bundle: Path, tmp_path: Path) -> None:
    """A small difference passes or fails by the manifest's number."""
    output = bundle / GOLDEN_OUTPUT
    np.save(output, np.load(output) * np.float32(1.05))
    rehash(bundle)
    with pytest.raises(GoldenMismatch, match=r"by 0\.0476 \(relative L2\), and 0\.01 is allowed"):
        refit(bundle, tmp_path)
    edit(bundle, lambda d: model_of(d)["golden"][0].update(tolerance=0.1))
    assert refit(bundle, tmp_path / "again").golden_error == pytest.approx(0.0476, rel=0.01)


def test_golden_inputs_of_other_names_are_refused_with_the_runtime_s_words(bundle: Path, tmp_path: Path) -> None:
    """The model has no such input."""
    edit(bundle, lambda d: model_of(d)["golden"][0].update(inputs={"z": model_of(d)["golden"][0]["inputs"]["x"]}))
    with pytest.raises(PlanRefused, match="ONNX Runtime"):
        refit(bundle, tmp_path)


@pytest.mark.parametrize("change", ["shape", "type"])
def test_a_model_with_another_shape_or_type_is_refused(bundle: Path, tmp_path: Path, change: str) -> None:
    """Also where the number of bytes is the same."""
    path = bundle / "models/mlp.onnx"
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    if change == "shape":
        tensor.dims[:] = [24, 96]
    else:
        tensor.data_type = onnx.TensorProto.INT32
    path.write_bytes(model.SerializeToString())
    rehash(bundle)
    edit(bundle, lambda d: model_of(d).pop("golden"))
    with pytest.raises(WeightsMismatch, match="'w1'"):
        refit(bundle, tmp_path)


def test_a_model_that_is_no_onnx_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    """Although its hash is right."""
    (bundle / "models/mlp.onnx").write_bytes(b"\x3a\xff\xff\xff\xff\x0fgarbage")
    rehash(bundle)
    with pytest.raises(OnnxError):
        refit(bundle, tmp_path)


def test_code_that_the_bundle_brings_is_checked_before_it_could_run(bundle: Path, tmp_path: Path) -> None:
    """A lean runtime is a library that the worker loads."""
    job = job_for(bundle, tmp_path / "staging")
    (tmp_path / "lean.so").write_bytes(b"evil")
    lean = FileRef(path="lean.so", size=4, sha256="0" * 64)
    engine = msgspec.structs.replace(job.engine, lean_runtime=lean)
    with pytest.raises(BundleFileMismatch, match=r"lean\.so"):
        run(msgspec.structs.replace(job, engine=engine, lean_runtime=str(tmp_path / "lean.so")), lambda _: None)


def test_a_plan_that_is_refused_says_so_while_its_hash_is_still_being_taken(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the plan is not replaced by one about a buffer in use."""
    from refit_agent.refit import inputs, pipeline

    class Slow:
        def __init__(self, view: memoryview | None = None) -> None:
            if view is None:
                return
            held = struct.iter_unpack("B", view)  # as hashlib holds it
            time.sleep(0.3)
            del held

        def update(self, data: memoryview) -> None:
            pass

        def hexdigest(self) -> str:
            return ""

    def refuse(self: object, image: object) -> None:
        time.sleep(0.05)
        raise PlanRefused(runtime="r", version="v", path="p", detail="no such plan")

    monkeypatch.setattr(pipeline.hashlib, "sha256", Slow)
    monkeypatch.setattr(inputs, "verify_file", lambda *_, **__: None)
    monkeypatch.setattr("refit_agent.refit.unpack.require_match", lambda *_: None)
    monkeypatch.setattr("refit_agent.runtimes.onnxruntime_cpu.OnnxRuntime.open", refuse)
    with pytest.raises(PlanRefused, match="no such plan"):
        refit(bundle, tmp_path)


def test_beside_a_plan_lies_an_onnx_file_that_points_at_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reported like every file of the engine, and last; the plan is the first."""
    from refit_agent.refit import pipeline
    from refit_agent.runtimes.base import WrittenFile
    from refit_agent.runtimes.onnxruntime_cpu import OnnxRuntime

    def load(job: Job) -> OnnxRuntime:
        runtime = OnnxRuntime(job)
        open_plan = runtime.open

        def opened(image: object) -> object:
            plan = open_plan(image)  # type: ignore[arg-type]
            write = plan.write

            def renamed(folder: str, on_bytes: object) -> list[WrittenFile]:
                first = write(folder, on_bytes)[0]  # type: ignore[arg-type]
                os.rename(f"{folder}/{first.name}", f"{folder}/engine.plan")
                return [first._replace(name="engine.plan")]

            monkeypatch.setattr(plan, "write", renamed)
            return plan

        monkeypatch.setattr(runtime, "open", opened)
        monkeypatch.setattr(runtime, "run", lambda *_: {})
        return runtime

    monkeypatch.setattr(pipeline, "load_runtime", load)
    job = job_for(bundle, tmp_path / "staging", compute_capability="12.0", golden=(), smoke_run=False)
    engine = msgspec.structs.replace(job.engine, runtime="tensorrt")
    done = run(msgspec.structs.replace(job, engine=engine), lambda _: None)
    assert [f.name for f in done.files] == ["engine.plan", "context.onnx"]
    data = (tmp_path / "staging" / "context.onnx").read_bytes()
    assert hashlib.sha256(data).hexdigest() == done.files[1].sha256
    attributes = {a.name: a.s for a in onnx.load_from_string(data).graph.node[0].attribute}
    assert (attributes["ep_cache_context"], attributes["hardware_architecture"]) == (b"engine.plan", b"120")


def test_progress_does_not_flood_the_parent(tmp_path: Path) -> None:
    """Some events a second, and one at the beginning of each phase."""
    root = make_bundle(tmp_path / "bundle")
    make_onnx(root / "models" / "mlp.onnx")
    events: list[Phase] = []
    run(job_for(root, tmp_path / "staging"), events.append)
    assert [e.phase for e in events if (e.done, e.total) == (0, 0)] == list(dict.fromkeys(e.phase for e in events))
    assert len(events) < 20


@pytest.mark.parametrize("moment", ["open_weights", "unpack_checked"])
def test_a_folder_exchanged_for_a_moment_changes_nothing_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The files are back under their names, with their times, before anybody looks again."""
    from refit_agent.refit import pipeline

    sound, other = make_bundle(tmp_path / "bundle"), make_bundle(tmp_path / "other", seed=5)
    before = getattr(pipeline, moment)

    def exchanged(*args: Any) -> Any:
        os.rename(sound, tmp_path / "aside")
        os.rename(other, sound)
        try:
            return before(*args)
        finally:
            os.rename(sound, other)
            os.rename(tmp_path / "aside", sound)

    monkeypatch.setattr(pipeline, moment, exchanged)
    with pytest.raises(BundleFileMismatch, match="changed while"):
        run(job_for(sound, tmp_path / "staging", golden=()), lambda _: None)
