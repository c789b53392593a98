"""Prints the manual page and the completions as one JSON document. Run by the interpreter that is to be packaged.

Both come from the command line's own description, so that neither can say what the program does not do.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from refit_agent import __version__
from refit_agent.cli import group

_NAME = "refit-agent"
_COMPLETE = "_REFIT_AGENT_COMPLETE"
_NOTES = """
.SH FILES
.TP
.I ~/.cache/refit-agent
The engines; safe to delete.
.TP
.I ~/.local/state/refit-agent
What was learned about the machine, failures, registered bundles, logs.
.TP
.I $XDG_RUNTIME_DIR/refit-agent/agent.sock
The service's socket.
.TP
.I /etc/refit-agent/settings.toml
Settings of this machine; see
.BR refit-agent-settings (5).
.SH NOTES
The Debian package enables the user unit
.B refit-agent.socket
for everybody: the service starts when an app first asks for it.
To have it keep registered bundles ready from login on:
.PP
.nf
.RS
systemctl \\-\\-user enable refit-agent.service
.RE
.fi
.PP
The unit of the service sets
.BR NoNewPrivileges ,
so that NVIDIA's driver cannot run its setuid program
.BR nvidia-modprobe (1)
there.
Where no udev rule and no
.B nvidia-persistenced
makes
.I /dev/nvidia\\-uvm
at boot, let root run
.B nvidia-modprobe \\-u \\-c 0
once after it.
.SH SEE ALSO
.BR refit-agent-settings (5),
.BR systemctl (1)
"""


def main() -> None:
    """Write the document; argument 1 is the date of the page, in seconds since 1970."""
    document = {"man": "".join(_page(int(sys.argv[1])))}
    for shell in ("bash", "zsh", "fish"):
        document[shell] = _completion(shell)
    json.dump(document, sys.stdout)


def _completion(shell: str) -> str:
    kind = get_completion_class(shell)
    assert kind is not None
    completion = kind(group.root, {}, _NAME, _COMPLETE)
    # Not its source(): that runs the shell to compare versions, and shells need not be here.
    return completion.source_template % completion.source_vars()


def _page(date: int) -> Iterator[str]:
    day = time.strftime("%Y-%m-%d", time.gmtime(date))
    yield f'.TH REFIT\\-AGENT 1 {day} "refit-agent {__version__}" "User Commands"\n'
    yield ".SH NAME\nrefit-agent \\- puts the weights back into weight-stripped engines\n"
    context = click.Context(group.root, info_name=_NAME, **group.root.context_settings)
    yield ".SH SYNOPSIS\n.B refit-agent\n[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n"
    yield ".SH DESCRIPTION\n" + _prose(group.root.help or "")
    yield ".SH OPTIONS\n" + _options(group.root, context)
    yield ".SH COMMANDS\n"
    for name in group.root.list_commands(context):
        command = group.root.get_command(context, name)
        assert command is not None
        yield from _command(command, click.Context(command, info_name=name, parent=context))
    yield _epilog(group.root.epilog or "")
    yield _NOTES.lstrip("\n")


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_plain(context.command_path.removeprefix(_NAME).strip())} {_plain(usage)}\n"
    yield _prose(command.help or command.short_help or "") + _options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _command(child, click.Context(child, info_name=name, parent=context))


def _options(command: click.Command, context: click.Context) -> str:
    lines = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        # Once, at the top, is enough for --help; arguments without words of their own are in the synopsis.
        if record is None or not record[1] or ("--help" in parameter.opts and context.parent is not None):
            continue
        lines.append(f".TP\n.B {_plain(record[0])}\n{_filled(record[1])}\n")
    return "".join(lines)


def _prose(text: str) -> str:
    """Click's help: paragraphs, those that begin with a line of \\b keep their lines."""
    blocks = []
    for block in re.split(r"\n[ ]*\n", textwrap.dedent(text).strip("\n")):
        lines = block.split("\n")
        if lines[0].strip() == "\b":
            blocks.append(".PP\n.nf\n" + "".join(f"{_plain(line)}\n" for line in lines[1:]) + ".fi\n")
        else:
            blocks.append(".PP\n" + _filled(block) + "\n")
    # The first follows a heading, which begins a paragraph already.
    return "".join(blocks).removeprefix(".PP\n")


def _epilog(text: str) -> str:
    """ "Exit codes: ..." and "Environment: ..." as sections of their own."""
    sections = []
    for block in text.split("\b\n"):
        title, _, rest = block.partition(":")
        heading = {"Exit codes": "EXIT STATUS", "Environment": "ENVIRONMENT"}.get(title.strip())
        if heading:
            items = [" ".join(item.split()) for item in rest.split(";")]
            sections.append(f".SH {heading}\n" + "\n.br\n".join(map(_filled, items)) + "\n")
    return "".join(sections)


def _filled(text: str) -> str:
    """A paragraph in short lines, which every reader of the page joins again."""
    return _plain(textwrap.fill(" ".join(text.split()), 72, break_on_hyphens=False, break_long_words=False))


def _plain(text: str) -> str:
    """Text for roff: nothing in it is a request or an escape, hyphens are those that one can type."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    text = "".join(c if ord(c) < 128 else f"\\[u{ord(c):04X}]" for c in text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


if __name__ == "__main__":
    main()
