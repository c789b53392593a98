"""On a terminal: a bar that goes and leaves the screen clean, logs for people."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from .command import Cli

pty = pytest.importorskip("pty")


def _on_a_terminal(cli: Cli, *arguments: str | Path, **env: str) -> tuple[int, str]:
    """Run with a pseudo-terminal as standard output and standard error; gives what it received."""
    main, terminal = pty.openpty()
    full = cli.env | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"} | env
    process = subprocess.Popen(
        cli.command(*arguments), env=full, stdin=terminal, stdout=terminal, stderr=terminal, cwd="/"
    )
    os.close(terminal)
    received = b""
    try:
        while select.select([main], [], [], 30)[0]:
            try:
                data = os.read(main, 65536)
            except OSError:
                break  # Linux says EIO when the last writer has closed
            if not data:
                break
            received += data
    finally:
        os.close(main)
    return process.wait(timeout=30), received.decode()


def test_bar(cli: Cli, bundle: Path) -> None:
    """The bar has label, percentage and words; afterwards the cursor is back and the result stands there."""
    code, text = _on_a_terminal(cli, "provision", bundle)
    assert code == 0
    assert "━" in text and "%" in text and "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "classifier: made in" in text[text.rindex("\x1b[?25h") :]
    percents = [int(p) for p in re.findall(r"(\d+)%", text)]
    assert percents == sorted(percents)


def test_a_hit_draws_nothing(cli: Cli, bundle: Path) -> None:
    """No bar, no escape sequence."""
    cli("provision", bundle)
    code, text = _on_a_terminal(cli, "provision", bundle)
    assert code == 0 and "\x1b" not in text and "in the cache, found in" in text


def test_a_dumb_terminal_gets_lines(cli: Cli, bundle: Path) -> None:
    """Where the cursor cannot be moved there are plain lines."""
    code, text = _on_a_terminal(cli, "provision", bundle, TERM="dumb")
    assert code == 0 and "\x1b" not in text and "100% ready" in text


def test_logs_for_people(cli: Cli, bundle: Path) -> None:
    """--verbose on a terminal writes lines for people, not JSON, and NO_COLOR is heeded."""
    code, text = _on_a_terminal(cli, "--verbose", "provision", bundle, NO_COLOR="1")
    assert code == 0 and "engine published" in text and '"event"' not in text


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
def test_tables(cli: Cli, bundle: Path) -> None:
    """The table fits the terminal's width."""
    cli("provision", bundle)
    code, text = _on_a_terminal(cli, "cache", "list", COLUMNS="70")
    assert code == 0
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 70 for line in text.splitlines()[:-1])
