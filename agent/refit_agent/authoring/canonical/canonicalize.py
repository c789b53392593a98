"""``canonicalize``: the steps in their order, and the files around them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from refit_agent.authoring.canonical.requirements import require_onnx
from refit_agent.authoring.errors import OutputInTheWay, OutputRefused, OutputUnwritable
from refit_agent.weights.external import unsafe_reason

if TYPE_CHECKING:
    from pathlib import Path

    from refit_agent.authoring.canonical.draft import Draft
    from refit_agent.authoring.canonical.layout import Layout
    from refit_agent.authoring.canonical.narrowing import Narrowing
    from refit_agent.authoring.canonical.report import CanonicalReport, Check

OnStep = Callable[[str, int, int], None]


def canonicalize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    order: Sequence[str] | None = None,
    data: str | None = None,
    check: bool = True,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    force: bool = False,
    on_step: OnStep = lambda _phase, _done, _total: None,
) -> CanonicalReport:
    """Write the canonical form of ``model`` to ``out`` and its data file beside it.

    Every weight becomes an initializer of the main graph under a unique name, float64 becomes float32,
    BatchNormalization with constant parameters goes into its Conv or becomes one Mul and one Add, local
    functions are inlined, and the weights lie in one file, aligned, in the order of their use. The
    same model gives the same bytes, and so does its canonical form. The source is only read; it is never loaded
    whole, whatever its size. Needs the extra ``authoring``.

    Args:
        model: an ONNX file, with or without external data.
        out: the new file; folders on the way that are missing are made.
        order: names of weights, those that come first in the data file; ``reorder`` does it later.
        data: name of the data file, without a folder; by default that of ``out`` and ".data".
        check: run both models with ONNX Runtime on the CPU and compare what they compute. A model that cannot
            be run is no error: ``report.check`` says so.
        input_shapes: shapes of inputs for the check, by name; else open dimensions are small numbers.
        seed: of the check's random inputs.
        force: replace files of these names.
        on_step: gets the phase ("read", "write", "check", "publish"), and for "write" the bytes that are done and
            their number, else 0 and 0. What it raises ends the work, with nothing written.

    Raises:
        AuthoringMissing: the package onnx is not installed.
        OnnxError: the model is damaged or hostile, or its external data is missing.
        ModelUnsupported: it cannot be brought into this form; says why.
        CanonicalDiffers: the canonical form computes something else; nothing is written.
        OutputInTheWay: one of the two files is there, and not ``force``.
        OutputRefused: ``out`` or ``data`` is one of the model's own files, or no name of a file.
        OutputUnwritable: the disk is full, or the folder cannot be written.
    """
    require_onnx()
    from refit_agent.authoring.canonical.check import compare
    from refit_agent.authoring.canonical.draft import Draft
    from refit_agent.authoring.canonical.layout import lay_out
    from refit_agent.authoring.canonical.publish import publish, workshop
    from refit_agent.authoring.canonical.report import Check
    from refit_agent.authoring.canonical.source import Source
    from refit_agent.authoring.canonical.write import write_model

    path, target = os.fspath(model), os.fspath(out)
    name = os.path.basename(target)
    data_name = _data_name(target, name, data)
    on_step("read", 0, 0)
    with Source(path) as source:
        _refuse_own_files(source.files, target, data_name)
        if not force:
            _refuse_replacing(target)
        draft = Draft(source)
        narrowing = _rewrite(draft)
        layout = lay_out(draft, order)
        if layout.places and not force:
            _refuse_replacing(os.path.join(os.path.dirname(target), data_name))
        wanted = _wanted_check(draft) if check else Check(False, "it was not asked for")
        try:
            with workshop(target) as folder:
                write_model(draft, layout, folder, name, data_name, lambda done, total: on_step("write", done, total))
                if not wanted.reason:
                    on_step("check", 0, 0)
                    exact = not (draft.counts.get("folded") or draft.counts.get("scaled") or narrowing.changed)
                    made = os.path.join(folder, name)
                    wanted = compare(path, made, input_shapes or {}, seed, wanted.tolerance, exact=exact)
                on_step("publish", 0, 0)
                publish(folder, name, data_name, target)
        except OSError as error:
            raise OutputUnwritable(path=target, detail=error.strerror or str(error)) from error
        return _report(draft, narrowing, layout, target, data_name, wanted)


def _rewrite(draft: Draft) -> Narrowing:
    """All steps up to the layout."""
    from refit_agent.authoring.canonical.batch_norm import fold_batch_norms
    from refit_agent.authoring.canonical.constants import hoist_constants
    from refit_agent.authoring.canonical.float64 import replace_float64
    from refit_agent.authoring.canonical.inlining import inline_functions
    from refit_agent.authoring.canonical.layout import drop_unused

    inline_functions(draft)
    hoist_constants(draft)
    draft.dropped += drop_unused(draft)
    fold_batch_norms(draft)
    narrowing = replace_float64(draft)
    drop_unused(draft)
    return narrowing


def _wanted_check(draft: Draft) -> Check:
    """The check to do: its tolerance, or the reason why none makes sense."""
    from refit_agent.authoring.canonical.check import draws_random_numbers, tolerance
    from refit_agent.authoring.canonical.report import Check

    if draws_random_numbers(draft.model):
        return Check(False, "the model draws random numbers, others on every run")
    return Check(False, "", tolerance(draft.model, {value.dtype for value in draft.weights.values()}))


def _data_name(target: str, name: str, data: str | None) -> str:
    wanted = f"{name}.data" if data is None else data
    fault = unsafe_reason(wanted) or ("names a folder" if "/" in wanted or wanted == "." else "")
    if not fault and os.path.normcase(wanted) == os.path.normcase(name):
        fault = "is the name of the graph"
    if fault:
        raise OutputRefused(path=target, detail=f"the name {wanted!r} of its data file {fault}")
    if not name:
        raise OutputRefused(path=target, detail="it is no name of a file")
    return wanted


def _refuse_own_files(own: Sequence[Path], target: str, data_name: str) -> None:
    """Raise OutputRefused if an output would replace a file of the model, or something that is no file."""
    for path in (target, os.path.join(os.path.dirname(target), data_name)):
        if os.path.isdir(path) or (os.path.exists(path) and not os.path.isfile(path)):
            raise OutputRefused(path=path, detail="something that is not a regular file has this name")
        for file in own:
            if os.path.exists(path) and os.path.samefile(path, file):
                raise OutputRefused(path=path, detail=f"it is the same file as {file}, which is to stay as it is")


def _refuse_replacing(path: str) -> None:
    if os.path.lexists(path):
        raise OutputInTheWay(path=path, detail="")


def _report(
    draft: Draft, narrowing: Narrowing, layout: Layout, target: str, data_name: str, checked: Check
) -> CanonicalReport:
    from refit_agent.authoring.canonical.report import CanonicalReport

    data = os.path.join(os.path.dirname(target), data_name) if layout.places else ""
    notes = list(draft.notes)
    counts = draft.counts
    if draft.source.has_training:
        notes.append("Training information was left out.")
    if counts.get("left_tensors"):
        notes.append(f"{counts['left_tensors']} tensors of strings or sparse values stay as they are.")
    if counts.get("foreign_graphs"):
        notes.append("Weights in the graphs of nodes that are not ONNX's own stay there.")
    if draft.removed_inputs:
        names = ", ".join(draft.removed_inputs)
        notes.append(f"Callers can no longer override these weights, which were inputs as well: {names}.")
    return CanonicalReport(
        model=draft.path,
        onnx=target,
        data=data,
        onnx_bytes=os.path.getsize(target),
        data_bytes=os.path.getsize(data) if data else 0,
        weights=len(draft.weights),
        external=len(layout.places),
        hoisted=counts.get("hoisted", 0),
        filled=counts.get("filled", 0),
        inlined_calls=counts.get("inlined_calls", 0),
        folded=counts.get("folded", 0),
        scaled=counts.get("scaled", 0),
        batch_norms_left=counts.get("batch_norms_left", 0),
        identities_removed=counts.get("identities_removed", 0),
        renamed={new: old for new, old in draft.renamed.items() if new in draft.weights},
        dropped=tuple(draft.dropped),
        removed_inputs=tuple(draft.removed_inputs),
        unknown_order=layout.unknown,
        float64=narrowing.report(),
        notes=tuple(notes),
        check=checked,
    )
