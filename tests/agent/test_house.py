"""Rules that hold for the source as a whole, read off its syntax trees."""

from __future__ import annotations

import ast
import importlib
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import refit_agent
from bundles import MODEL, python
from refit_agent import errors
from refit_agent.authoring import errors as authoring_errors
from refit_agent.errors import RefitAgentError

ROOT = Path(refit_agent.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))
SERVICE = sorted((ROOT.parents[1] / "service" / "refit_service").rglob("*.py"))
HEAVY = ("numpy", "rich", "onnxruntime", "structlog", "tensorrt", "tensorrt_lean", "tensorrt_rtx", "cuda", "pynvml", "click", "filelock", "ctypes", "shutil", "subprocess", "platformdirs")  # fmt: skip


def _holds_errors(path: Path) -> bool:
    """Whether the file is one in which every class is an error, whose sentence says what it is for."""
    return path.name == "errors.py" or path.parent == ROOT / "errors"


def _module(path: Path) -> str:
    return ".".join(["refit_agent", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


#: Who -> what it must never import, late imports included.
FORBIDDEN = {
    "refit_agent": ["refit_service"],
    "refit_agent.manifest": ["refit_agent.cli", "refit_agent.provision", "refit_agent.cache", "refit_agent.bundle"],
    "refit_agent.cache": ["refit_agent.cli", "refit_agent.provision", "refit_agent.make", "refit_agent.refit"],
    "refit_agent.selection": ["refit_agent.cli", "refit_agent.provision", "refit_agent.cache", "refit_agent.refit"],
    "refit_agent.weight_map": ["refit_agent.cli", "refit_agent.provision", "refit_agent.cache", "refit_agent.refit"],
    "refit_agent.runtimes": ["refit_agent.cli", "refit_agent.provision", "refit_agent.cache", "refit_agent.bundle"],
    "refit_agent.refit": ["refit_agent.cli", "refit_agent.provision", "refit_agent.make", "refit_agent.bundle"],
    "refit_agent.provision": ["refit_agent.cli"],
    "refit_agent.client": ["refit_agent.cli", "refit_agent.provision", "refit_agent.make", "refit_agent.cache"],
    "refit_agent.make": ["refit_agent.cli", "refit_agent.provision"],
}


@pytest.mark.parametrize("who", FORBIDDEN)
def test_imports_point_one_way(who: str) -> None:
    """No module imports what stands above it."""
    for path in FILES:
        if _module(path) == who or _module(path).startswith(who + "."):
            for name in _imports(path):
                assert not any(name == f or name.startswith(f + ".") for f in FORBIDDEN[who]), (path, name)


def test_errors_import_nothing_of_ours() -> None:
    """Whatever fails can raise one: no module stands below them."""
    for path in (ROOT / "errors").glob("*.py"):
        ours = [n for n in _imports(path) if n.startswith("refit_agent")]
        assert all(n.startswith("refit_agent.errors") for n in ours), (path, ours)


def test_weights_import_nothing_of_ours_but_errors() -> None:
    """The reader of ONNX files could be lifted out as it is."""
    for path in (ROOT / "weights").rglob("*.py"):
        ours = [n for n in _imports(path) if n.startswith("refit_agent.")]
        assert all(n.startswith(("refit_agent.weights", "refit_agent.errors")) for n in ours), (path, ours)


def test_nothing_but_the_command_line_imports_it() -> None:
    """Click and Rich stay out of whatever a host app imports."""
    for path in FILES:
        module = _module(path)
        if not module.startswith(("refit_agent.cli", "refit_agent.console", "refit_agent.__main__")):
            tops = {name.split(".")[0] for name in _imports(path)}
            assert tops.isdisjoint({"click", "rich"}), path


def _raises() -> Iterator[tuple[Path, int, type[RefitAgentError], set[str]]]:
    both = {**vars(errors), **vars(authoring_errors)}
    kinds = {name: kind for name, kind in both.items() if isinstance(kind, type)}
    for path in [*FILES, *SERVICE]:
        if _holds_errors(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            kind = kinds.get(node.func.id)
            if kind is None or not issubclass(kind, RefitAgentError):
                continue
            assert not node.args, f"{path}:{node.lineno} gives facts without names"
            if all(k.arg for k in node.keywords):
                yield path, node.lineno, kind, {str(k.arg) for k in node.keywords}


def test_every_error_is_raised_with_all_the_facts_of_its_sentence() -> None:
    """No message can show a placeholder in angle brackets."""
    sites = list(_raises())
    assert len(sites) > 50
    for path, line, kind, given in sites:
        advice = "" if "hint" in given else kind.advice
        wanted = {n for text in (kind.sentence, advice) for _, n, _, _ in string.Formatter().parse(text) if n}
        assert wanted <= given, f"{path}:{line} {kind.__name__} lacks {wanted - given}"


def test_every_error_class_is_raised_somewhere_or_is_a_branch() -> None:
    """No class promises a situation that nothing reports."""
    raised = {kind for _, _, kind, _ in _raises()}
    for kind in errors.error_classes().values():
        exempt = kind in (errors.ServiceError, errors.WeightsAmbiguous)  # for what is not written yet
        assert kind in raised or kind.__subclasses__() or exempt, kind


def test_the_public_names_exist_and_are_sorted() -> None:
    """Whatever __all__ lists can be imported, and nothing else is promised."""
    assert refit_agent.__all__ == sorted(refit_agent.__all__)
    for name in refit_agent.__all__:
        assert getattr(refit_agent, name).__name__ == name
    assert set(refit_agent.__all__) <= set(dir(refit_agent))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        refit_agent.nonsense  # noqa: B018


@pytest.mark.parametrize("path", [*FILES, *SERVICE], ids=lambda path: "/".join(path.parts[-2:]))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Each module begins with a docstring, and each exported function and class has one."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body if not _holds_errors(path) else []:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"


def test_a_hit_in_a_fresh_process_imports_nothing_heavy(sound_bundle: Path) -> None:
    """A launch of a host app pays for none of the machinery that makes engines."""
    refit_agent.ensure_engine(sound_bundle, MODEL).close()
    command, env = python(
        """
        import sys
        import msgspec  # what it brings (on Python 3.10 subprocess, by way of uuid) is not ours
        before = set(sys.modules)
        from refit_agent import ensure_engine
        engine = ensure_engine(sys.argv[1], sys.argv[2])
        loaded = set(sys.modules) - before
        assert engine.hit
        print("\\n".join(sorted(loaded)))
        """,
        sound_bundle,
        MODEL,
    )
    for _ in range(2):  # the first one asks what machine this is, since its search path is not ours
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "refit_agent.provision" in loaded
    assert "refit_agent.make" not in loaded
    assert [name for name in loaded if name.split(".")[0] in HEAVY] == []


def test_importing_the_package_imports_nothing_of_it() -> None:
    """``import refit_agent`` costs nothing until a name is used."""
    command, env = python(
        "import sys, refit_agent; print([m for m in sys.modules if m.startswith('refit_agent.') or m in ('msgspec', 'numpy')])"
    )
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_module_can_be_imported_alone() -> None:
    """No import works only because another module was imported first."""
    names = [_module(p) for p in FILES if p.name not in ("__main__.py", "_windows.py")]
    code = "import importlib, sys\nfor n in sys.argv[1:]:\n    [sys.modules.pop(m) for m in list(sys.modules) if m.startswith('refit_agent')]\n    importlib.import_module(n)"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert importlib.import_module("refit_agent.provision")
