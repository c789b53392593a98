"""Signatures that libsodium must refuse: forged, damaged, and those that a library more lenient would take.

They are made by arithmetic of our own and by OpenSSL (the package cryptography), never by what checks them.
"""

from __future__ import annotations

import base64
import random
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

import ed25519_reference as reference
from refit_agent.errors import VerifierMissing
from refit_agent.signature import Signature, is_good, key_text, message_of

MANIFEST = b'{"schema": 1}\n'
MESSAGE = message_of(MANIFEST)
SECRET = 0x1234567890ABCDEF << 100


def good(key: bytes, signature: bytes, manifest: bytes = MANIFEST) -> bool:
    """Our verdict."""
    text = base64.b64encode(signature).decode()
    return is_good(Signature(public_key=key_text(key), signature=text), manifest)


def openssl_takes(key: bytes, signature: bytes, message: bytes = MESSAGE) -> bool:
    """OpenSSL's verdict."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def test_signatures_of_openssl_and_of_the_definition_are_good() -> None:
    """Or everything below would be refused for no good reason."""
    private = Ed25519PrivateKey.generate()
    assert good(private.public_key().public_bytes_raw(), private.sign(MESSAGE))
    key, signature = reference.sign(SECRET, MESSAGE)
    assert reference.holds(key, signature, MESSAGE)
    assert good(key, signature)
    assert openssl_takes(key, signature)


@pytest.mark.parametrize("times", [1, 2, 7, 14])
def test_a_second_encoding_of_a_good_signature_is_refused(times: int) -> None:
    """S plus the group's order satisfies the equation as well: a signature must have one form."""
    key, signature = reference.sign(SECRET, MESSAGE)
    raised = int.from_bytes(signature[32:], "little") + times * reference.L
    altered = signature[:32] + raised.to_bytes(32, "little")
    assert reference.holds(key, altered, MESSAGE)
    assert not good(key, altered)
    assert not openssl_takes(key, altered)


def test_keys_of_small_order_sign_nothing() -> None:
    """Under such a key a signature is made without any secret; OpenSSL takes some of these."""
    taken = 0
    for point in reference.small_points():
        for key in reference.encodings(point):
            for other in reference.small_points():
                for commitment in reference.encodings(other):
                    signature = commitment + bytes(32)
                    assert not good(key, signature), (key.hex(), signature.hex())
                    taken += reference.holds(key, signature, MESSAGE)
    assert taken >= 14  # each of the encodings above has at least one commitment that satisfies the equation


def test_a_commitment_of_small_order_is_refused() -> None:
    """The signer's own key and a nonce of zero: the equation holds, and the secret could be read off S."""
    key, _ = reference.sign(SECRET, MESSAGE)
    for commitment in reference.encodings((0, 1)):
        answer = reference.challenge(commitment, key, MESSAGE) * SECRET % reference.L
        signature = commitment + answer.to_bytes(32, "little")
        assert reference.holds(key, signature, MESSAGE)
        assert not good(key, signature)


def test_keys_in_another_than_their_one_encoding_are_refused() -> None:
    """y not below the prime; no one knows a secret of these, so that only the verdict can be seen."""
    _, signature = reference.sign(SECRET, MESSAGE)
    for y in range(19):
        for sign in (0, 1 << 255):
            key = (y + reference.P | sign).to_bytes(32, "little")
            assert not good(key, signature)
            assert not good(key, bytes(64))


def test_what_is_no_point_is_no_key() -> None:
    """Half of all 32 bytes are none."""
    _, signature = reference.sign(SECRET, MESSAGE)
    keys = [n.to_bytes(32, "little") for n in range(2, 40) if reference.decode(n.to_bytes(32, "little")) is None]
    assert len(keys) > 10
    for key in (*keys, b"\xff" * 32):
        assert not good(key, signature)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 63, 65, 96, 128])
def test_truncated_and_extended_signatures_are_refused(size: int) -> None:
    """A signature has 64 bytes; the message must not become a part of it."""
    key, signature = reference.sign(SECRET, MESSAGE)
    assert not good(key, (signature + MESSAGE + bytes(64))[:size])


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_truncated_and_extended_keys_are_refused(size: int) -> None:
    """Not an exception: the file may hold signatures by several keys."""
    key, signature = reference.sign(SECRET, MESSAGE)
    assert not good((key + bytes(32))[:size], signature)


def test_another_key_another_manifest_and_another_purpose_are_refused() -> None:
    """The key's signature of the manifest without our prefix could have been made for something else."""
    key, signature = reference.sign(SECRET, MESSAGE)
    other, _ = reference.sign(SECRET + 1, MESSAGE)
    assert not good(other, signature)
    for manifest in (MANIFEST + b" ", MANIFEST[:-1], b"", MANIFEST.replace(b"1", b"2")):
        assert not good(key, signature, manifest)
    bare, by_itself = reference.sign(SECRET, MANIFEST)
    assert reference.holds(bare, by_itself, MANIFEST)
    assert not good(bare, by_itself)


@pytest.mark.parametrize("flag", [0, 1])
def test_signatures_of_the_other_kinds_are_refused(flag: int) -> None:
    """Ed25519ctx and Ed25519ph have a prefix inside of the hash."""
    prefix = b"SigEd25519 no Ed25519 collisions" + bytes([flag, 3]) + b"abc"
    key, signature = reference.sign(SECRET, MESSAGE, prefix)
    assert not good(key, signature)


def test_one_changed_bit_is_refused_by_both_libraries() -> None:
    """Every bit of the signature and of the key, one at a time."""
    key, signature = reference.sign(SECRET, MESSAGE)
    for bit in range(8 * 64):
        altered = bytearray(signature)
        altered[bit // 8] ^= 1 << bit % 8
        assert not good(key, bytes(altered))
        assert not openssl_takes(key, bytes(altered))
    for bit in range(8 * 32):
        altered = bytearray(key)
        altered[bit // 8] ^= 1 << bit % 8
        assert not good(bytes(altered), signature)


def test_nothing_is_taken_that_openssl_refuses() -> None:
    """Edges of the three numbers, put together at random: libsodium is the stricter of the two."""
    chance = random.Random(7)
    key, signature = reference.sign(SECRET, MESSAGE)
    points = [e for p in reference.small_points() for e in reference.encodings(p)]
    keys = [key, *points]
    commitments = [signature[:32], *points, bytes(32), b"\xff" * 32]
    numbers = [int.from_bytes(signature[32:], "little"), 0, 1, reference.L - 1, reference.L, 2**252, 2**253, 2**255]
    stricter = 0
    for _ in range(2000):
        chosen, commitment, number = chance.choice(keys), chance.choice(commitments), chance.choice(numbers)
        made = commitment + number.to_bytes(32, "little")
        ours, theirs = good(chosen, made), openssl_takes(chosen, made)
        assert theirs or not ours, (chosen.hex(), made.hex())
        assert ours is (chosen == key and made == signature)
        stricter += theirs and not ours
    assert stricter  # or the words at the head of signature.py are not true any more


def test_keys_are_checked_without_the_package_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The users of an app have libsodium alone."""
    key, signature = reference.sign(SECRET, MESSAGE)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert good(key, signature)
    assert not good(key, bytes(64))


@pytest.mark.parametrize("part", ["nacl", "nacl.signing"])
def test_without_the_library_there_is_no_verdict(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Neither good nor bad: an error that says what to install."""
    for name in [n for n in sys.modules if n == part or n.startswith(part + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, part, None)
    key, signature = reference.sign(SECRET, MESSAGE)
    with pytest.raises(VerifierMissing, match=r"nacl.* cannot be imported") as caught:
        good(key, signature)
    assert "refit-agent[signing]" in caught.value.hint
