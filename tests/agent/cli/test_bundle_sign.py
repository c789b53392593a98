"""`refit-agent bundle keygen|sign|verify`, and ``--public-key`` of the commands that open a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .command import Cli


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def test_from_key_to_path(cli: Cli, own: Path, tmp_path: Path) -> None:
    """The three commands as the documentation shows them."""
    public = cli("bundle", "keygen", tmp_path / "key.pem").out.strip()
    assert public.startswith("ed25519:")
    (tmp_path / "key.pub").write_text(f"# the release key\n{public}\n")
    assert cli("path", own, "classifier", "--public-key", public).code == 3
    assert public in cli("bundle", "sign", own, "--key", tmp_path / "key.pem").out
    checked = cli("bundle", "verify", own, "--public-key", tmp_path / "key.pub", "--json")
    assert checked.code == 0 and checked.document["signed_by"] == [public]
    assert cli("path", own, "classifier", "--public-key", tmp_path / "key.pub").code == 0
    again = cli("provision", own, "--public-key", public, "--json")
    assert again.code == 0 and again.document["engines"][0]["hit"]


def test_a_bundle_with_a_damaged_file_is_not_signed(cli: Cli, own: Path, tmp_path: Path) -> None:
    """Unless one insists."""
    cli("bundle", "keygen", tmp_path / "key.pem")
    with open(own / "classifier" / "classifier.onnx", "ab") as file:
        file.write(b"x")
    ran = cli("bundle", "sign", own, "--key", tmp_path / "key.pem", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "bundle-file-mismatch")
    assert not (own / "bundle.sig").exists()
    assert cli("bundle", "sign", own, "--key", tmp_path / "key.pem", "--no-verify").code == 0


def test_a_changed_manifest_is_found(cli: Cli, own: Path, tmp_path: Path) -> None:
    """With no key pinned too: a signature that is not good is a fault of the bundle."""
    cli("bundle", "keygen", tmp_path / "key.pem")
    cli("bundle", "sign", own, "--key", tmp_path / "key.pem")
    with open(own / "bundle.json", "ab") as file:
        file.write(b"\n")
    ran = cli("bundle", "verify", own, "--json")
    assert (ran.code, ran.document["error"]["code"]) == (3, "signature-invalid")


@pytest.mark.parametrize("value", ["nothing", "ed25519:AAAA", "/etc/passwd"])
def test_what_is_no_key_is_said(cli: Cli, own: Path, value: str) -> None:
    """A usage error, with what would be one."""
    ran = cli("path", own, "classifier", "--public-key", value, "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, "setting-invalid")


def test_a_key_with_open_permissions(cli: Cli, own: Path, tmp_path: Path) -> None:
    """Named, with what to do."""
    cli("bundle", "keygen", tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o644)
    ran = cli("bundle", "sign", own, "--key", tmp_path / "key.pem")
    assert ran.code == 3 and "chmod 600" in ran.err
