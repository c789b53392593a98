"""Sizes, durations and ages for people; text that is safe to print; percentages that never fall."""

from __future__ import annotations

import pytest

from refit_agent.cli.output import age_text, printable, seconds_text, size_text
from refit_agent.cli.progress_view import HighWater, LineView, detail_text
from refit_agent.progress import Progress


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes(count: int, text: str) -> None:
    """Powers of 1024, as the sizes that the options take."""
    assert size_text(count) == text


def test_durations_and_ages() -> None:
    """A hit is told in fractions of a millisecond, a refit in seconds."""
    assert [seconds_text(s) for s in (0.00042, 0.042, 1.23, 600)] == ["0.42 ms", "42 ms", "1.2 s", "10.0 min"]
    assert [age_text(s) for s in (5, 300, 7200, 864000)] == ["just now", "5 min ago", "2 h ago", "10 days ago"]


def test_printable() -> None:
    """Letters of every script stay; what moves the cursor or hides is escaped; lines stay lines."""
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b]0;x\x07\u202e\u200b") == "\\x1b]0;x\\x07\\u202e\\u200b"
    assert printable("\udcff") == "\\udcff"


def test_lines_are_few_and_never_go_back(capsys: pytest.CaptureFixture[str]) -> None:
    """A second candidate starts anew, the number shown does not; within a phase there is no flood."""
    view = LineView()
    for number in range(100):
        view.show("m", Progress(phase="write", text="writing", fraction=0.5 + number / 1000, done=number, total=100))
    view.show("m", Progress(phase="start", text="starting", fraction=0.0))
    view.show("m", Progress(phase="ready", text="ready", fraction=1.0))
    assert capsys.readouterr().err.splitlines() == [
        "m:  50% writing, 0 B of 100 B",
        "m:  60% starting",
        "m: 100% ready",
    ]
    keep = HighWater()
    assert [keep("a", 0.5), keep("a", 0.2), keep("b", 0.1)] == [0.5, 0.5, 0.1]


def test_detail() -> None:
    """Weights are counted, all else is measured in bytes, and what is unknown is left out."""
    assert detail_text(Progress(phase="refit", text="", fraction=0, done=3, total=9)) == "3 of 9 weights"
    assert (
        detail_text(Progress(phase="write", text="", fraction=0, done=1 << 20, total=2 << 20)) == "1.0 MiB of 2.0 MiB"
    )
    assert detail_text(Progress(phase="open", text="", fraction=0)) == ""
