"""What a bundle had a runtime say, in the log of a person's terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundles import python

if sys.platform == "win32":
    pytest.skip("a pseudo-terminal is needed", allow_module_level=True)

EVIL = "a\x1b]0;owned\x07\x1b[2J\u202eb\rc"
CODE = """
import sys
from refit_agent import logs
logs.want("info")
log = logs.get_logger("test")
log.warning("the runtime warned", note=sys.argv[1], number=1)
try:
    raise ValueError(sys.argv[1])
except ValueError as error:
    log.error("a fault", exc_info=error)
"""


def _logged(tmp_path: Path, *, terminal: bool) -> str:
    command, env = python(CODE, EVIL)
    if not terminal:
        return subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path).stderr
    main, end = os.openpty()
    subprocess.run(command, env=env | {"NO_COLOR": "1", "TERM": "xterm"}, stderr=end, cwd=tmp_path, check=True)
    os.close(end)
    said = b""
    with open(main, "rb", buffering=0) as file:
        while True:
            try:
                data = file.read(65536)
            except OSError:  # Linux says so when the last writer has closed
                break
            if not data:
                break
            said += data
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_a_log_line_moves_no_cursor(tmp_path: Path, terminal: bool) -> None:
    """Neither a value nor the words of an exception; both are there to be read."""
    said = _logged(tmp_path, terminal=terminal)
    assert not set(said) & set("\x1b\x07\u202e\r")
    assert said.count("owned") >= 2
