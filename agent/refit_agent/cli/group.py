"""The root of the command line: commands by name, their modules imported when they are invoked."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from refit_agent import __version__
from refit_agent.cli import output

_NAME = "refit-agent"
_COMPLETE = "_REFIT_AGENT_COMPLETE"
#: Name -> where the command is, in the order of the help.
_COMMANDS = {
    "demo": "refit_agent.cli.demo_command:demo",
    "provision": "refit_agent.cli.provision_commands:provision",
    "path": "refit_agent.cli.provision_commands:path",
    "explain": "refit_agent.cli.inspect_commands:explain",
    "verify": "refit_agent.cli.verify_command:verify",
    "bundle": "refit_agent.cli.bundle_group:bundle",
    "gpus": "refit_agent.cli.inspect_commands:gpus",
    "cache": "refit_agent.cli.cache_commands:cache",
    "serve": "refit_agent.cli.serve_command:serve",
    "doctor": "refit_agent.cli.doctor_command:doctor",
    "settings": "refit_agent.cli.settings_command:settings",
    "status": "refit_agent.cli.status_commands:status",
    "watch": "refit_agent.cli.status_commands:watch",
    "ui": "refit_agent.cli.ui_command:ui",
    "register": "refit_agent.cli.register_commands:register",
    "unregister": "refit_agent.cli.register_commands:unregister",
    "registered": "refit_agent.cli.register_commands:registered",
    "uninstall": "refit_agent.cli.uninstall_command:uninstall",
}
_EPILOG = """\b
Exit codes: 0 done; 1 a failed check, or a fault of refit-agent; 2 usage or
a setting; 3 the bundle; 4 GPU or driver; 5 nothing in the bundle fits this
machine; 6 the engine could not be made; 7 cache or disk; 8 the service;
9 the network;
130 stopped by Ctrl+C, 143 by SIGTERM.

\b
Environment: REFIT_AGENT_HOME moves cache and state under one folder;
REFIT_AGENT_CACHE_QUOTA (such as 20G) limits the cache; REFIT_AGENT_RUNTIMES
names further folders with runtimes; REFIT_AGENT_SOCKET is the service's
socket (empty: use no service); REFIT_AGENT_LOG_LEVEL and
REFIT_AGENT_DEBUG=1 say more on standard error. 'refit-agent settings'
lists what else can be set, by files and by a policy too.
"""

Function = TypeVar("Function", bound=Callable[..., Any])


def json_option(function: Function) -> Function:
    """The option ``--json``, as ``as_json``, which every command takes."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")(function)


class LazyGroup(click.Group):
    """Imports a command's module when that command is invoked: one command must not pay for all.

    ``places`` has the commands' names, in the order of the help, with "module:attribute" of each.
    """

    def __init__(self, *args: Any, places: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self._places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        place = self._places.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    name=_NAME,
    cls=LazyGroup,
    places=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, "--version", prog_name=_NAME, message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done on standard error.")
def root(verbose: bool) -> None:
    """Puts the weights back into weight-stripped engines, keeps the finished engines in a cache, and hands
    their paths to apps. Try 'refit-agent demo' first.
    """
    from refit_agent import logs

    logs.want("info" if verbose else None)


def invoke(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name and give its exit code; errors but those of usage pass through."""
    instruction = os.environ.get(_COMPLETE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, _NAME, _COMPLETE, instruction)
    try:
        with root.make_context(_NAME, list(arguments)) as context:
            code = root.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _report(_said_better(error, arguments), as_json=output.wants_json(arguments))


def _said_better(error: click.ClickException, arguments: Sequence[str]) -> click.ClickException:
    """The error; where ``--json`` stands before the command, as other programs have it, one that says where to put it."""
    if not isinstance(error, click.NoSuchOption) or error.option_name != "--json":
        return error
    group = error.ctx
    if group is None or not isinstance(group.command, click.Group):
        return error
    known = group.command.list_commands(group)
    command = next((a for a in arguments if a in known), "COMMAND")
    return click.UsageError(f"--json comes after the command: {group.command_path} {command} --json.", group)


def _report(error: click.ClickException, *, as_json: bool) -> int:
    if not as_json:
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    hint = f"Try '{context.command_path} -h' for help." if context is not None else ""
    no_command = type(error).__name__ == "NoArgsIsHelpError"
    message = "A command is missing." if no_command else error.format_message()
    return output.report_plain("usage", message, hint, error.exit_code, as_json=True)
