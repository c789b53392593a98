"""What our source uses of a foreign module, held against what that module says it has; nothing of it is called.

A contract maps (class, name) to how the name's signature must read, a pattern behind the name, or to "property",
"settable", "member", "class" or "str" where it has none. The class "" is the module itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

Contract = dict[tuple[str, str], str]
Answers = dict[str, Any]

#: Packages are installed here once, and found again by the next run of the tests.
_CACHE = Path(__file__).parent / ".runtimes"

_ASK = """
import importlib, json, os, sys
module = importlib.import_module(sys.argv[1])
answers = {}
for name in json.loads(sys.argv[2]):
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        answers[name] = None
    elif isinstance(found, property):
        answers[name] = "settable" if found.fset else "property"
    elif name.rpartition(".")[2] in getattr(type(found), "__members__", {}):
        answers[name] = "member"
    elif isinstance(found, type):
        answers[name] = "class"
    else:
        answers[name] = found if isinstance(found, str) else found.__doc__
print(json.dumps(answers), flush=True)
os._exit(0)  # its libraries may crash in their exit handlers
"""
_KINDS = {
    "class": ("class",),
    "member": ("member",),
    "settable": ("settable",),
    "property": ("property", "settable"),
}


def uses(file: Path, types: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Class and name of what a source file of ours uses; ``types`` maps its expressions to their classes.

    getattr and hasattr with a name in writing count too.
    """
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            owner = types.get(ast.unparse(node.value))
            if owner is not None:
                yield owner, node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            owner = types.get(ast.unparse(node.args[0]))
            if owner is not None and isinstance(node.args[1], ast.Constant):
                yield owner, node.args[1].value


def ask(
    module: str, contract: Contract, env: Mapping[str, str], *, more: Iterable[str] = (), python: str = sys.executable
) -> Answers:
    """What the module says of every name of the contract and of ``more`` names, in a process of its own."""
    names = [*(".".join(filter(None, key)) for key in contract), *more]
    done = subprocess.run([python, "-c", _ASK, module, json.dumps(names)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: Answers = json.loads(done.stdout.splitlines()[-1])
    return answers


def faults_of(answers: Answers, contract: Contract, *, without: Collection[str] = ()) -> list[str]:
    """What does not read as the contract says; the names in ``without`` need not be there."""
    faults = []
    for (owner, name), wanted in contract.items():
        got = answers[".".join(filter(None, (owner, name)))]
        if got is None and name in without:
            continue
        if wanted == "str":
            fits = isinstance(got, str)
        elif wanted in _KINDS:
            fits = got in _KINDS[wanted]
        else:
            fits = got is not None and re.search(rf"\b{name}{wanted}", got) is not None
        if not fits:
            faults.append(f"{owner}.{name}: wanted {wanted}, there is {got}")
    return faults


def unavailable(reason: str) -> NoReturn:
    """Skip the test, but where everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def installed(name: str, packages: list[str], finish: Callable[[Path], object] = lambda _: None) -> Path:
    """A folder with these packages and nothing that they depend on; ``finish`` adds to it what they lack."""
    folder = _CACHE / f"{name}-cp{sys.version_info.major}{sys.version_info.minor}"
    if folder.exists():
        return folder
    fresh = _CACHE / f"new-{os.getpid()}-{name}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(fresh), *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        if done.returncode:
            shutil.rmtree(fresh, ignore_errors=True)
            unavailable(f"pip cannot install {name}: {done.stderr.strip()[-500:]}")
    except subprocess.TimeoutExpired:
        shutil.rmtree(fresh, ignore_errors=True)
        unavailable(f"pip takes too long to install {name}")
    finish(fresh)
    if folder.exists():  # another run of the tests was faster
        shutil.rmtree(fresh)
    else:
        fresh.rename(folder)
    return folder
