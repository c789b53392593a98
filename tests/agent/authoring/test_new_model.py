"""Models in a bundle: the file and its external data, confined, hashed, replaced only on request."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bundles import make_onnx
from plan_files import FACTS, one_model_bundle, tree, write_plan
from refit_agent.authoring.errors import (
    BundleUnwritable,
    ModelUnsupported,
    NameTaken,
    NameUnusable,
    SourceUnreadable,
    UrlUnusable,
)
from refit_agent.authoring.golden_data import add_golden
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_engine import add_engine
from refit_agent.authoring.new_model import add_model
from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.errors import BundleError, OnnxExternalMissing, OnnxMalformed, OnnxUnsafePath
from refit_agent.manifest import Model
from refit_agent.progress import Progress
from refit_agent.weights import OnnxWeights


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    init_bundle(tmp_path / "b", app_id="org.example.test", name="Test", version="1")
    return tmp_path / "b"


def _sound(root: Path, model: Model) -> None:
    """Every file is as the manifest says, and the model can be read from where it lies."""
    bundle = Bundle.open(root, draft=True)
    for ref in model.weight_files():
        verify_file(bundle.locate(ref), ref)
    assert model.onnx is not None
    with OnnxWeights(bundle.locate(model.onnx)) as weights:
        assert {name: weights[name].array().sum() for name in weights}.keys() == {"w1", "b1", "w2"}


def test_a_model_is_copied_and_hashed(draft: Path, tmp_path: Path) -> None:
    """The source stays as it is, and the bundle does not depend on it."""
    make_onnx(tmp_path / "source.onnx")
    data = (tmp_path / "source.onnx").read_bytes()
    steps: list[Progress] = []
    model = add_model(draft, "mlp", tmp_path / "source.onnx", version="3", progress=steps.append).model
    assert (model.onnx and model.onnx.path, model.version) == ("models/mlp/source.onnx", "3")
    assert (tmp_path / "source.onnx").read_bytes() == data
    (tmp_path / "source.onnx").unlink()
    _sound(draft, model)
    assert [s.fraction for s in steps] == sorted(s.fraction for s in steps)
    assert (steps[-1].done, steps[-1].total, steps[-1].fraction) == (len(data), len(data), 1.0)


@pytest.mark.parametrize("location", ["w1.bin", "data/w1.bin", "./w1.bin"])
def test_external_data_goes_along(draft: Path, tmp_path: Path, location: str) -> None:
    """Under the place that the model gives it."""
    (tmp_path / "data").mkdir()
    make_onnx(tmp_path / "m.onnx", external=location)
    model = add_model(draft, "mlp", tmp_path / "m.onnx").model
    assert [f.path for f in model.external] == [f"models/mlp/{location.removeprefix('./')}"]
    _sound(draft, model)


def test_external_data_through_a_link_within_the_folder(draft: Path, tmp_path: Path) -> None:
    """The bundle gets a file of the name that the model uses."""
    make_onnx(tmp_path / "m.onnx", external="w1.bin")
    os.rename(tmp_path / "w1.bin", tmp_path / "blob")
    (tmp_path / "w1.bin").symlink_to("blob")
    model = add_model(draft, "mlp", tmp_path / "m.onnx").model
    assert [f.path for f in model.external] == ["models/mlp/w1.bin"]
    assert not (draft / "models" / "mlp" / "w1.bin").is_symlink()
    _sound(draft, model)


def test_external_data_of_an_attribute_goes_along(draft: Path, tmp_path: Path) -> None:
    """Tensors in attributes are in no list of weights."""
    make_onnx(tmp_path / "m.onnx")
    loaded = onnx.load(str(tmp_path / "m.onnx"))
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="attribute.bin")
    loaded.graph.node[0].attribute.append(onnx.AttributeProto(name="extra", type=4, t=tensor))
    onnx.save(loaded, str(tmp_path / "m.onnx"))
    (tmp_path / "attribute.bin").write_bytes(bytes(16))
    model = add_model(draft, "mlp", tmp_path / "m.onnx").model
    assert [f.path for f in model.external] == ["models/mlp/attribute.bin"]


def test_a_link_is_another_name_of_the_same_file(draft: Path, tmp_path: Path) -> None:
    """No copy is made, also where the source is a symbolic link."""
    make_onnx(tmp_path / "real.onnx")
    (tmp_path / "m.onnx").symlink_to("real.onnx")
    model = add_model(draft, "mlp", tmp_path / "m.onnx", link=True).model
    _sound(draft, model)
    assert os.path.samefile(draft / "models" / "mlp" / "m.onnx", tmp_path / "real.onnx")
    assert not (draft / "models" / "mlp" / "m.onnx").is_symlink()


def test_a_link_to_another_disk_is_refused(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    """In words that say what works."""
    root = mounted("size=1m") / "b"
    init_bundle(root, app_id="a.b", name="n", version="1")
    make_onnx(tmp_path / "m.onnx")
    before = tree(root)
    with pytest.raises(BundleUnwritable, match="can be copied"):
        add_model(root, "mlp", tmp_path / "m.onnx", link=True)
    assert tree(root) == before


def test_a_model_in_the_bundle_stays_where_it_is(draft: Path) -> None:
    """With its external data."""
    (draft / "own").mkdir()
    make_onnx(draft / "own" / "m.onnx", external="w1.bin")
    model = add_model(draft, "mlp", draft / "own" / "m.onnx").model
    assert [f.path for f in model.weight_files()] == ["own/m.onnx", "own/w1.bin"]
    _sound(draft, model)
    assert not (draft / "models").exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "con", "x:y", "a.", ".hidden", "a\nb", "x" * 201]
)
def test_a_name_becomes_a_folder(draft: Path, tmp_path: Path, name: str) -> None:
    """So it must be a folder's on every operating system."""
    make_onnx(tmp_path / "m.onnx")
    before = tree(tmp_path)
    with pytest.raises(NameUnusable):
        add_model(draft, name, tmp_path / "m.onnx")
    assert tree(tmp_path) == before


def test_names_that_differ_in_case_alone(draft: Path, tmp_path: Path) -> None:
    """On Windows they would share a folder."""
    make_onnx(tmp_path / "m.onnx")
    add_model(draft, "Mlp", tmp_path / "m.onnx")
    with pytest.raises(NameUnusable, match="differs only in case from 'Mlp'"):
        add_model(draft, "mlp", tmp_path / "m.onnx")


# ---------------------------------------------------------------- replacing


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A bundle with an engine for these weights alone, and golden data."""
    root = one_model_bundle(tmp_path / "full", external=True)
    facts = {"refit": "identical", "profile": "small"}
    import msgspec

    add_engine(root, "mlp", write_plan(tmp_path / "p.plan"), msgspec.structs.replace(FACTS, **facts))
    add_golden(root, "mlp")
    return root


def test_a_model_is_not_replaced_by_chance(full: Path, tmp_path: Path) -> None:
    """A name that is taken is an error, and nothing changes."""
    before = tree(full)
    with pytest.raises(NameTaken, match="a model 'mlp' already"):
        add_model(full, "mlp", tmp_path / "full-source" / "mlp.onnx")
    assert tree(full) == before


def test_other_weights_take_the_engines_along(full: Path, tmp_path: Path) -> None:
    """They were made with the old ones; the result is a draft again, and no file is left over."""
    make_onnx(tmp_path / "other.onnx", seed=5)
    added = add_model(full, "mlp", tmp_path / "other.onnx", replace=True)
    assert (added.dropped_engines, added.dropped_golden) == (1, 1)
    assert added.model.engines == () and added.model.golden == ()
    assert [p for p, data in tree(full).items() if data != b"(folder)"] == ["bundle.json", "models/mlp-2/other.onnx"]
    _sound(full, added.model)


def test_an_original_below_models_is_never_removed(draft: Path, tmp_path: Path) -> None:
    """Perhaps the only one there is: it is named as left over; a copy goes."""
    (draft / "models" / "mlp").mkdir(parents=True)
    make_onnx(draft / "models" / "mlp" / "m.onnx", external="w1.bin")
    add_model(draft, "mlp", draft / "models" / "mlp" / "m.onnx")
    for seed in (5, 6):
        make_onnx(tmp_path / "other.onnx", seed=seed)
        added = add_model(draft, "mlp", tmp_path / "other.onnx", replace=True)
        assert added.left_over == (("models/mlp/m.onnx", "models/mlp/w1.bin") if seed == 5 else ())
    files = [p for p, data in tree(draft).items() if data != b"(folder)"]
    assert sorted(files) == ["bundle.json", "models/mlp-3/other.onnx", "models/mlp/m.onnx", "models/mlp/w1.bin"]


def test_the_same_weights_keep_the_engines(full: Path, tmp_path: Path) -> None:
    """Also those that take no others, though their files have other paths now."""
    before = Bundle.open(full).model("mlp")
    added = add_model(full, "mlp", tmp_path / "full-source" / "mlp.onnx", version="2", replace=True)
    assert (added.dropped_engines, added.dropped_golden) == (0, 0)
    after = Bundle.open(full).model("mlp")
    assert after.golden == before.golden and after.engines[0].path == before.engines[0].path
    assert after.weights_digest() != before.weights_digest(), "it depends on the paths of external data"
    assert after.engines[0].weights_sha256 == after.weights_digest()
    _sound(full, after)


# ---------------------------------------------------------------- bad input


def test_what_is_no_model(draft: Path, tmp_path: Path) -> None:
    """A damaged file, a folder, a FIFO and nothing at all."""
    make_onnx(tmp_path / "sound.onnx")
    data = (tmp_path / "sound.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "garbage.onnx").write_bytes(os.urandom(1000))
    os.mkfifo(tmp_path / "fifo.onnx")
    before = tree(draft)
    for name, kind in (
        ("cut", OnnxMalformed),
        ("empty", OnnxMalformed),
        ("garbage", OnnxMalformed),
        ("fifo", SourceUnreadable),
        ("none", SourceUnreadable),
    ):
        with pytest.raises(kind) as info:
            add_model(draft, "mlp", tmp_path / f"{name}.onnx")
        assert isinstance(info.value, BundleError) and "Reinstall" not in info.value.hint
    with pytest.raises(SourceUnreadable, match="not a regular file"):
        add_model(draft, "mlp", tmp_path)
    assert tree(draft) == before


@pytest.mark.parametrize("location", ["../w1.bin", "/etc/passwd", "a/../../w1.bin"])
def test_external_data_that_lies_elsewhere(draft: Path, tmp_path: Path, location: str) -> None:
    """A model that names files outside its folder does not get them into a bundle."""
    (tmp_path / "deep").mkdir()
    make_onnx(tmp_path / "deep" / "m.onnx", external="w1.bin")
    loaded = onnx.load(str(tmp_path / "deep" / "m.onnx"), load_external_data=False)
    for entry in loaded.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (tmp_path / "deep" / "m.onnx").write_bytes(loaded.SerializeToString())
    (tmp_path / "w1.bin").write_bytes(bytes(100_000))
    before = tree(draft)
    with pytest.raises(OnnxUnsafePath):
        add_model(draft, "mlp", tmp_path / "deep" / "m.onnx")
    assert tree(draft) == before


def test_external_data_by_a_link_that_leads_out(draft: Path, tmp_path: Path) -> None:
    """Confined by where it really lies."""
    (tmp_path / "deep").mkdir()
    make_onnx(tmp_path / "deep" / "m.onnx", external="w1.bin")
    os.rename(tmp_path / "deep" / "w1.bin", tmp_path / "w1.bin")
    (tmp_path / "deep" / "w1.bin").symlink_to("../w1.bin")
    with pytest.raises(OnnxUnsafePath):
        add_model(draft, "mlp", tmp_path / "deep" / "m.onnx")


def test_external_data_that_is_missing_or_has_a_name_of_windows(draft: Path, tmp_path: Path) -> None:
    """What cannot ship on every operating system does not ship."""
    make_onnx(tmp_path / "m.onnx", external="w1.bin")
    (tmp_path / "w1.bin").unlink()
    with pytest.raises(OnnxExternalMissing):
        add_model(draft, "mlp", tmp_path / "m.onnx")
    make_onnx(tmp_path / "n.onnx", external="aux.bin")
    with pytest.raises(ModelUnsupported, match=r"'aux\.bin'.*device on Windows"):
        add_model(draft, "mlp", tmp_path / "n.onnx")
    assert sorted(os.listdir(draft)) == ["bundle.json"]


def test_a_copy_that_is_stopped_leaves_nothing(draft: Path, tmp_path: Path) -> None:
    """What the progress callback raises ends the work."""
    make_onnx(tmp_path / "m.onnx")
    before = tree(draft)

    def stop(step: Progress) -> None:
        if step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_model(draft, "mlp", tmp_path / "m.onnx", progress=stop)
    assert tree(draft) == before


def test_weights_that_users_fetch(tmp_path: Path) -> None:
    """Every file of the model has its address, by its path in the bundle; the files are there to work with."""
    root = tmp_path / "bundle"
    init_bundle(root, app_id="org.example.app", name="App", version="1")
    make_onnx(tmp_path / "a b.onnx", external="w.bin")
    model = add_model(root, "mlp", tmp_path / "a b.onnx", url="https://cdn.example.org/app/1").model
    assert [ref.url for ref in model.weight_files()] == [
        "https://cdn.example.org/app/1/" + ref.path.replace(" ", "%20") for ref in model.weight_files()
    ]
    assert all((root / ref.path).exists() for ref in model.weight_files())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://x/y",
        "file:///tmp",
        "https://",
        "x",
        "https://x/y?token=1",
        "https://x/#a",
        "https://[x",
        "https://u:p@x/",
    ],
)
def test_what_no_user_would_fetch_from_is_refused(tmp_path: Path, url: str) -> None:
    """Before anything is copied."""
    root = tmp_path / "bundle"
    init_bundle(root, app_id="org.example.app", name="App", version="1")
    make_onnx(tmp_path / "m.onnx")
    with pytest.raises(UrlUnusable):
        add_model(root, "mlp", tmp_path / "m.onnx", url=url)
    assert list(root.iterdir()) == [root / "bundle.json"]
