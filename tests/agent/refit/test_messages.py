"""What a worker may say: numbers that progress can be reckoned from, and nothing else."""

from __future__ import annotations

import msgspec
import pytest

from refit_agent.refit.messages import Phase, event_decoder


@pytest.mark.parametrize(
    "numbers",
    [
        b'"part":7,"parts":2',
        b'"part":2,"parts":2',
        b'"part":-1,"parts":2',
        b'"parts":0',
        b'"done":-1',
        b'"total":-1',
        b'"done":' + b"9" * 400,
    ],
)
def test_numbers_that_make_no_sense_are_no_event(numbers: bytes) -> None:
    """The whole is never more than whole, and no number is too large to divide."""
    with pytest.raises(msgspec.ValidationError):
        event_decoder.decode(b'{"type":"phase","phase":"map",%s}' % numbers)


def test_the_last_part_of_several_is_one() -> None:
    """They are counted from 0."""
    event = event_decoder.decode(b'{"type":"phase","phase":"map","done":5,"total":3,"part":1,"parts":2}')
    assert event == Phase(phase="map", done=5, total=3, part=1, parts=2)
