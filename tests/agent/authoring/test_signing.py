"""Keys and signatures, made here and believed by `ensure_engine`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from bundles import MODEL, edit, model_of
from refit_agent import ensure_engine
from refit_agent.authoring import change as change_module
from refit_agent.authoring.errors import BundleBusy, KeyInvalid
from refit_agent.authoring.signing import good_signatures, make_key, public_key_of, read_to_sign, sign_bundle
from refit_agent.authoring.write_bundle import write_manifest
from refit_agent.bundle import Bundle
from refit_agent.errors import (
    PlanRefused,
    SettingInvalid,
    SignatureInvalid,
    SignatureMissing,
    VerifierMissing,
)
from refit_agent.signature import key_text


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(str(tmp_path / "key.pem"))
    return tmp_path / "key.pem"


@pytest.fixture
def public(key: Path) -> str:
    return public_key_of(str(key))


@pytest.fixture
def signed(bundle: Path, key: Path) -> Path:
    sign_bundle(str(bundle), str(key))
    return bundle


def test_a_signed_bundle_is_taken_and_an_unsigned_one_refused(bundle: Path, key: Path, public: str) -> None:
    """Only where a key is pinned; and a hit asks again."""
    ensure_engine(bundle, MODEL).close()
    with pytest.raises(SignatureMissing, match=r"bundle\.sig"):
        ensure_engine(bundle, MODEL, public_keys=[public])
    sign_bundle(str(bundle), str(key))
    with ensure_engine(bundle, MODEL, public_keys=[public]) as engine:
        assert engine.hit
    (bundle / "bundle.sig").unlink()
    with pytest.raises(SignatureMissing):
        ensure_engine(bundle, MODEL, public_keys=[public])


def test_a_manifest_edited_after_signing_is_refused(signed: Path, public: str) -> None:
    """One byte, even where it means nothing."""
    manifest = signed / "bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(SignatureInvalid, match="not the one that was signed"):
        ensure_engine(signed, MODEL, public_keys=[public])
    with pytest.raises(SignatureInvalid):
        good_signatures(str(signed))


def test_a_signature_by_another_key_counts_for_nothing(signed: Path, tmp_path: Path) -> None:
    """However good it is; and no keys at all are no permission."""
    other = make_key(str(tmp_path / "other.pem"))
    with pytest.raises(SignatureMissing, match="other keys"):
        ensure_engine(signed, MODEL, public_keys=[other])
    with pytest.raises(SignatureMissing):
        ensure_engine(signed, MODEL, public_keys=[])


def test_a_signature_under_the_name_of_the_right_key_is_refused(signed: Path, public: str, tmp_path: Path) -> None:
    """The key that a signature names is not believed."""
    make_key(str(tmp_path / "other.pem"))
    sign_bundle(str(signed), str(tmp_path / "other.pem"))
    document = json.loads((signed / "bundle.sig").read_text())
    forged = next(s for s in document["signatures"] if s["public_key"] != public)
    document["signatures"] = [{**forged, "public_key": public}]
    (signed / "bundle.sig").write_text(json.dumps(document))
    with pytest.raises(SignatureInvalid):
        ensure_engine(signed, MODEL, public_keys=[public])


def test_keys_change_by_a_list(signed: Path, public: str, tmp_path: Path) -> None:
    """A bundle with two signatures serves versions of the app that know either key."""
    new = make_key(str(tmp_path / "new.pem"))
    assert sign_bundle(str(signed), str(tmp_path / "new.pem")) == (new, 2)
    assert set(good_signatures(str(signed))) == {public, new}
    for keys in ([public], [new], [new, public]):
        ensure_engine(signed, MODEL, public_keys=keys).close()
    # Signed again after a change, the old signature is not carried along.
    edit(signed, lambda d: d["app"].update(version="2"))
    assert sign_bundle(str(signed), str(tmp_path / "new.pem")) == (new, 1)


def test_a_new_manifest_loses_its_signature(signed: Path) -> None:
    """What was signed is gone; the same manifest written again keeps it."""
    manifest = Bundle.open(signed).manifest
    write_manifest(str(signed), manifest)
    sign_bundle_again = (signed / "bundle.sig").exists()
    assert sign_bundle_again
    edit(signed, lambda d: d["app"].update(version="2"))
    write_manifest(str(signed), Bundle.open(signed).manifest)
    assert not (signed / "bundle.sig").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 5000,
        b'{"schema": 2, "signatures": []}',
        b'{"schema": 1, "signatures": [{"public_key": "x", "signature": 7}]}',
        b"\xff\xfe",
        b" " * (65 << 10),
    ],
)
def test_a_damaged_signature_file_is_an_error(signed: Path, public: str, content: bytes) -> None:
    """Never a signature, and never a traceback."""
    (signed / "bundle.sig").write_bytes(content)
    with pytest.raises(SignatureInvalid):
        ensure_engine(signed, MODEL, public_keys=[public])


def test_a_signature_file_that_is_no_file(signed: Path, public: str) -> None:
    """A FIFO must not hold the caller for ever."""
    (signed / "bundle.sig").unlink()
    os.mkfifo(signed / "bundle.sig")
    with pytest.raises(SignatureInvalid, match="regular file"):
        ensure_engine(signed, MODEL, public_keys=[public])


def test_signatures_that_are_no_signatures(signed: Path, public: str) -> None:
    """Short, long and senseless ones, and a key that is no point of the curve."""
    for key, signature in ((public, ""), (public, "AAAA"), (public, "%%%"), (key_text(b"\xff" * 32), "A" * 88)):
        document = {"schema": 1, "signatures": [{"public_key": key, "signature": signature}]}
        (signed / "bundle.sig").write_text(json.dumps(document))
        with pytest.raises(SignatureInvalid):
            ensure_engine(signed, MODEL, public_keys=[key])


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:" + "%" * 44, "x" * 1000])
def test_what_is_no_public_key_is_the_caller_s_mistake(signed: Path, text: str) -> None:
    """An error of its own, before anything is compared."""
    with pytest.raises(SettingInvalid, match="public key"):
        ensure_engine(signed, MODEL, public_keys=[text])


def test_code_of_its_own_needs_a_good_signature(bundle: Path, key: Path, public: str) -> None:
    """And is not served from the cache to a caller who pins no key, either."""
    edit(bundle, lambda d: model_of(d)["engines"][0].update(host_code=True))
    with pytest.raises(PlanRefused, match="code of its own"):
        ensure_engine(bundle, MODEL)
    sign_bundle(str(bundle), str(key))
    with pytest.raises(PlanRefused, match="code of its own"):
        ensure_engine(bundle, MODEL)
    ensure_engine(bundle, MODEL, public_keys=[public]).close()
    with pytest.raises(PlanRefused):
        ensure_engine(bundle, MODEL)


def test_without_the_library_nothing_is_believed(signed: Path, public: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The app asked for a check; that it cannot be made is an error, not a pass."""
    for name in [n for n in sys.modules if n.split(".")[0] == "nacl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nacl", None)
    with pytest.raises(VerifierMissing):
        ensure_engine(signed, MODEL, public_keys=[public])


# ---------------------------------------------------------------- private keys


def test_a_key_is_its_owner_s_alone_and_never_overwritten(key: Path) -> None:
    """Mode 0600 from the first moment."""
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(KeyInvalid, match="exists"):
        make_key(str(key))
    assert key.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_may_read_is_refused(bundle: Path, key: Path, mode: int) -> None:
    """And nothing is signed with it."""
    key.chmod(mode)
    with pytest.raises(KeyInvalid, match="chmod 600"):
        sign_bundle(str(bundle), str(key))
    assert not (bundle / "bundle.sig").exists()


def test_a_password(bundle: Path, tmp_path: Path) -> None:
    """Right, wrong, missing and superfluous."""
    path = str(tmp_path / "locked.pem")
    public = make_key(path, b"secret")
    assert b"ENCRYPTED" in Path(path).read_bytes()
    assert sign_bundle(str(bundle), path, b"secret") == (public, 1)
    with pytest.raises(KeyInvalid, match="protected"):
        sign_bundle(str(bundle), path)
    with pytest.raises(KeyInvalid, match="wrong"):
        sign_bundle(str(bundle), path, b"guess")


def test_other_files_are_no_keys(bundle: Path, tmp_path: Path) -> None:
    """Text, nothing at all, a folder, and a key of another kind."""
    path = tmp_path / "k"
    for content in (b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyInvalid):
            sign_bundle(str(bundle), str(path))
    with pytest.raises(KeyInvalid):
        sign_bundle(str(bundle), str(tmp_path))
    subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", path], check=True)
    path.chmod(0o600)
    with pytest.raises(KeyInvalid, match="another kind"):
        sign_bundle(str(bundle), str(path))


def test_a_key_that_is_no_regular_file(bundle: Path, tmp_path: Path) -> None:
    """A FIFO must not hold the command for ever."""
    os.mkfifo(tmp_path / "k", 0o600)
    for path in (tmp_path / "k", Path("/dev/null")):
        with pytest.raises(KeyInvalid, match="not a regular file"):
            sign_bundle(str(bundle), str(path))


def test_openssl_agrees(signed: Path, key: Path, tmp_path: Path) -> None:
    """Another program, told nothing but the format, finds the signature good."""
    import base64

    document = json.loads((signed / "bundle.sig").read_text())
    (tmp_path / "sig").write_bytes(base64.b64decode(document["signatures"][0]["signature"]))
    (tmp_path / "message").write_bytes(b"refit-agent bundle 1\n" + (signed / "bundle.json").read_bytes())
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", key, "-in", tmp_path / "message", "-sigfile", tmp_path / "sig"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def test_a_key_that_is_no_list(signed: Path, public: str) -> None:
    """A text is one key, not a list of letters; and nobody is told to leave the check out."""
    with pytest.raises(SettingInvalid, match="a list of keys") as caught:
        ensure_engine(signed, MODEL, public_keys=public)
    assert "leave it out" not in caught.value.hint


def test_the_public_key_signs_nothing(bundle: Path, public: str, tmp_path: Path) -> None:
    """Said as what it is, whatever its permissions."""
    (tmp_path / "key.pub").write_text(public + "\n")
    with pytest.raises(KeyInvalid, match="it is the public key"):
        sign_bundle(str(bundle), str(tmp_path / "key.pub"))


def test_only_what_was_verified_is_signed(bundle: Path, key: Path) -> None:
    """Not what another command has put there since, and not while one is at it."""
    _, manifest = read_to_sign(str(bundle))
    edit(bundle, lambda d: d["app"].update(version="2"))
    with pytest.raises(SignatureInvalid, match="changed after it was verified"):
        sign_bundle(str(bundle), str(key), manifest=manifest)
    assert not (bundle / "bundle.sig").exists()
    sign_bundle(str(bundle), str(key), manifest=read_to_sign(str(bundle))[1])


def test_nothing_is_signed_while_the_bundle_changes(bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change would take the signature away, or leave it beside another manifest."""
    monkeypatch.setattr(change_module, "_LOCK_WAIT_S", 0.2)
    with FileLock(bundle / change_module.LOCK_NAME), pytest.raises(BundleBusy):
        sign_bundle(str(bundle), str(key))
    assert not (bundle / "bundle.sig").exists()
