from __future__ import annotations

import threading
from typing import Any

import pytest

from fakes_tensorrt import FakeTensorRt
from refit_agent.runtimes import tensorrt_log
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger


class Lines(list[tuple[str, str, dict[str, Any]]]):
    """In the place of structlog's logger."""

    def __getattr__(self, level: str) -> Any:
        return lambda text, **fields: self.append((level, text, fields))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    found = Lines()
    monkeypatch.setattr(tensorrt_log, "_log", found)
    return found


def test_repeats_become_one_line_and_a_count(lines: Lines) -> None:
    """One warning a layer is one warning, with the number of times that it came."""
    sink = MessageSink()
    for _ in range(40):
        sink.take("WARNING", "across different models of devices")
    sink.take("WARNING", "another")
    sink.flush()
    assert lines == [
        ("warning", "across different models of devices", {}),
        ("warning", "another", {}),
        ("warning", "across different models of devices", {"repeated": 40}),
    ]


def test_a_flush_begins_anew(lines: Lines) -> None:
    """What came once before and once after is no repeat, and is told both times."""
    sink = MessageSink()
    for _ in range(2):
        sink.take("WARNING", "again")
        sink.flush()
    assert lines == [("warning", "again", {})] * 2


@pytest.mark.parametrize(
    ("severity", "level"),
    [
        ("VERBOSE", "debug"),
        ("INFO", "debug"),
        ("WARNING", "warning"),
        ("ERROR", "error"),
        ("INTERNAL_ERROR", "error"),
        ("NEWER", "error"),
    ],
)
def test_severities_become_levels(lines: Lines, severity: str, level: str) -> None:
    """One that nobody knows counts as an error."""
    MessageSink().take(severity, "text")
    assert lines[0][0] == level


def test_errors_are_kept_for_ours(lines: Lines) -> None:
    """The last five, oldest first, once; warnings are none of them."""
    sink = MessageSink()
    sink.take("WARNING", "w")
    for number in range(7):
        sink.take("ERROR" if number % 2 else "INTERNAL_ERROR", f"e{number}")
    assert sink.errors() == "e2; e3; e4; e5; e6"
    assert sink.errors() == "TensorRT gave no reason"


def test_the_bridge_passes_messages_on(lines: Lines) -> None:
    """It is an ILogger of the module, with the severities by name."""
    module = FakeTensorRt()
    sink = MessageSink()
    logger = make_logger(module, sink)
    assert isinstance(logger, module.ILogger)
    logger.say("ERROR", "no such layer")
    assert sink.errors() == "no such layer"


@pytest.mark.parametrize("severity", [None, "text", FakeTensorRt().ILogger.Severity.ERROR])
def test_the_bridge_never_raises(monkeypatch: pytest.MonkeyPatch, severity: Any) -> None:
    """An exception would unwind through TensorRT's C++ frames and end the process."""

    class Broken:
        def __getattr__(self, level: str) -> Any:
            raise RuntimeError("the log is full")

    monkeypatch.setattr(tensorrt_log, "_log", Broken())
    make_logger(FakeTensorRt(), MessageSink()).log(severity, "text")


def test_messages_come_from_many_threads(lines: Lines) -> None:
    """TensorRT logs from its own threads while ours flushes; nothing is raised and every message is said."""
    sink = MessageSink()
    faults: list[Exception] = []

    def talk(who: int) -> None:
        try:
            for number in range(2000):
                sink.take("INFO", f"{who} {number}")
        except Exception as error:  # noqa: BLE001 - told by the test's own thread
            faults.append(error)

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sink.flush()
    assert faults == []
    assert {text for _, text, _ in lines} == {f"{who} {number}" for who in range(4) for number in range(2000)}


def test_a_message_that_comes_during_a_flush_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of TensorRT's may have looked the counts up just before the flush took them away."""
    sink = MessageSink()
    counts = sink._counts

    class Late(Lines):
        def warning(self, text: str, **fields: Any) -> None:
            counts["WARNING", f"late {len(counts)}"] = 1

    monkeypatch.setattr(tensorrt_log, "_log", Late())
    counts.update({("WARNING", "a"): 2, ("WARNING", "b"): 2})
    sink.flush()


def test_the_host_s_log_takes_what_it_gets(caplog: pytest.LogCaptureFixture) -> None:
    """Text with the marks of a format string, and one that is empty."""
    with caplog.at_level("WARNING", "refit_agent.tensorrt"):
        sink = MessageSink()
        for text in ("100 % of {x} %s", ""):
            sink.take("WARNING", text)
    assert [record.getMessage() for record in caplog.records] == ["100 % of {x} %s", ""]


def test_warnings_are_kept_for_the_parent_once_each() -> None:
    """Dozens of lines, one a layer, are one with a count; errors and chatter are not among them."""
    sink = MessageSink()
    for severity, text in [("WARNING", "a"), ("INFO", "i"), ("WARNING", "b"), ("ERROR", "e"), ("WARNING", "a")]:
        sink.take(severity, text)
    sink.flush()
    assert sink.warnings() == ["a (2 times)", "b"]
