"""bundle.sig: nothing but the one true signature by the pinned key opens the bundle."""

from __future__ import annotations

import base64
import json
import random

from nacl.signing import SigningKey

from refit_agent.errors import SignatureInvalid, SignatureMissing
from refit_agent.signature import SIGNATURE_NAME, is_good, key_text, message_of, read_signatures, require_signature

from .. import mutators, sandbox

MANIFEST = b'{"schema": 1}'
#: Its key is in this file, and opens nothing but what is here.
SIGNER = SigningKey(bytes(range(32)))
PINNED = key_text(bytes(SIGNER.verify_key))
#: Ed25519 signs the same bytes the same way every time.
GOOD = SIGNER.sign(message_of(MANIFEST)).signature

_FOLDER = sandbox.folder("signature")


def check(data: bytes) -> bool:
    """Take ``data`` for a bundle's signatures."""
    (_FOLDER / SIGNATURE_NAME).write_bytes(data)
    try:
        found = read_signatures(str(_FOLDER))
    except (SignatureInvalid, SignatureMissing) as error:
        assert str(error)
        assert not _opens(data)
        return False
    for signature in found:
        assert is_good(signature, MANIFEST) in (True, False)
    opened = _opens(data)
    if opened:
        # What is ignored in it need not even be text.
        document = json.loads(data.decode("utf-8", "replace"))
        assert any(_is_the_one(entry) for entry in document["signatures"]), "another signature opened it"
        try:
            require_signature(str(_FOLDER), MANIFEST + b" ", [PINNED])
        except SignatureInvalid:
            return True
        raise AssertionError("it opens another manifest, too")
    return opened


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One document turned into another."""
    return mutators.json_document(data, rng)


def _opens(data: bytes) -> bool:
    try:
        require_signature(str(_FOLDER), MANIFEST, [PINNED])
    except (SignatureInvalid, SignatureMissing) as error:
        assert str(error)
        return False
    return True


def _is_the_one(entry: dict[str, str]) -> bool:
    prefix, _, key = entry["public_key"].strip().partition(":")
    return (prefix, _bytes(key), _bytes(entry["signature"])) == ("ed25519", bytes(SIGNER.verify_key), GOOD)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""
