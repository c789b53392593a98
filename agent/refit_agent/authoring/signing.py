"""Keys, and the signature of a bundle. Private keys are PKCS#8 in PEM, as OpenSSL writes and reads them."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from refit_agent.authoring.change import bundle_lock
from refit_agent.authoring.errors import AuthoringMissing, KeyInvalid
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.digest import fsync_folder
from refit_agent.errors import SignatureInvalid, SignatureMissing
from refit_agent.manifest import decode_manifest
from refit_agent.signature import (
    SCHEMA,
    SIGNATURE_NAME,
    Signature,
    SignatureFile,
    is_good,
    key_text,
    message_of,
    read_signatures,
)
from refit_agent.weights.external import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MOST_KEY_BYTES = 64 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_key(path: str, password: bytes | None = None) -> str:
    """Write a new private key to ``path``, for its owner alone, and give its public key as text.

    Raises:
        KeyInvalid: something is at ``path`` already: a key that is overwritten is lost for good.
        AuthoringMissing: the package cryptography is not installed.
    """
    private_key, serialization = _cryptography()
    key = private_key.generate()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    data = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        hint = (
            "A key that is overwritten is lost for good: choose another name."
            if isinstance(error, FileExistsError)
            else ""
        )
        raise KeyInvalid(path=path, detail=f"it cannot be made: {error.strerror}", hint=hint) from error
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)  # half a key is no key
        raise KeyInvalid(path=path, detail=f"it cannot be written: {error.strerror}") from error
    return _public_text(key)


def public_key_of(path: str, password: bytes | None = None) -> str:
    """The text of the public key that belongs to the private key at ``path``. Raises as `sign_bundle`."""
    return _public_text(_read_key(path, password))


def read_to_sign(root: str) -> tuple[Bundle, bytes]:
    """The bundle in ``root`` with the very bytes that its manifest was decoded from. Raises BundleError."""
    root = Bundle.open(root, to_make=True).root
    path = os.path.join(root, MANIFEST_NAME)
    with open(path, "rb") as file:
        data = file.read()
    return Bundle(root, decode_manifest(data, path)), data


def sign_bundle(
    root: str, key_path: str, password: bytes | None = None, *, manifest: bytes | None = None
) -> tuple[str, int]:
    """Sign the bundle's manifest with the private key at ``key_path``; gives the public key and how many
    signatures ``bundle.sig`` has now.

    Good signatures of the same manifest by other keys stay beside the new one, so that an app can change its
    key; those of an older manifest go. Nothing but the manifest is read: `verify` compares the files with it.
    ``manifest`` are the bytes that were verified (see `read_to_sign`): nothing else is signed then.

    Raises:
        BundleError: there is no sound manifest.
        SignatureInvalid: the manifest is not ``manifest`` any more.
        BundleBusy, BundleUnwritable: as for any change.
        KeyInvalid: no Ed25519 key, or one that other users can read.
        AuthoringMissing, VerifierMissing: the packages cryptography and PyNaCl are not installed.
        OSError: the signature cannot be written; the old one is as it was.
    """
    key = _read_key(key_path, password)
    root = Bundle.open(root, to_make=True).root
    # A change that came between reading and writing would take the new signature for its own old one, or outlive it.
    with bundle_lock(root):
        _, data = read_to_sign(root)
        if manifest is not None and data != manifest:
            detail = "the manifest was changed after it was verified, and nothing was signed"
            raise SignatureInvalid(bundle=root, detail=detail, hint="Sign it again.")
        own = Signature(public_key=_public_text(key), signature=base64.b64encode(key.sign(message_of(data))).decode())
        kept = [s for s in _others(root) if s.public_key != own.public_key and is_good(s, data)]
        document = SignatureFile(schema=SCHEMA, signatures=(*kept, own))
        _write(root, msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
    return own.public_key, len(document.signatures)


def good_signatures(root: str) -> tuple[str, ...]:
    """The public keys whose signatures of the manifest in ``root`` are good; () where there is no ``bundle.sig``.

    Raises:
        SignatureInvalid: the file cannot be understood, or has a signature that is not good.
        VerifierMissing: the package PyNaCl is not installed.
    """
    try:
        found = read_signatures(root)
    except SignatureMissing:
        return ()
    with open(os.path.join(root, MANIFEST_NAME), "rb") as file:
        manifest = file.read()
    for signature in found:
        if not is_good(signature, manifest):
            detail = (
                f"that of {signature.public_key} is not one of this manifest, which was changed after it was signed"
            )
            raise SignatureInvalid(bundle=root, detail=detail)
    return tuple(s.public_key for s in found)


def _others(root: str) -> tuple[Signature, ...]:
    try:
        return tuple(read_signatures(root))
    except (SignatureMissing, SignatureInvalid):
        return ()


def _write(root: str, data: bytes) -> None:
    temporary = os.path.join(root, f"{SIGNATURE_NAME}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, os.path.join(root, SIGNATURE_NAME))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_folder(root)


def _read_key(path: str, password: bytes | None) -> Ed25519PrivateKey:
    private_key, serialization = _cryptography()
    try:
        handle, status = open_regular(path)
        if handle is None:
            raise KeyInvalid(path=path, detail="it is not a regular file")
        with open(handle, "rb") as file:
            data = file.read(_MOST_KEY_BYTES)
    except OSError as error:
        raise KeyInvalid(path=path, detail=f"it cannot be read: {error.strerror}") from error
    if data.lstrip().startswith(b"ed25519:"):
        raise KeyInvalid(path=path, detail="it is the public key; the private one signs")
    if sys.platform != "win32" and status.st_mode & _OTHERS:
        # Refused like an SSH key: what others can read, others may have signed with.
        mode = stat.S_IMODE(status.st_mode)
        raise KeyInvalid(path=path, detail=f"other users can get at it (mode {mode:o}); chmod 600 it")
    try:
        key = serialization.load_pem_private_key(data, password)
    except TypeError as error:
        detail = "it is protected by a password" if password is None else "it has no password, and one was given"
        raise KeyInvalid(path=path, detail=detail) from error
    except Exception as error:  # whatever the library makes of a file that is no key
        raise KeyInvalid(path=path, detail="it is no private key, or the password is wrong") from error
    if not isinstance(key, private_key):
        raise KeyInvalid(path=path, detail="it is a private key of another kind than Ed25519")
    return key


def _public_text(key: Ed25519PrivateKey) -> str:
    return key_text(key.public_key().public_bytes_raw())


def _cryptography() -> tuple[type[Ed25519PrivateKey], Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise AuthoringMissing(library="cryptography", detail=f"{error.name} cannot be imported") from error
    return Ed25519PrivateKey, serialization
