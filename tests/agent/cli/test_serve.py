"""`refit-agent serve` says where it listens to whoever started it by hand, and to nobody else."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from .command import Cli

pty = pytest.importorskip("pty")
pytest.importorskip("aiohttp")


@pytest.fixture
def serving(cli: Cli) -> Iterator[Callable[[int], None]]:
    """Starts it with a file descriptor as its standard error; ends it after the test."""
    started = []

    def start(stderr: int) -> None:
        started.append(cli.start("serve", stderr=stderr))

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def _received(descriptor: int, wanted: bytes, seconds: float) -> bytes:
    """What comes there until it holds ``wanted``, or the time is over."""
    received, ends = b"", time.monotonic() + seconds
    while wanted not in received and (left := ends - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            received += os.read(descriptor, 65536)
    return received


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
def test_at_a_terminal_one_line_says_where(cli: Cli, serving: Callable[[int], None]) -> None:
    """With the place that clients look at."""
    main, terminal = pty.openpty()
    serving(terminal)
    os.close(terminal)
    try:
        received = _received(main, b"\n", 20).decode()
    finally:
        os.close(main)
    assert received.count("\n") == 1 and "the service listens" in received
    assert f"{cli.home}/run/agent.sock" in received


@pytest.mark.skipif(sys.platform == "win32", reason="it waits for a Unix socket")
def test_elsewhere_nothing_is_said(cli: Cli, serving: Callable[[int], None]) -> None:
    """A journal, or a log of whoever started it, gets no line for a start that went well."""
    reader, writer = os.pipe()
    serving(writer)
    os.close(writer)
    try:
        log, ends = cli.home / "state/logs/service.log", time.monotonic() + 20
        while not (log.exists() and "the service listens" in log.read_text()):
            assert time.monotonic() < ends
            time.sleep(0.02)
        assert _received(reader, b"\n", 0.2) == b""
    finally:
        os.close(reader)
