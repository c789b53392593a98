"""Every command and every piece of Python that a page shows is run, as it stands there, by a new user."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from docs.pages import ROOT, PageFault, blocks_of, commands_in, require_exists, require_parses, run_page
from service.running import until

PAGES = sorted((ROOT / "docs").glob("*.md"))
#: Pages of installers and fleets, whose commands are tested where they are; here they are held against the options.
ELSEWHERE = [ROOT / "README.md", *sorted((ROOT / "packaging").glob("*/README.md"))]
#: Pages that show commands: one that lost them all is noticed.
TALKING = {"quick-start.md", "api.md", "operations.md"}

#: Texts that only look like one.
NO_COMMANDS = {"refit-agent bundle 1"}

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="the pages are for a POSIX shell; bash runs them"
)


@pytest.fixture
def root() -> Iterator[Path]:
    """With a short path: a socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="page") as folder:
        yield Path(folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_shows_works(page: Path, root: Path) -> None:
    """In its order, in one new home."""
    if "curl " in page.read_text() and shutil.which("curl") is None:
        pytest.skip("the page calls curl, which is not installed")
    assert run_page(page.read_text(), root) or page.name not in TALKING


def _spoken_of(text: str) -> Iterator[str]:
    """Commands within sentences: `refit-agent ...` and 'refit-agent ...'."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    yield from re.findall(r"`(refit-agent [^`]*)`", prose)
    yield from re.findall(r"'(refit-agent [a-z][^']*)'", prose)


@pytest.mark.parametrize("page", [*PAGES, *ELSEWHERE], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_speaks_of_exists(page: Path) -> None:
    """Commands within sentences and tables name real commands and options; their arguments may be left out."""
    for words in set(_spoken_of(page.read_text())) - NO_COMMANDS:
        require_exists(words)


@pytest.mark.parametrize("page", ELSEWHERE, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_other_pages_parse(page: Path) -> None:
    """Those in blocks, fenced or indented, by themselves."""
    text = page.read_text()
    shown = re.findall(r"^```sh[^\n]*\n(.*?)^```$", text, re.M | re.S)
    shown += re.findall(r"^ {4}(.*refit-agent .*)$", text, re.M)
    for arguments in (a for piece in shown for a in commands_in(piece)):
        require_parses(arguments)


# ---------------------------------------------------------------- the runner itself


def _page(*lines: str) -> str:
    return "\n".join(["# A page", *lines, ""])


FAULTS = {
    "it fails": (_page("```sh", "refit-agent explain nowhere", "```"), "ended with 3 and not 0"),
    "it fails in the middle": (_page("```sh", "refit-agent explain nowhere", "true", "```"), "ended with 3"),
    "it does not fail": (_page("```sh exit=3", "true", "```"), "ended with 0 and not 3"),
    "a python error": (_page("```python", "import refit_agent", "refit_agent.nothing", "```"), "ended with 1"),
    "a setup that fails": (_page("<!-- setup", "false", "-->"), "ended with 1"),
    "another output": (_page("```sh", "echo one; echo two", "```", "", "```output", "two", "one", "```"), "'one' does not"),
    "an unknown mark": (_page("```sh needs=luck", "true", "```"), "unknown mark"),
    "an unknown language": (_page("```bash", "true", "```"), "nobody knows"),
    "no language": (_page("```", "refit-agent gpus", "```"), "nobody knows"),
    "outside of a block": (_page("    refit-agent gpus"), "outside of any block"),
    "output of nothing": (_page("```output", "one", "```"), "no block that was run"),
    "no such option": (_page("```sh needs=gpu", "refit-agent provision ./b --fast", "```"), "--fast"),
    "no such command": (_page("```sh needs=root", "sudo refit-agent provide ./b", "```"), "provide"),
    "no such subcommand": (_page("```sh needs=builder", "refit-agent bundle built x.onnx", "```"), "built"),
    "an argument is missing": (_page("```sh needs=gpu", "refit-agent path ./bundle", "```"), "lacks MODEL"),
    "within another command": (_page("```sh needs=gpu", 'app "$(refit-agent path ./b)" | cat', "```"), "lacks MODEL"),
    "after a pipe": (_page("```sh needs=gpu", "true && cat x | refit-agent cache liste", "```"), "liste"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), FAULTS.values(), ids=FAULTS)
def test_a_page_that_does_not_hold_is_noticed(text: str, said: str, root: Path) -> None:
    """Each in its own way."""
    with pytest.raises(PageFault, match=re.escape(said)):
        run_page(text, root)


def test_one_block_goes_on_where_the_other_ended(root: Path) -> None:
    """Variables, folder and files; what was started in the background ends with the page."""
    text = _page(
        "<!-- setup", "mkdir folder", "sleep 1000 & echo $! >pid", "-->",
        "```sh", "NAME=value", "cd folder", "```",
        "```python", "import os, pathlib", "print(os.environ['NAME'], pathlib.Path.cwd().name)", "```", "",
        "```output", "va... folder", "```",
        "```sh exit=3", 'test "$NAME" = value', "exit 3", "```",
        "```sh", 'test "$NAME" = value && kill -0 "$(cat ../pid)"', "```",
    )  # fmt: skip
    assert run_page(text, root) == 4
    pid = int((root / "work" / "pid").read_text())
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_what_cannot_be_run_here_is_not(root: Path) -> None:
    """Only held against the options."""
    text = _page("```sh needs=gpu", "touch ran; refit-agent provision ./bundle --target cuda:0", "```")
    assert run_page(text, root) == 0
    assert not (root / "work" / "ran").exists()


@pytest.mark.parametrize(
    "usage", ["refit-agent provide", "refit-agent cache list|shrink", "refit-agent path --fast", "refit-agent -q gpus"]
)
def test_what_does_not_exist_is_not_spoken_of(usage: str) -> None:
    with pytest.raises(PageFault, match="there is no"):
        require_exists(usage)


def test_commands_are_found_where_a_shell_would() -> None:
    text = "sudo /usr/bin/refit-agent -v gpus --json >out; A=1 refit-agent \\\n  status # refit-agent no\necho refit-agent-x"
    assert list(commands_in(text)) == [["-v", "gpus", "--json"], ["status"]]
    assert [b.line for b in blocks_of(_page("```sh", "a", "```", "```json", "{}", "```", "```sh", "b", "```"))] == [
        2,
        8,
    ]
