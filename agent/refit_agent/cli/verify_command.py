"""`refit-agent verify`: every file of a bundle compared with its manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import click

from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.cli.public_keys import pinned_keys, public_key_option
from refit_agent.digest import require_match
from refit_agent.errors import BundleError, BundleFileMissing
from refit_agent.errors.bundle import file_error
from refit_agent.hash_files import FileHash, hash_files
from refit_agent.manifest import FileRef, unknown_fields
from refit_agent.progress import Progress
from refit_agent.shown_url import shown
from refit_agent.signature import SIGNATURE_NAME

#: Files that the manifest does not name are shown up to this number; a bundle may lie in a folder with others.
_MOST_NAMED = 20


class _Verdict(NamedTuple):
    ref: FileRef
    error: BundleError | None
    #: It is not in the folder, and need not be: it can be fetched.
    elsewhere: bool = False


@click.command(short_help="Compare every file of a bundle with its manifest.")
@click.argument("bundle", type=click.Path())
@public_key_option
@json_option
def verify(bundle: str, public_key: tuple[str, ...], as_json: bool) -> int:
    """Read every file of BUNDLE whole and compare it with size and SHA-256 in the manifest, and the manifest with
    its signatures. The exit code is 3 if anything is missing or differs, or if none of the keys signed it. Files that
    the manifest does not name are listed, and are no fault.

    \b
    Example:
      refit-agent verify /opt/app/bundle
    """
    from refit_agent.authoring.overview import strangers_in

    opened = Bundle.open(bundle, pinned_keys(public_key))
    signers = _signers(opened)
    refs = _files(opened)
    with lazy_view() as view:
        verdicts = _verify_all(opened, refs, view)
    faults = [v for v in verdicts if v.error is not None]
    with open(os.path.join(opened.root, MANIFEST_NAME), "rb") as file:
        unknown = unknown_fields(file.read())
    unchecked = [m.name for m in opened.manifest.models if not m.golden]
    unnamed = list(strangers_in(opened))
    if as_json:
        files = [_document(verdict) for verdict in verdicts]
        output.emit_json({"bundle": opened.root, "ok": not faults, "files": files, "signed_by": signers, "unknown_fields": unknown, "models_without_golden": unchecked, "unnamed_files": unnamed})  # fmt: skip
    else:
        for verdict in verdicts:
            output.emit(_words(verdict))
        total = output.size_text(sum(ref.size for ref in refs))
        output.emit(
            f"{output.count_text(len(refs), 'file')}, {total}: "
            + (f"{len(faults)} with faults" if faults else "all sound")
        )
        output.emit("signed by " + ", ".join(signers) if signers else "not signed")
        for where in unknown:
            output.emit(f"warning: {where} is no field that this version knows: misspelt, or newer; it has no effect")
        for name in unchecked:
            output.emit(f"warning: model {name!r} has no golden data, so its engines are not checked for right results")
        for path in unnamed[:_MOST_NAMED]:
            output.emit(f"notice: {path} is in the folder, and the manifest does not name it: nothing will use it")
        if len(unnamed) > _MOST_NAMED:
            output.emit(f"notice: neither does it name {output.count_text(len(unnamed) - _MOST_NAMED, 'more file')}")
        if faults:
            for hint in dict.fromkeys(v.error.hint for v in faults if v.error is not None and v.error.hint):
                output.emit(f"  hint: {hint}")
    return BundleError.exit_code if faults else 0


def find_faults(bundle: Bundle) -> list[BundleError]:
    """What is wrong with the bundle's files, each read whole, with progress on a terminal."""
    with lazy_view() as view:
        return [v.error for v in _verify_all(bundle, _files(bundle), view) if v.error is not None]


def _files(bundle: Bundle) -> list[FileRef]:
    # Models may share files, and one reading is enough: size and hash of a path are the same wherever it stands, which
    # decoding has checked. Of two entries the first is kept.
    refs: dict[str, FileRef] = {}
    for model in bundle.manifest.models:
        for ref in model.files():
            refs.setdefault(ref.path, ref)
    return list(refs.values())


def _signers(bundle: Bundle) -> list[str]:
    """Whose good signatures the bundle has; raises SignatureInvalid for one that is not good."""
    if not os.path.lexists(os.path.join(bundle.root, SIGNATURE_NAME)):
        return []  # whoever has no signed bundles needs no library for them
    from refit_agent.authoring.signing import good_signatures

    return list(good_signatures(bundle.root))


def _words(verdict: _Verdict) -> str:
    ref, error, elsewhere = verdict
    if error is not None:
        return f"FAULT {ref.path}\n      [{error.code}] {error}"
    return f"away  {ref.path}, fetched from {shown(ref.url or '')}" if elsewhere else f"ok    {ref.path}"


def _document(verdict: _Verdict) -> dict[str, object]:
    ref, error, elsewhere = verdict
    document: dict[str, object] = {"path": ref.path, "size": ref.size, "sha256": ref.sha256, "ok": error is None}
    if error is not None:
        document["error"] = output.describe(error)
    if elsewhere:
        document["elsewhere"] = shown(ref.url or "")  # reports are kept and passed on; a query may be a token
    return document


def _verify_all(bundle: Bundle, refs: Sequence[FileRef], view: LazyView) -> list[_Verdict]:
    total = sum(ref.size for ref in refs)
    done = 0

    def on_bytes(count: int) -> None:
        nonlocal done
        # Raised in the hashing threads too: on Ctrl+C nobody waits for the rest of a large file.
        stop.check()
        done += count
        fraction = min(1.0, done / total) if total else 1.0
        view.show("verify", Progress(phase="hash", text="hashing", fraction=fraction, done=done, total=total))

    places = [_locate(bundle, ref) for ref in refs]
    found = iter(hash_files([place for place in places if isinstance(place, str)], on_bytes))
    verdicts: list[_Verdict] = []
    for ref, place in zip(refs, places, strict=True):
        if isinstance(place, str):
            verdicts.append(_Verdict(ref, _fault(place, ref, next(found))))
        elif isinstance(place, BundleFileMissing) and ref.url is not None:
            verdicts.append(_Verdict(ref, None, elsewhere=True))
        else:
            verdicts.append(_Verdict(ref, place))
    return verdicts


def _locate(bundle: Bundle, ref: FileRef) -> str | BundleError:
    stop.check()
    try:
        return bundle.locate(ref)
    except BundleError as error:
        return error


def _fault(path: str, ref: FileRef, found: FileHash | OSError) -> BundleError | None:
    """What is wrong with a file that was found to have this hash and size."""
    if isinstance(found, OSError):
        return file_error(path, found)
    try:
        require_match(path, ref, *found)
    except BundleError as error:
        return error
    return None
