"""Bits that change in the files of a cached engine."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from . import places
from .victim import Victim, flipped, write

SEED = 20261122
FILES = ("model.onnx", "weights.bin")


def _offsets(victim: Victim, name: str) -> list[int]:
    data = (victim.folder / name).read_bytes()
    structure = places.protobuf(data) if name.endswith(".onnx") else set()
    return sorted(structure | places.sample(len(data), SEED))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_always_found_by_verify(victim: Victim, name: str) -> None:
    """A look-up compares size and time alone: a bit that flips on the disk changes neither, and is verify's to find."""
    path = victim.folder / name
    sound, bits = path.read_bytes(), random.Random(SEED)
    offsets = _offsets(victim, name)
    assert len(offsets) > (300 if name == "model.onnx" else 45), "structure and sample"
    for at in offsets:
        with victim.put_back():
            write(path, flipped(sound, at, bits.randrange(8)))
            assert victim.look_up() == "", at
            verdict = victim.verify()
            assert verdict.fault == f"the content of {name} changed although its size and time did not", at
            assert [str(p) for p in victim.set_aside()] == [verdict.set_aside], at
            assert victim.store.lookup(victim.key) is None
    assert victim.verify().fault == ""


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_written_to_is_found_by_the_look_up(victim: Victim, name: str) -> None:
    """Its time tells, by one nanosecond, wherever the flipped bit is."""
    path = victim.folder / name
    sound = path.read_bytes()
    for at in _offsets(victim, name)[::7]:
        with victim.put_back():
            write(path, flipped(sound, at, 0))
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
            assert victim.look_up() == f"{name} was changed after it was published"
            assert victim.verify().set_aside


OTHER_SIZE: dict[str, Callable[[bytes], bytes]] = {
    "nothing left": lambda data: b"",
    "a byte short": lambda data: data[:-1],
    "a page short": lambda data: data[: (len(data) - 1) // places.PAGE * places.PAGE],
    "a byte more": lambda data: data + b"\0",
    "a page more": lambda data: data + bytes(places.PAGE),
    "twice": lambda data: data * 2,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", OTHER_SIZE)
def test_another_size_is_found_by_the_look_up(victim: Victim, name: str, change: str) -> None:
    """Also where the time is what it was; the engine that is made instead gives the golden output."""
    path = victim.folder / name
    write(path, OTHER_SIZE[change](path.read_bytes()))
    assert "bytes and should have" in victim.look_up()
    with victim.put_back():
        assert victim.verify().set_aside
    write(path, OTHER_SIZE[change](path.read_bytes()))
    with victim.ask() as engine:
        assert not engine.hit
    assert len(victim.set_aside()) == 1
    with victim.ask() as engine:
        assert engine.hit


def test_a_page_of_zeros_is_found(victim: Victim) -> None:
    """What a file system leaves of a block it has lost; every page that was not zeros before."""
    path = victim.folder / "weights.bin"
    sound, changed = path.read_bytes(), 0
    for page in range(0, len(sound), places.PAGE):
        zeroed = sound[:page] + bytes(len(sound[page : page + places.PAGE])) + sound[page + places.PAGE :]
        if zeroed != sound:
            changed += 1
            with victim.put_back():
                write(path, zeroed)
                assert victim.look_up() == ""
                assert victim.verify().set_aside, page
    assert changed >= 5


def test_what_verify_found_is_made_anew(victim: Victim) -> None:
    """The next request makes the engine, which gives the golden output; the one after finds it."""
    path = victim.folder / "weights.bin"
    write(path, flipped(path.read_bytes(), 4000, 6))
    with victim.ask_unchecked() as engine:
        assert engine.hit, "by design: a hit reads no content"
    assert victim.verify().set_aside
    with victim.ask() as engine:
        assert not engine.hit
    with victim.ask() as engine:
        assert engine.hit
    assert victim.verify().fault == ""
