"""``bundle.sig``: whose bundle it is, by Ed25519 signatures over the bytes of ``bundle.json``.

The manifest holds the size and SHA-256 of every file, so its signature covers the whole bundle: files are
compared with their hashes before they are used. The file is JSON:

    {"schema": 1, "signatures": [{"public_key": "ed25519:BASE64", "signature": "BASE64"}, …]}

A signature is over the ASCII text ``refit-agent bundle 1``, a newline, and the manifest's bytes, so that it can
stand for nothing else. Several let an app change its key: old versions of it know the old one, new ones the new.

libsodium judges. Like OpenSSL it refuses a second encoding of the same signature (S not below the group's order);
beyond that it refuses public keys and commitments of small order and keys in another than their one encoding, under
which anybody could "sign". No key that is drawn at random is such a key.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec

from refit_agent.errors import SettingInvalid, SignatureInvalid, SignatureMissing, VerifierMissing

if TYPE_CHECKING:
    from nacl.signing import VerifyKey

SIGNATURE_NAME = "bundle.sig"
SCHEMA = 1
_PREFIX = "ed25519:"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
_MOST_FILE_BYTES = 64 << 10
_MOST_KEYS = 32
#: Not "leave it out": that would turn the check off.
KEY_HINT = "Give the keys as 'refit-agent bundle keygen' printed them."
#: O_NONBLOCK: a FIFO in this place must not hold the caller for ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """One signature: the signer's public key as text, and 64 bytes in base64."""

    public_key: Annotated[str, msgspec.Meta(max_length=200)]
    signature: Annotated[str, msgspec.Meta(max_length=200)]


class SignatureFile(msgspec.Struct, frozen=True, kw_only=True):
    """A whole ``bundle.sig``."""

    schema: int
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=_MOST_KEYS)]


_decoder = msgspec.json.Decoder(SignatureFile)


def message_of(manifest: bytes) -> bytes:
    """What is signed for a manifest of these bytes."""
    return b"refit-agent bundle %d\n" % SCHEMA + manifest


def key_text(raw: bytes) -> str:
    """The text form of a public key's 32 bytes."""
    return _PREFIX + base64.b64encode(raw).decode()


def parse_key(text: str) -> bytes:
    """The 32 bytes of a public key from its text form, "ed25519:" and base64.

    Raises:
        SettingInvalid: it is no such text.
    """
    raw = _unbase64(text.strip().removeprefix(_PREFIX)) if text.strip().startswith(_PREFIX) else b""
    if len(raw) != _KEY_BYTES:
        wanted = "'ed25519:' and 32 bytes in base64"
        raise SettingInvalid(name="the public key", value=text, wanted=wanted, hint=KEY_HINT)
    return raw


def require_signature(root: str, manifest: bytes, public_keys: Iterable[str]) -> None:
    """Return if ``bundle.sig`` in ``root`` has a good signature of ``manifest`` by one of ``public_keys``.

    Raises:
        SignatureMissing: there is no ``bundle.sig``, or none of those keys signed it.
        SignatureInvalid: one of them is said to have, and that is not true; or the file is not sound.
        VerifierMissing: the library that checks signatures is not installed.
        SettingInvalid: a key is no key.
    """
    if isinstance(public_keys, str):
        # A text is a sequence of texts, too: each of its letters would be called a bad key.
        raise SettingInvalid(name="public_keys", value=public_keys, wanted="a list of keys", hint=KEY_HINT)
    pinned = {parse_key(text) for text in public_keys}
    found = read_signatures(root)
    ours = [s for s in found if _key_of(s) in pinned]
    if not ours:
        detail = "it is signed by other keys than the app's" if found else f"{SIGNATURE_NAME} has no signature"
        raise SignatureMissing(bundle=root, detail=detail)
    # One good signature is enough: which of its keys an app still trusts is the app's list.
    if not any(is_good(signature, manifest) for signature in ours):
        raise SignatureInvalid(bundle=root, detail="the manifest is not the one that was signed")


def read_signatures(root: str) -> Sequence[Signature]:
    """The signatures in ``bundle.sig``, none of them checked.

    Raises:
        SignatureMissing: there is no such file.
        SignatureInvalid: it cannot be understood.
    """
    path = os.path.join(root, SIGNATURE_NAME)
    try:
        fd = os.open(path, _OPEN_FLAGS)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_FILE_BYTES:
                raise SignatureInvalid(bundle=root, detail=f"{SIGNATURE_NAME} is not a small regular file")
            data = os.read(fd, _MOST_FILE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise SignatureMissing(bundle=root, detail=f"{SIGNATURE_NAME}: {error.strerror or error}") from error
    try:
        file = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureInvalid(bundle=root, detail=f"{SIGNATURE_NAME} cannot be read: {error}") from error
    if file.schema != SCHEMA:
        detail = f"{SIGNATURE_NAME} has schema {file.schema}, and this refit-agent reads schema {SCHEMA}"
        raise SignatureInvalid(bundle=root, detail=detail)
    return file.signatures


def is_good(signature: Signature, manifest: bytes) -> bool:
    """Whether the signature is by its own key and of this manifest. Raises VerifierMissing."""
    from_key, error = _verifier()
    raw, given = _key_of(signature), _unbase64(signature.signature)
    if len(raw) != _KEY_BYTES or len(given) != _SIGNATURE_BYTES:
        return False
    try:
        from_key(raw).verify(message_of(manifest), given)
    except error:
        return False
    return True


def _verifier() -> tuple[Callable[[bytes], VerifyKey], type[Exception]]:
    try:
        from nacl.exceptions import BadSignatureError
        from nacl.signing import VerifyKey
    except ImportError as error:
        raise VerifierMissing(detail=f"{error.name or 'nacl'} cannot be imported") from error
    return VerifyKey, BadSignatureError


def _key_of(signature: Signature) -> bytes:
    try:
        return parse_key(signature.public_key)
    except SettingInvalid:
        return b""


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
