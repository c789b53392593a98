"""The commands that pages show: found in their Markdown, and run or at least parsed.

A block that begins with ```sh or ```python is run, in the order of its page. After the language may stand

    exit=N          the exit code that it must end with, 0 without it
    needs=REASON    it cannot be run here, for one of `REASONS`; its refit-agent commands are parsed all the same

A block ```output right after it holds lines that must come in its output, in this order; "..." within one stands for
anything. A comment that begins with <!-- setup holds what the text takes for granted, such as an app's files: it is run
by the shell where it stands, with $SAMPLES for the script that makes such files. What one block assigns, exports or
changes to is there in the next.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from refit_agent.cli.group import root as command_line

ROOT = Path(__file__).parents[2]
#: Why a block is not run, each with what is missing where the tests run.
REASONS = {
    "gpu": "an NVIDIA GPU",
    "builder": "a full TensorRT and a GPU",
    "root": "the right to change this machine",
    "systemd": "a user's systemd",
    "windows": "Windows",
    "desktop": "a browser",
    "network": "somebody else's server",
}
_RUN = ("sh", "python", "setup")
#: Languages of blocks that nobody types into a shell.
_SHOWN = ("json", "toml", "output")
_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$|^<!-- setup\n(?P<setup>.*?)^-->$", re.M | re.S)
_SECONDS = 120


class PageFault(Exception):  # noqa: N818 - a finding
    """A page shows something that does not hold."""


class Block(NamedTuple):
    """One block of a page; ``needs`` is "" for one that is run."""

    line: int
    language: str
    text: str
    exit_code: int = 0
    needs: str = ""
    output: tuple[str, ...] = ()


# ---------------------------------------------------------------- reading


def blocks_of(text: str) -> list[Block]:
    """All blocks of a page that are run or could be. Raises PageFault for one that is not marked as it must be."""
    found: list[Block] = []
    end = -1
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            found.append(Block(line, "setup", match["setup"]))
            continue
        language, *marks = match["info"].split() or [""]
        if language == "output":
            if not found or text[end : match.start()].strip() or found[-1].needs:
                raise PageFault(f"line {line}: no block that was run stands right before this output")
            found[-1] = found[-1]._replace(output=tuple(match["text"].splitlines()))
        elif language in _RUN:
            found.append(_marked(Block(line, language, match["text"]), marks))
        elif language not in _SHOWN or marks:
            raise PageFault(f"line {line}: nobody knows what to do with a block of {match['info']!r}")
        end = match.end()
    stray = re.search(r"^ {4,}(\S*/)?refit-agent .*", _BLOCK.sub(lambda m: "\n" * m[0].count("\n"), text), re.M)
    if stray:
        raise PageFault(f"outside of any block stands {stray[0].strip()!r}, which would never be run")
    return found


def _marked(block: Block, marks: list[str]) -> Block:
    for mark in marks:
        name, _, value = mark.partition("=")
        if name == "exit" and value.isdecimal():
            block = block._replace(exit_code=int(value))
        elif name == "needs" and value in REASONS:
            block = block._replace(needs=value)
        else:
            raise PageFault(f"line {block.line}: unknown mark {mark!r}")
    return block


# ---------------------------------------------------------------- parsing


def commands_in(text: str) -> Iterator[list[str]]:
    """The arguments of every refit-agent command in a piece of shell."""
    for inner in re.findall(r"\$\(([^()]*)\)", text):
        yield from commands_in(inner)
    for line in _whole_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
        lexer.whitespace_split = True
        arguments: list[str] | None = None
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|<>()"):
                if arguments is not None:
                    yield arguments
                arguments = None
            elif arguments is not None:
                arguments.append(token)
            elif token == "refit-agent" or token.endswith("/refit-agent"):
                arguments = []


def _whole_lines(text: str) -> Iterator[str]:
    """Lines as a shell reads them: on after a backslash, and until a quotation ends."""
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line
        try:
            shlex.split(begun, comments=True)
        except ValueError:
            begun += "\n"
            continue
        yield begun
        begun = ""
    if begun:
        raise PageFault(f"a quotation has no end: {begun!r}")


def require_parses(arguments: list[str]) -> None:
    """Raise PageFault if there is no such command or option, or an argument is missing or one too many."""
    words = " ".join(["refit-agent", *arguments])
    command: click.Command = command_line
    context: click.Context | None = None
    rest = list(arguments)
    try:
        while True:
            context = click.Context(command, context, command.name, **command.context_settings)
            given, rest, _ = command.make_parser(context).parse_args(rest)
            if not isinstance(command, click.Group):
                break
            if not rest:
                if not given.keys() & {"help", "version"}:
                    raise PageFault(f"{words!r} names no command")
                return
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            command = found
    except click.UsageError as error:
        raise PageFault(f"{words!r}: {error.format_message()}") from error
    missing = [
        p.human_readable_name
        for p in command.params
        if p.required and (not isinstance(given.get(p.name or ""), (str, list, tuple)) or given[p.name or ""] == ())
    ]
    if missing and "help" not in given:
        raise PageFault(f"{words!r} lacks {', '.join(missing)}")
    if rest:
        raise PageFault(f"{words!r} has too much: {' '.join(rest)}")


def require_exists(usage: str) -> None:
    """As `require_parses` for a usage line or a command named in a sentence: "refit-agent cache list|prune [--json]".

    Values and arguments may be left out.
    """
    group: click.Group | None = command_line
    leaves: list[click.Command] = []
    for token in re.sub(r"[\[\]]|\.\.\.|…", " ", usage.replace("\\|", " |").replace("|", " |")).split()[1:]:
        word = token.removeprefix("|")
        options = {o for c in [*leaves, command_line] for p in c.params for o in [*p.opts, *p.secondary_opts]}
        if word.startswith("-"):
            if word.partition("=")[0] not in options | {"-h", "--help"}:
                raise PageFault(f"{usage!r}: there is no option {word}")
        elif group is not None and word and (not leaves or token.startswith("|")):
            found = group.get_command(click.Context(group), word)
            if found is None:
                raise PageFault(f"{usage!r}: there is no command {word!r}")
            if isinstance(found, click.Group) and not leaves:
                group = found
            else:
                leaves.append(found)


# ---------------------------------------------------------------- running


class Workplace:
    """A home, a work folder and a runtime folder of one page's own, below ``root``, which has a short path."""

    def __init__(self, root: Path) -> None:
        self.work, self._state, self._output = root / "work", root / "state.sh", root / "output"
        for folder in ("work", "home", "run", "tmp"):
            (root / folder).mkdir(mode=0o700)
        programs = Path(sys.executable).parent
        if not (programs / "refit-agent").exists():
            raise PageFault(f"refit-agent is not installed beside {sys.executable}")
        self.env = {
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
            "HOME": str(root / "home"),
            "XDG_RUNTIME_DIR": str(root / "run"),
            "TMPDIR": str(root / "tmp"),
            "LANG": "C.UTF-8",
            "SAMPLES": str(Path(__file__).with_name("samples.py")),
        }
        self._state.write_text(f"cd {shlex.quote(str(self.work))}\n")
        self._groups: list[int] = []

    def run(self, block: Block) -> str:
        """Run a block and give what it said. Raises PageFault if it is not what the page says."""
        if block.language == "python":
            (self.work.parent / "block.py").write_text(block.text)
            script = f'. "{self._state}"; python3 "{self.work.parent}/block.py"'
        else:
            # What it assigns is exported, so that the next block has it; functions are kept, too.
            keep = (
                f'code=$?; {{ export -p; declare -f; echo "cd $(printf %q "$PWD")"; }} >"{self._state}"; exit "$code"'
            )
            script = f". \"{self._state}\"; set -eauo pipefail; trap '{keep}' EXIT\n{block.text}"
        with open(self._output, "w+b") as output:
            process = subprocess.Popen(
                ["bash", "-c", script], env=self.env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._groups.append(process.pid)
            try:
                code = process.wait(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            output.seek(0)
            said = output.read().decode("utf-8", "replace")
        if code != block.exit_code:
            raise PageFault(f"line {block.line}: it ended with {code} and not {block.exit_code}:\n{block.text}{said}")
        _require_lines(block, said)
        return said

    def close(self) -> None:
        """End what the blocks left running."""
        for group in self._groups:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _require_lines(block: Block, said: str) -> None:
    rest = iter(said.splitlines())
    for wanted in block.output:
        form = re.compile(".*".join(map(re.escape, wanted.rstrip().split("..."))))
        if not any(form.fullmatch(line.rstrip()) for line in rest):
            raise PageFault(f"line {block.line}: {wanted!r} does not come where it should in what it says:\n{said}")


def run_page(text: str, root: Path) -> int:
    """Run all blocks of a page; gives how many were run. Raises PageFault."""
    blocks = blocks_of(text)
    place = Workplace(root)
    ran = 0
    try:
        for block in blocks:
            if block.needs:
                for arguments in commands_in(block.text):
                    require_parses(arguments)
            else:
                place.run(block)
                ran += block.language != "setup"
    finally:
        place.close()
    return ran
