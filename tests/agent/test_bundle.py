from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import MODEL, edit, model_of
from refit_agent.bundle import Bundle
from refit_agent.digest import verify_file
from refit_agent.errors import (
    BundleFileMismatch,
    BundleFileMissing,
    BundleFileUnreadable,
    BundleMissing,
    ManifestInvalid,
    UnknownModel,
    UnsafePath,
)
from refit_agent.manifest import MAX_MANIFEST_BYTES, FileRef
from refit_agent.weights import OnnxWeights


def test_a_bundle_opens_by_its_folder_and_by_its_manifest(sound_bundle: Path) -> None:
    """Both name the same bundle, and its root is absolute."""
    for path in (sound_bundle, str(sound_bundle), sound_bundle / "bundle.json"):
        assert Bundle.open(path).root == str(sound_bundle)


def test_opening_leaves_no_file_open(sound_bundle: Path) -> None:
    """A service opens bundles for as long as it runs."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Bundle.open(sound_bundle)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_bundle_says_what_was_looked_for(tmp_path: Path) -> None:
    """The folder, the file and the remedy are in the message."""
    with pytest.raises(BundleMissing) as info:
        Bundle.open(tmp_path / "nowhere")
    assert "bundle.json" in str(info.value)
    assert "No such file" in str(info.value)
    assert "Give the folder" in info.value.hint


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.timeout(10)
def test_a_manifest_that_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    """A FIFO in its place does not hold the caller."""
    place = tmp_path / "bundle.json"
    os.mkfifo(place) if kind == "fifo" else place.mkdir()
    with pytest.raises(BundleMissing, match="not a regular file"):
        Bundle.open(tmp_path)


def test_a_manifest_of_absurd_size_is_refused_unread(tmp_path: Path) -> None:
    """It is called invalid, not missing."""
    with open(tmp_path / "bundle.json", "wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ManifestInvalid, match="larger than"):
        Bundle.open(tmp_path)


def test_an_unknown_model_is_answered_with_the_known_ones(sound_bundle: Path) -> None:
    """A typing error is found at a glance."""
    with pytest.raises(UnknownModel, match="has no model 'mpl'; it has: 'mlp'"):
        Bundle.open(sound_bundle).model("mpl")
    assert Bundle.open(sound_bundle).model(MODEL).name == MODEL


def _ref(path: str, size: int = 3) -> FileRef:
    return FileRef(path=path, size=size, sha256="0" * 64)


def test_files_are_located_with_their_links_resolved(bundle: Path) -> None:
    """A link that stays inside the bundle is fine, and so is a bundle that is reached by a link."""
    (bundle / "data").write_bytes(b"abc")
    (bundle / "link").symlink_to("data")
    (bundle.parent / "other-name").symlink_to(bundle)
    for root in (bundle, bundle.parent / "other-name"):
        assert Bundle.open(root).locate(_ref("link")) == str(bundle / "data")


@pytest.mark.parametrize("way", ["file", "folder", "sibling"])
def test_a_link_out_of_the_bundle_is_refused(bundle: Path, way: str) -> None:
    """Whether the file itself or a folder on the way to it is the link."""
    outside = bundle.parent / ("bundle-next-door" if way == "sibling" else "outside")
    outside.mkdir()
    (outside / "data").write_bytes(b"abc")
    if way == "file":
        (bundle / "x").symlink_to(outside / "data")
    else:
        (bundle / "x").symlink_to(outside)
    path = "x" if way == "file" else "x/data"
    with pytest.raises(UnsafePath, match="symbolic link"):
        Bundle.open(bundle).locate(_ref(path))


def test_what_is_missing_or_no_file_or_of_another_size_is_told_apart(bundle: Path) -> None:
    """Each with the path in the message."""
    opened = Bundle.open(bundle)
    (bundle / "folder").mkdir()
    (bundle / "loop").symlink_to("loop")
    (bundle / "data").write_bytes(b"four")
    for path in ("none", "loop", "folder/none", "data/none"):
        with pytest.raises(BundleFileMissing, match=path):
            opened.locate(_ref(path))
    with pytest.raises(BundleFileMissing, match="not a regular file"):
        opened.locate(_ref("folder"))
    with pytest.raises(BundleFileMismatch, match="has 4 bytes and should have 3"):
        opened.locate(_ref("data"))


def test_the_manifest_error_names_the_manifest(bundle: Path) -> None:
    """The path in the message is the file to look into."""
    edit(bundle, lambda d: model_of(d).pop("onnx"))
    with pytest.raises(ManifestInvalid) as info:
        Bundle.open(bundle)
    assert str(bundle / "bundle.json") in str(info.value)
    assert "$.models[" in str(info.value)


@pytest.fixture
def no_more_files() -> Iterator[None]:
    """This process has as many files open as it may."""
    resource = pytest.importorskip("resource", reason="limits as POSIX has them")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_that_has_no_more_files_does_not_call_any_missing(sound_bundle: Path, no_more_files: None) -> None:
    """Whoever reads that must not reinstall the app, nor fetch a file that is there."""
    onnx = sound_bundle / "models" / "mlp.onnx"
    for attempt in (Bundle.open, OnnxWeights, lambda path: verify_file(str(path), _ref("mlp.onnx"))):
        with pytest.raises(BundleFileUnreadable, match="Too many open files") as info:
            attempt(sound_bundle if attempt == Bundle.open else onnx)
        assert "try again" in info.value.hint


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.ENFILE])
def test_a_disk_that_fails_does_not_make_a_file_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Neither the manifest nor a file that it names."""
    opened = Bundle.open(bundle)

    def fail(path: str, *args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os.path, "realpath", fail)
    with pytest.raises(BundleFileUnreadable, match=os.strerror(number)):
        opened.locate(_ref("data"))
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(BundleFileUnreadable, match=r"bundle\.json"):
        Bundle.open(bundle)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_manifest_that_may_not_be_read_is_not_called_missing(
    sound_bundle: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whoever reads that must not look for another folder: it is the rights that are wrong."""

    def fail(path: str, *args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(BundleFileUnreadable, match=rf"bundle\.json cannot be read now: {os.strerror(number)}") as info:
        Bundle.open(sound_bundle)
    assert "the right to read" in info.value.hint


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="rights as POSIX has them")
def test_another_user_s_manifest_is_not_called_missing(sound_bundle: Path) -> None:
    """Nor with a manifest that its owner has closed."""
    (sound_bundle / "bundle.json").chmod(0)
    before = os.geteuid()
    try:
        if before == 0:
            os.seteuid(12345)
        with pytest.raises(BundleFileUnreadable, match="Permission denied"):
            Bundle.open(sound_bundle)
    finally:
        os.seteuid(before)
        (sound_bundle / "bundle.json").chmod(0o644)
