from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refit_agent.bundle import Bundle
from refit_agent.errors import OwnWeightsInvalid
from refit_agent.keys import engine_facts, engine_key
from refit_agent.machine import InstalledRuntime, Machine
from refit_agent.manifest import FileRef, Model
from refit_agent.own_weights import own_weights
from refit_agent.refit.messages import Located
from refit_agent.selection import select


def write_model(path: Path, files: dict[str, str], *, seed: int = 0) -> None:
    """A model with a tensor for each entry of ``files``: name -> external file, "" for inside the model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = []
    for name, location in files.items():
        tensor = numpy_helper.from_array(rng.standard_normal(32, np.float32), name)
        if location:
            file = path.parent / location
            file.parent.mkdir(parents=True, exist_ok=True)
            offset = file.stat().st_size if file.exists() else 0
            with file.open("ab") as out:
                out.write(tensor.raw_data)
            onnx.external_data_helper.set_external_data(tensor, location=location, offset=offset, length=128)
            tensor.ClearField("raw_data")
        tensors.append(tensor)
    nodes = [helper.make_node("Add", ["x", name], [f"y_{name}"]) for name in files]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32])],
        [helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, [32]) for name in files],
        tensors,
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())


def ref(path: Path, name: str) -> FileRef:
    data = path.read_bytes()
    return FileRef(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def key(bundle: Path, model: Model) -> str:
    """The cache key of the bundle's CPU engine for this model."""
    machine = Machine(os="linux", arch="x86_64", runtimes=(InstalledRuntime(module="onnxruntime", version="99.0.0"),))
    selection = select(Bundle.open(bundle).manifest, model, None, machine, "cpu")
    return engine_key(engine_facts(selection.candidates[0], model, None, machine))


def test_a_model_in_one_file_is_hashed(tmp_path: Path) -> None:
    """Its path is absolute, its name is the file's."""
    write_model(tmp_path / "m.onnx", {"a": ""})
    own = own_weights(tmp_path / "m.onnx")
    assert own.onnx == Located(path=str(tmp_path / "m.onnx"), ref=ref(tmp_path / "m.onnx", "m.onnx"))
    assert own.external == ()


def test_external_files_are_found_and_hashed_once(tmp_path: Path) -> None:
    """Named as from the model's folder, in a fixed order, however many tensors lie in each."""
    write_model(tmp_path / "m.onnx", {"a": "z.bin", "b": "", "c": "sub/b.bin", "d": "z.bin"})
    own = own_weights(tmp_path / "m.onnx")
    assert [f.path for f in own.external] == [str(tmp_path / "sub/b.bin"), str(tmp_path / "z.bin")]
    assert [f.ref for f in own.external] == [ref(tmp_path / name, name) for name in ("sub/b.bin", "z.bin")]


def test_a_relative_path_is_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has another one, so absolute paths are handed on."""
    write_model(tmp_path / "m.onnx", {"a": "w.bin"})
    monkeypatch.chdir(tmp_path)
    own = own_weights("m.onnx")
    assert os.path.isabs(own.onnx.path)
    assert [f.path for f in own.external] == [str(tmp_path / "w.bin")]


def test_other_weights_have_another_key(tmp_path: Path, bundle: Path) -> None:
    """One byte in an external file is enough, with the model's own file as it was."""
    write_model(tmp_path / "a/m.onnx", {"a": "w.bin"})
    model = Bundle.open(bundle).manifest.models[0]
    keys = [key(bundle, model), key(bundle, own_weights(tmp_path / "a/m.onnx").in_place_of(model))]
    data = bytearray((tmp_path / "a/w.bin").read_bytes())
    data[5] ^= 1
    (tmp_path / "a/w.bin").write_bytes(data)
    keys.append(key(bundle, own_weights(tmp_path / "a/m.onnx").in_place_of(model)))
    assert len(set(keys)) == 3


def test_the_same_weights_elsewhere_have_the_same_key(tmp_path: Path, bundle: Path) -> None:
    """The content counts, not the place or the model's name."""
    model = Bundle.open(bundle).manifest.models[0]
    keys = set()
    for name in ("a/m.onnx", "b/other.onnx"):
        write_model(tmp_path / name, {"a": "w.bin"})
        keys.add(key(bundle, own_weights(tmp_path / name).in_place_of(model)))
    assert len(keys) == 1


def test_golden_data_of_the_old_weights_is_dropped(tmp_path: Path, bundle: Path) -> None:
    """The rest of the model stays as it is."""
    write_model(tmp_path / "m.onnx", {"a": "w.bin"})
    model = Bundle.open(bundle).manifest.models[0]
    assert model.golden
    new = own_weights(tmp_path / "m.onnx").in_place_of(model)
    assert new.golden == ()
    assert new.onnx.path == "m.onnx"
    assert [f.path for f in new.external] == ["w.bin"]
    assert msgspec.structs.replace(new, onnx=model.onnx, external=model.external, golden=model.golden) == model


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """By its absolute path."""
    with pytest.raises(OwnWeightsInvalid, match=r"none\.onnx"):
        own_weights(tmp_path / "none.onnx")


def test_a_model_that_cannot_be_read_now_is_not_called_the_bundle_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader would look for the fault in the app."""
    write_model(tmp_path / "m.onnx", {"w": ""})

    def fail(path: str) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr("refit_agent.own_weights.hash_file", fail)
    with pytest.raises(OwnWeightsInvalid, match=r"m\.onnx cannot be used: Input/output error\.$"):
        own_weights(tmp_path / "m.onnx")


def test_a_missing_external_file_is_named(tmp_path: Path) -> None:
    """Before anything is started."""
    write_model(tmp_path / "m.onnx", {"a": "w.bin", "b": "gone.bin"})
    (tmp_path / "gone.bin").unlink()
    with pytest.raises(OwnWeightsInvalid, match=r"gone\.bin"):
        own_weights(tmp_path / "m.onnx")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    """Also a folder, and an empty file."""
    (tmp_path / "text").write_text("no model at all")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "empty", "."):
        with pytest.raises(OwnWeightsInvalid):
            own_weights(tmp_path / name)


def test_external_data_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """A link in it that does is refused, not hashed."""
    write_model(tmp_path / "in/m.onnx", {"a": "w.bin"})
    (tmp_path / "in/w.bin").rename(tmp_path / "secret")
    (tmp_path / "in/w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(OwnWeightsInvalid, match="symbolic link"):
        own_weights(tmp_path / "in/m.onnx")


def test_a_folder_may_be_a_link(tmp_path: Path) -> None:
    """External files keep the names that the model gives them, and the model is not taken for one of them."""
    write_model(tmp_path / "real/m.onnx", {"a": "sub/w.bin", "b": ""})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    own = own_weights(tmp_path / "link/m.onnx")
    assert own.onnx.ref == ref(tmp_path / "real/m.onnx", "m.onnx")
    assert [f.ref.path for f in own.external] == ["sub/w.bin"]
    assert own_weights(tmp_path / "real/m.onnx").external[0].ref == own.external[0].ref


def test_a_model_may_be_a_link(tmp_path: Path) -> None:
    """Its external data lies beside the link, as for whoever opens the model by that path."""
    write_model(tmp_path / "store/abc", {"a": "w.bin"})
    (tmp_path / "here").mkdir()
    (tmp_path / "here/m.onnx").symlink_to(tmp_path / "store/abc")
    with pytest.raises(OwnWeightsInvalid, match=r"w\.bin"):
        own_weights(tmp_path / "here/m.onnx")
    (tmp_path / "store/w.bin").rename(tmp_path / "here/w.bin")
    own = own_weights(tmp_path / "here/m.onnx")
    assert own.onnx.path == str(tmp_path / "here/m.onnx")
    assert [f.ref.path for f in own.external] == ["w.bin"]


def test_names_longer_than_a_manifest_allows_reach_the_worker(tmp_path: Path) -> None:
    """It decodes its job by the manifest's rules; a long file name must not keep it from starting."""
    folder = "/".join(["d" * 100] * 3)
    write_model(tmp_path / ("m" * 250), {"a": f"{folder}/w.bin"})
    own = own_weights(tmp_path / ("m" * 250))
    for located in (own.onnx, *own.external):
        assert msgspec.json.decode(msgspec.json.encode(located), type=Located) == located
        assert Path(located.path).is_file()


def test_exchanged_links_are_other_weights(tmp_path: Path) -> None:
    """The files are the same by name and content; which tensor is in which is not."""
    model = tmp_path / "m.onnx"
    write_model(model, {"a": "a.bin", "b": "b.bin"})
    os.rename(tmp_path / "a.bin", tmp_path / "x1")
    os.rename(tmp_path / "b.bin", tmp_path / "x2")

    def linked(**links: str) -> list[tuple[str, str]]:
        for name, target in links.items():
            (tmp_path / f"{name}.bin").unlink(missing_ok=True)
            (tmp_path / f"{name}.bin").symlink_to(target)
        return [(f.ref.path, f.ref.sha256) for f in own_weights(model).external]

    assert linked(a="x1", b="x2") != linked(a="x2", b="x1")


def test_long_names_are_told_apart(tmp_path: Path) -> None:
    """Their ends alone may be the same."""
    end = "/".join(["d" * 60] * 4) + "/w.bin"
    write_model(tmp_path / "m.onnx", {"a": f"one/{end}", "b": f"two/{end}"})
    names = [f.ref.path for f in own_weights(tmp_path / "m.onnx").external]
    assert len(set(names)) == 2 and all(len(name) <= 200 for name in names)
