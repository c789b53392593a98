"""Compile every module of a folder in place, and drop the sources. Run as a program, in a process of its own.

The files do not name their sources' times (unchecked hash), so the same sources give the same bytes. Where nothing is
shown from them, documentation strings are left out; assertions stay everywhere.
"""

from __future__ import annotations

import ast
import importlib.util
import marshal
import sys
from pathlib import Path
from types import CodeType

#: PEP 552: told by the source's hash, and the source is not looked at.
_UNCHECKED_HASH = (0b01).to_bytes(4, "little")


def compile_folder(root: Path, keep_docs: tuple[str, ...], keep_sources: tuple[str, ...]) -> None:
    """``keep_docs``: where paths begin whose documentation strings stay. ``keep_sources``: paths left as they are, with
    their code beside them.
    """
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        code = compile_source(path.read_bytes(), name, docs=name.startswith(keep_docs))
        digest = importlib.util.source_hash(path.read_bytes())
        data = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + digest + marshal.dumps(code)
        if name in keep_sources:
            cached = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
            cached.parent.mkdir(exist_ok=True)
            cached.write_bytes(data)
        else:
            path.with_suffix(".pyc").write_bytes(data)
            path.unlink()


def compile_source(source: bytes, name: str, *, docs: bool) -> CodeType:
    """The code of one module; ``name`` is what tracebacks show."""
    tree = ast.parse(source, name)
    if not docs:
        _drop_docs(tree)
    code = compile(tree, name, "exec", dont_inherit=True, optimize=0)
    # Twice: which objects are marked as shared depends on who else holds them, in the first copy.
    copy = marshal.loads(marshal.dumps(code))  # noqa: S302 - made on the same line
    assert isinstance(copy, CodeType)
    return copy


def _drop_docs(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not node.body:
            continue
        # Of a class that has none, `dataclass` makes one at every start, which takes longer than to read it.
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(d) for d in node.decorator_list):
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            # Not always `pass` in its place: `from __future__` must come first.
            alone = len(node.body) == 1 and not isinstance(node, ast.Module)
            node.body[:1] = [ast.copy_location(ast.Pass(), first)] if alone else []


if __name__ == "__main__":
    compile_folder(Path(sys.argv[1]), tuple(sys.argv[2].split(",")), tuple(sys.argv[3].split(",")))
