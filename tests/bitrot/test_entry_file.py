"""Bits that change in ``entry.json``, which says what an engine's files must be."""

from __future__ import annotations

import json
from pathlib import Path

from entries import put
from refit_agent.cache.entry import decode_entry

from . import places
from .victim import Victim, flipped, write


def test_every_flipped_bit_is_found_by_the_look_up(victim: Victim) -> None:
    """All eight of every byte. Most leave a document that reads well: another model, time or check."""
    path = victim.folder / "entry.json"
    sound = path.read_bytes()
    still_json = 0
    for at in range(len(sound)):
        for bit in range(8):
            rotten = flipped(sound, at, bit)
            assert isinstance(decode_entry(rotten, victim.key), str), (at, bit, rotten[at : at + 1])
            still_json += _is_json(rotten)
        write(path, flipped(sound, at, at % 8))
        assert victim.look_up(), at
    write(path, sound)
    assert victim.look_up() == ""
    assert still_json > len(sound), "so it takes more than a parser to see them"


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def test_every_changed_byte_is_found_by_verify_and_set_aside(victim: Victim) -> None:
    """With one lock, one rename and no file read."""
    path = victim.folder / "entry.json"
    sound = path.read_bytes()
    for at in range(0, len(sound), 3):
        with victim.put_back():
            write(path, flipped(sound, at, at % 8))
            verdict = victim.verify()
            assert "entry.json" in verdict.fault and verdict.set_aside, at


def test_cut_at_every_byte_and_grown(victim: Victim) -> None:
    """However little is missing or was added, white space too."""
    path = victim.folder / "entry.json"
    sound = path.read_bytes()
    more = [sound + tail for tail in (b"\n", b" ", b"\0", b"x", sound, bytes(places.PAGE), b" " * (2 << 20))]
    for rotten in [*(sound[:length] for length in range(len(sound))), *more, b"\n" + sound, bytes(len(sound))]:
        write(path, rotten)
        assert "entry.json" in victim.look_up(), len(rotten)
    write(path, sound)
    assert victim.look_up() == ""


def test_each_field_changed_by_hand_is_found(victim: Victim) -> None:
    """Also with the old seal, the seal of another entry, an empty one and none."""
    path = victim.folder / "entry.json"
    sound = path.read_bytes()
    document = json.loads(sound)
    other = json.loads(Path(victim.store.folder(put(victim.store, 1)), "entry.json").read_bytes())
    assert document["seal"] != other["seal"]
    for name in document:
        for value in (other.get(name), "", None, 7):
            if value != document[name]:
                write(path, (json.dumps(document | {name: value}, indent=1) + "\n").encode())
                assert victim.look_up(), (name, value)
        write(path, (json.dumps({k: v for k, v in document.items() if k != name}, indent=1) + "\n").encode())
        assert victim.look_up(), name
    write(path, json.dumps(document).encode())
    assert victim.look_up(), "the same document in other bytes"
    write(path, sound)
    assert victim.look_up() == ""


def test_the_engine_is_made_anew(victim: Victim) -> None:
    """A changed runtime version would have an app load the plan with the wrong one."""
    path = victim.folder / "entry.json"
    sound = path.read_bytes()
    write(path, sound.replace(b'"runtime": "onnxruntime"', b'"runtime": "onnxruntimf"'))
    with victim.ask() as engine:
        assert not engine.hit and engine.runtime == "onnxruntime"
    assert len(victim.set_aside()) == 1
    with victim.ask() as engine:
        assert engine.hit
