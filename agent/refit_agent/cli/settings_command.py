"""`refit-agent settings`: every setting, its value, and what decides on it."""

from __future__ import annotations

import click

from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.cli.settings_document import FileState, SettingState, all_files, all_settings


@click.command(short_help="Show every setting, its value, and what decides on it.")
@json_option
def settings(as_json: bool) -> int:
    """Show every setting with its value and what decides on it: the machine's policy, an environment variable, the
    user's settings file, the machine's, or the default; and which files were looked for. Exit code 2 if a
    file or a value is not what it must be.

    \b
    Example:
      refit-agent settings --json
    """
    files, states = all_files(), all_settings()
    if as_json:
        output.emit_json({"settings": [s.document() for s in states], "files": [f.document() for f in files]})
    else:
        width = max(len(s.name) for s in states)
        for state in states:
            output.emit(f"{state.name:<{width}}  {_words(state)}")
        output.emit()
        for file in files:
            output.emit(_file_words(file))
    errors = [*(s.error for s in states if s.error), *(f.error for f in files if f.error)]
    return errors[0].exit_code if errors else 0


def _words(state: SettingState) -> str:
    if state.error is not None:
        return f"WRONG: {state.error}"
    return f"{state.text}  ({state.source})"


def _file_words(file: FileState) -> str:
    if file.error is not None:
        return f"WRONG: {file.error}"
    unknown = f"; not known to this version: {', '.join(file.unknown)}" if file.unknown else ""
    return f"{file.path} ({file.kind}): {'read' if file.found else 'not there'}{unknown}"
