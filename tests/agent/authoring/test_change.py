"""Changes to a bundle: whole or not at all, one at a time, and nothing left over, whatever stops them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from filelock import FileLock

from bundles import make_onnx, python
from plan_files import one_model_bundle, tree
from refit_agent.authoring import change as change_module
from refit_agent.authoring.change import LOCK_NAME, STAGING_PREFIX, BundleChange
from refit_agent.authoring.errors import BundleBusy, BundleExists, BundleUnwritable, FieldsUnknown
from refit_agent.authoring.new_bundle import init_bundle
from refit_agent.authoring.new_model import add_model
from refit_agent.authoring.places import Places
from refit_agent.bundle import Bundle
from refit_agent.errors import BundleError, BundleMissing, ManifestInvalid, SettingInvalid
from refit_agent.manifest import FileRef, Manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_model_bundle(tmp_path / "bundle")


def _add_file(change: BundleChange, name: str, data: bytes = b"data") -> Callable[[Manifest, Places], Manifest]:
    staged = os.path.join(change.folder(), "file")
    Path(staged).write_bytes(data)

    def edit(manifest: Manifest, places: Places) -> Manifest:
        (model,) = manifest.models
        ref = FileRef(path=places.put(staged, name), size=len(data), sha256="0" * 64, copied=True)
        return msgspec.structs.replace(manifest, models=(msgspec.structs.replace(model, external=(ref,)),))

    return edit


# ---------------------------------------------------------------- init


def test_a_new_bundle_is_a_draft_that_no_app_takes(tmp_path: Path) -> None:
    """Neither it nor a model without engines is a bundle for anybody but those who make it."""
    made = init_bundle(tmp_path / "b", app_id="com.example.photo", name="Photo", version="2.3.0")
    assert made.manifest.app.id == "com.example.photo" and made.manifest.models == ()
    assert list(tree(tmp_path / "b")) == ["bundle.json"]
    with pytest.raises(ManifestInvalid, match="not finished: it has no model yet") as info:
        Bundle.open(tmp_path / "b")
    assert "add-model" in info.value.hint
    make_onnx(tmp_path / "m.onnx")
    add_model(tmp_path / "b", "m", tmp_path / "m.onnx")
    with pytest.raises(ManifestInvalid, match="no engine yet for 'm'"):
        Bundle.open(tmp_path / "b")
    assert Bundle.open(tmp_path / "b", draft=True).manifest.models[0].name == "m"


def test_a_bundle_is_never_made_over_another(root: Path) -> None:
    """And what lies in the folder stays."""
    before = tree(root)
    with pytest.raises(BundleExists):
        init_bundle(root, app_id="a.b", name="n", version="1")
    assert tree(root) == before


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"app_id": "photo"}, "the app's id is 'photo', which is not an id in reverse-DNS form"),
        ({"app_id": "a..b"}, "the app's id"),
        ({"name": ""}, "the app's name"),
        ({"version": "x" * 201}, "the app's version"),
    ],
)
def test_wrong_facts_of_the_app_make_nothing(tmp_path: Path, fields: dict[str, str], says: str) -> None:
    """Each is named; no folder is left."""
    with pytest.raises(SettingInvalid) as info:
        init_bundle(tmp_path / "b", **({"app_id": "a.b", "name": "n", "version": "1"} | fields))
    assert says in str(info.value)
    assert not (tmp_path / "b").exists()


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    """Below a file, or below nothing."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "b", tmp_path / "none" / "b"):
        with pytest.raises(BundleUnwritable):
            init_bundle(path, app_id="a.b", name="n", version="1")
    assert list(tree(tmp_path)) == ["file"]


# ---------------------------------------------------------------- whole or not at all


def test_a_change_that_fails_leaves_everything_as_it_was(root: Path) -> None:
    """Before the commit, within it, and by a manifest that would not be accepted."""
    before = tree(root)
    with pytest.raises(RuntimeError), BundleChange(root) as change:
        _add_file(change, "engines/mlp/x")
        raise RuntimeError
    assert tree(root) == before

    def refuse(manifest: Manifest, places: Places) -> Manifest:
        edit(manifest, places)
        raise RuntimeError

    with pytest.raises(RuntimeError), BundleChange(root) as change:
        edit = _add_file(change, "engines/mlp/x")
        change.commit(refuse)
    assert tree(root) == before
    with pytest.raises(ManifestInvalid, match="two different hashes"), BundleChange(root) as change:
        edit = _add_file(change, "new/place")
        change.commit(lambda m, p: _twice(edit(m, p)))
    assert tree(root) == before


def _twice(manifest: Manifest) -> Manifest:
    (model,) = manifest.models
    other = msgspec.structs.replace(model.external[0], sha256="1" * 64)
    return msgspec.structs.replace(
        manifest, models=(msgspec.structs.replace(model, external=(*model.external, other)),)
    )


def test_a_manifest_that_cannot_be_replaced_takes_the_files_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They had their places already."""
    before = tree(root)
    monkeypatch.setattr(change_module, "replace_file", _fail)
    with pytest.raises(BundleUnwritable, match="no more disk"), BundleChange(root) as change:
        change.commit(_add_file(change, "engines/mlp/deep/x"))
    assert tree(root) == before
    (root / "bundle.sig").write_text("{}")
    with pytest.raises(BundleUnwritable, match="no more disk"), BundleChange(root) as change:
        change.commit(_add_file(change, "engines/mlp/deep/x"))
    assert (root / "bundle.sig").read_text() == "{}", "the manifest that it is of still stands"


def test_the_signature_goes_before_the_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One made right after the manifest was replaced is not taken for the old one."""
    (root / "bundle.sig").write_text("old")
    real = change_module.replace_file

    def replace(*arguments: Any) -> None:
        assert not (root / "bundle.sig").exists()
        real(*arguments)
        (root / "bundle.sig").write_text("new")

    monkeypatch.setattr(change_module, "replace_file", replace)
    with BundleChange(root) as change:
        change.commit(_add_file(change, "models/mlp/more"))
    assert (root / "bundle.sig").read_text() == "new"


def _fail(*_: object) -> None:
    raise OSError(28, "no more disk")


def test_what_is_in_the_way_stays(root: Path) -> None:
    """A file that the manifest does not name is somebody's."""
    (root / "engines" / "mlp").mkdir(parents=True)
    (root / "engines" / "mlp" / "x").write_bytes(b"mine")
    before = tree(root)
    with pytest.raises(BundleError, match="a file engines/mlp/x already"), BundleChange(root) as change:
        change.commit(_add_file(change, "engines/mlp/x"))
    assert tree(root) == before
    with BundleChange(root) as change:
        places = Places(str(root), change.bundle.manifest)
        assert places.free("engines/mlp/x") == "engines/mlp/x-2"
        assert places.free("models/MLP/mlp.onnx") == "models/MLP/mlp-2.onnx", "one file on Windows"
        assert places.free("engines/mlp/y.plan.zst") == "engines/mlp/y.plan.zst"


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "engines/con", "a\\b", "x:y", "engines/../../x"])
def test_a_file_never_leaves_the_bundle(root: Path, path: str) -> None:
    """By the rules of both operating systems."""
    before = tree(root.parent)
    with pytest.raises(SettingInvalid, match="cannot be a file of the bundle"), BundleChange(root) as change:
        change.commit(_add_file(change, path))
    assert tree(root.parent) == before


def test_a_folder_that_is_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    """Whoever unpacks a hostile bundle and works on it writes nothing elsewhere."""
    (tmp_path / "outside").mkdir()
    (root / "engines").symlink_to(tmp_path / "outside")
    before = tree(tmp_path)
    with pytest.raises(BundleUnwritable, match="symbolic link"), BundleChange(root) as change:
        change.commit(_add_file(change, "engines/mlp/x"))
    assert tree(tmp_path) == before


def test_a_lock_that_is_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    """Its target is neither made nor emptied."""
    (tmp_path / "victim").write_text("content")
    (root / LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(BundleUnwritable), BundleChange(root):
        pass
    assert (tmp_path / "victim").read_text() == "content"


def test_unknown_fields_are_not_lost(root: Path) -> None:
    """A manifest of a newer version is not written anew by this one."""
    path = root / "bundle.json"
    document = json.loads(path.read_bytes())
    document["app"]["colour"] = "blue"
    path.write_text(json.dumps(document))
    with pytest.raises(FieldsUnknown, match=r"\$\.app\.colour"), BundleChange(root):
        pass
    assert json.loads(path.read_bytes()) == document


def test_a_change_ends_the_signature(root: Path) -> None:
    """And one that changes nothing keeps it."""
    (root / "bundle.sig").write_text("{}")
    with BundleChange(root) as change:
        change.commit(lambda manifest, places: manifest)
    assert (root / "bundle.sig").exists()
    with BundleChange(root) as change:
        change.commit(_add_file(change, "models/mlp/more"))
    assert not (root / "bundle.sig").exists()


def test_files_that_nobody_names_any_more_go(root: Path) -> None:
    """With the folders that they leave empty, but only from the folders that we fill."""
    with BundleChange(root) as change:
        change.commit(_add_file(change, "golden/mlp/set/x.npy"))
    assert (root / "golden" / "mlp" / "set" / "x.npy").exists()
    with BundleChange(root) as change:
        change.commit(_add_file(change, "own/file"))
    assert not (root / "golden").exists()
    with BundleChange(root) as change:
        change.commit(_add_file(change, "models/mlp/y"))
    assert (root / "own" / "file").exists()


# ---------------------------------------------------------------- disks


def test_a_full_disk(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    """A model that does not fit leaves the bundle as it was."""
    root = mounted("size=300k") / "bundle"
    init_bundle(root, app_id="a.b", name="n", version="1")
    make_onnx(tmp_path / "m.onnx")
    add_model(root, "small", tmp_path / "m.onnx")
    before = tree(root)
    with open(tmp_path / "m.onnx", "ab") as file:
        file.write(b"\x32" + b"\x80\x80\x20" + bytes(1 << 19))  # doc_string of half a megabyte
    with pytest.raises(BundleUnwritable, match="No space left"):
        add_model(root, "large", tmp_path / "m.onnx")
    assert tree(root) == before


def test_a_disk_that_cannot_be_written(mounted: Callable[[str], Path], tmp_path: Path) -> None:
    """It is said, and nothing else happens."""
    place = mounted("size=1m")
    init_bundle(place / "b", app_id="a.b", name="n", version="1")
    make_onnx(tmp_path / "m.onnx")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    with pytest.raises(BundleUnwritable, match="Read-only"):
        add_model(place / "b", "m", tmp_path / "m.onnx")
    with pytest.raises(BundleUnwritable, match="Read-only"):
        init_bundle(place / "c", app_id="a.b", name="n", version="1")


# ---------------------------------------------------------------- several at once

_ADD = """
import sys
from refit_agent.authoring.new_model import add_model
root, onnx, *names = sys.argv[1:]
for name in names:
    add_model(root, name, onnx)
"""


def test_no_entry_is_lost_when_many_add_at_once(tmp_path: Path) -> None:
    """Processes that add models to one bundle all find theirs in it."""
    init_bundle(tmp_path / "b", app_id="a.b", name="n", version="1")
    make_onnx(tmp_path / "m.onnx")
    names = [[f"m{process}-{number}" for number in range(5)] for process in range(4)]
    running = []
    for own in names:
        command, env = python(_ADD, tmp_path / "b", tmp_path / "m.onnx", *own)
        running.append(subprocess.Popen(command, env=env))
    assert [process.wait() for process in running] == [0] * len(running)
    bundle = Bundle.open(tmp_path / "b", draft=True)
    assert {model.name for model in bundle.manifest.models} == {name for own in names for name in own}
    for model in bundle.manifest.models:
        assert model.onnx is not None
        bundle.locate(model.onnx)
    assert sorted(os.listdir(tmp_path / "b")) == ["bundle.json", "models"]


_HANG = """
import sys, time
from refit_agent.authoring.change import BundleChange
with BundleChange(sys.argv[1]) as change:
    open(change.folder() + "/half", "w").write("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_command_left_goes_with_the_next(root: Path) -> None:
    """But not what a running one is working on."""
    command, env = python(_HANG, root)
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        with BundleChange(root) as change:
            change.commit(_add_file(change, "models/mlp/one"))
        assert len([n for n in os.listdir(root) if n.startswith(STAGING_PREFIX)]) == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with BundleChange(root) as change:
        change.commit(_add_file(change, "models/mlp/two"))
    assert [n for n in os.listdir(root) if n.startswith(".")] == []


def test_a_change_waits_for_the_lock_and_not_for_ever(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds it too long is named as busy."""
    monkeypatch.setattr(change_module, "_LOCK_WAIT_S", 0.2)
    with FileLock(root / LOCK_NAME), pytest.raises(BundleBusy), BundleChange(root):
        pass
    with BundleChange(root):
        pass


def test_no_bundle(tmp_path: Path) -> None:
    """Nothing is made where there is none."""
    with pytest.raises(BundleMissing), BundleChange(tmp_path / "none"):
        pass
    with pytest.raises(BundleMissing), BundleChange(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
