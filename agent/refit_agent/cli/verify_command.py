"""`refit-agent verify`: every file of a bundle compared with its manifest."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import click

from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.digest import verify_file
from refit_agent.errors import BundleError
from refit_agent.manifest import FileRef, unknown_fields
from refit_agent.progress import Progress

#: More threads than this only make a disk seek.
_MOST_THREADS = 8


class _Verdict(NamedTuple):
    ref: FileRef
    error: BundleError | None


@click.command(short_help="Compare every file of a bundle with its manifest.")
@click.argument("bundle", type=click.Path())
@json_option
def verify(bundle: str, as_json: bool) -> int:
    """Read every file of BUNDLE whole and compare it with size and SHA-256 in the manifest. The exit code is 3
    if anything is missing or differs.

    \b
    Example:
      refit-agent verify /opt/app/bundle
    """
    opened = Bundle.open(bundle)
    # Models may share files, and one reading is enough.
    refs = list({ref.path: ref for model in opened.manifest.models for ref in model.files()}.values())
    with lazy_view() as view:
        verdicts = _verify_all(opened, refs, view)
    faults = [v for v in verdicts if v.error is not None]
    with open(os.path.join(opened.root, MANIFEST_NAME), "rb") as file:
        unknown = unknown_fields(file.read())
    unchecked = [m.name for m in opened.manifest.models if not m.golden]
    if as_json:
        files = [_document(verdict) for verdict in verdicts]
        output.emit_json({"bundle": opened.root, "ok": not faults, "files": files, "unknown_fields": unknown, "models_without_golden": unchecked})  # fmt: skip
    else:
        for verdict in verdicts:
            words = (
                f"ok    {verdict.ref.path}"
                if verdict.error is None
                else f"FAULT {verdict.ref.path}\n      [{verdict.error.code}] {verdict.error}"
            )
            output.emit(words)
        total = output.size_text(sum(ref.size for ref in refs))
        output.emit(
            f"{output.count_text(len(refs), 'file')}, {total}: "
            + (f"{len(faults)} with faults" if faults else "all sound")
        )
        for where in unknown:
            output.emit(f"warning: {where} is no field that this version knows: misspelt, or newer; it has no effect")
        for name in unchecked:
            output.emit(f"warning: model {name!r} has no golden data, so its engines are not checked for right results")
        if faults:
            output.emit(f"  hint: {BundleError.advice}")
    return BundleError.exit_code if faults else 0


def _document(verdict: _Verdict) -> dict[str, object]:
    ref, error = verdict
    document: dict[str, object] = {"path": ref.path, "size": ref.size, "sha256": ref.sha256, "ok": error is None}
    if error is not None:
        document["error"] = output.describe(error)
    return document


def _verify_all(bundle: Bundle, refs: Sequence[FileRef], view: LazyView) -> list[_Verdict]:
    total = sum(ref.size for ref in refs)
    lock = threading.Lock()
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        # Raised in the hashing threads too: on Ctrl+C nobody waits for the rest of a large file.
        stop.check()
        with lock:
            done += count
            fraction = min(1.0, done / total) if total else 1.0
            view.show("verify", Progress(phase="hash", text="hashing", fraction=fraction, done=done, total=total))

    def check(ref: FileRef) -> _Verdict:
        stop.check()
        try:
            verify_file(bundle.locate(ref), ref, on_bytes)
        except BundleError as error:
            return _Verdict(ref, error)
        return _Verdict(ref, None)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(check, refs))
