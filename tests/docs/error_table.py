"""docs/errors.md, made from the error classes: `python tests/docs/error_table.py > docs/errors.md`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import refit_agent
from refit_agent.errors import RefitAgentError, error_classes

_HEAD = """# Errors

Every error that Refit Agent raises on purpose has a code that stays the same: in `error.code` of Python's exceptions, in
`code` of every `--json` document and of the service's answers, and in the logs. `facts` holds what the sentence was made
from, `hint` what to do. Names in braces below are facts. A code may be added in a later version; none changes its
meaning, so a caller treats one that it does not know by its family, which is also the exit code.

| exit code | family | who can act |
|---|---|---|
| 0 | done | |
| 1 | a failed check, or a fault of Refit Agent's own | its developers |
| 2 | usage, or a setting | the caller |
| 3 | the bundle, or the ONNX file in it | the app's developer |
| 4 | GPU or driver | the machine's owner |
| 5 | nothing in the bundle fits this machine | the app's developer; or install a runtime |
| 6 | the engine could not be made | the app's developer |
| 7 | cache or disk | the machine's owner |
| 8 | the service | try again; without the service, the work is done in the process itself |
| 9 | the network, or what is at the URL | try again |
| 130, 143 | Ctrl+C, SIGTERM | nobody; nothing is left half-done |
| 141 | nobody reads standard output any more | |

A code that names a family (`bundle-error`, say) stands for a case with no code of its own; its message says more.

| code | exit code | sentence | hint |
|---|---|---|---|
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _with_errors() -> list[str]:
    """Every module that defines a code: its classes are known only once it was imported."""
    found = []
    for module in pkgutil.walk_packages(refit_agent.__path__, "refit_agent."):
        spec = module.module_finder.find_spec(module.name, None)  # type: ignore[call-arg]
        assert spec is not None
        assert spec.origin is not None
        with open(spec.origin, encoding="utf-8") as source:
            if '\n    code = "' in source.read():
                found.append(module.name)
    return found


def page() -> str:
    """The whole page."""
    for module in _with_errors():
        importlib.import_module(module)
    classes = [kind for kind in error_classes().values() if kind.__module__.startswith("refit_agent.")]
    kinds = sorted(classes, key=lambda kind: (kind.exit_code, kind.code))
    rows = [
        f"| `{kind.code}` | {kind.exit_code} | {_cell(kind.sentence)} | {_cell(kind.advice)} |"
        for kind in kinds
        if kind is not RefitAgentError
    ]
    return _HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
