"""Run by the folder's own Python: import all there is, and ask every command for its help.

Arguments: the folders with packages. Exit code 0: nothing is missing. Needs nothing but the standard library as it is in
the folder.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
import warnings
from collections.abc import Iterator

#: Not in the folder: making bundles, and weights at s3 and the like, need more than it has.
LEFT_OUT = frozenset({"onnx", "google", "cryptography", "fsspec"})

#: Modules that cannot be imported here and are not meant to be: what they import is left out, and nobody asks for them.
NOT_ASKED_FOR: dict[str, str] = {}


def modules(folder: str) -> Iterator[str]:
    """The dotted names of all modules below a folder, packages before what is in them."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if "." not in f and f != "__pycache__")
        package = os.path.relpath(path, folder).replace(os.sep, ".")
        if "-" in package:
            continue
        prefix = "" if package == "." else package + "."
        for file in sorted(files):
            stem, _, ending = file.partition(".")
            if ending.endswith(("pyc", "so", "py")) and not file.startswith("lib"):
                if stem == "__init__":
                    yield package
                elif stem != "__main__" and prefix + stem != "refit_agent_start":
                    yield prefix + stem


def import_all(folders: list[str]) -> list[str]:
    """Import every module; gives what went wrong."""
    problems = []
    for name in dict.fromkeys(n for folder in folders for n in modules(folder)):
        try:
            importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").partition(".")[0] in LEFT_OUT and name.startswith("refit_agent.authoring"):
                continue
            problems.append(f"{name}: {first_line(error)}")
        except Exception as error:  # noqa: BLE001 - third parties raise anything
            problems.append(f"{name}: {type(error).__name__}: {first_line(error)}")
    return [p for p in problems if p.partition(":")[0] not in NOT_ASKED_FOR]


def first_line(error: Exception) -> str:
    """NumPy's are a page long."""
    return " ".join(str(error).split())[:200]


def check_commands() -> list[str]:
    """The help of every command, as click makes it; gives what went wrong."""
    import click

    from refit_agent.cli.group import root

    problems = []

    def visit(command: click.Command, context: click.Context) -> None:
        if not command.get_help(context).startswith("Usage:") or not command.help:
            problems.append(f"{context.command_path} has no help")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                try:
                    child = command.get_command(context, name)
                except ImportError as error:
                    problems.append(f"{context.command_path} {name}: {error}")
                    continue
                assert child is not None
                visit(child, click.Context(child, parent=context, info_name=name))

    visit(root, click.Context(root, info_name="refit-agent"))
    return problems


def main() -> int:
    """Check; gives the exit code."""
    warnings.simplefilter("ignore")
    sys.path += sys.argv[1:]
    problems = import_all(sys.argv[1:]) + check_commands()
    for problem in problems:
        print(problem)
    if os.path.relpath(ast.__file__, sys.prefix).startswith(".."):
        print(f"the standard library is not that of the folder: {ast.__file__}")
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
