"""`refit-agent bundle strip-onnx|restore-onnx`: a model without its weights, and the way back."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.progress import Progress

if TYPE_CHECKING:
    from refit_agent.authoring.stripping import StrippedModel
    from refit_agent.authoring.stripping.survey import Tensor

#: What stays although it is as large as this is named: it leaves the house with the copy.
_LARGE_BYTES = 1024
_MOST_NAMED = 10


def _step(view: LazyView, label: str) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        stop.check()
        fraction = done / total if total else 1.0
        view.show(label, Progress(phase="copy", text="copying", fraction=fraction, done=done, total=total))

    return step


@click.command(short_help="Copy an ONNX file without its weights.")
@click.argument("model", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--zeros", is_flag=True, help="Write an ordinary model whose weights are zero, in place of a small one.")
@click.option("--keep-below", type=click.IntRange(min=0), default=64, show_default=True, metavar="BYTES", help="Weights smaller than this stay.")  # fmt: skip
@click.option("--strip-integers", is_flag=True, help="Integers and booleans of 1 KiB and more lose their values too; an engine built from such a copy may have kept the zeros.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files of these names.")
@json_option
def strip_onnx(
    model: str, out: str, zeros: bool, keep_below: int, strip_integers: bool, force: bool, as_json: bool
) -> int:
    """Write a copy of MODEL to OUT without the values of its weights, to send it to a build service; restore-onnx
    puts them back. MODEL stays as it is, and its external data too.

    The copy is one small file. In it, weights are external data in OUT.zeros, which is not written: make it as a
    file of as many zero bytes as the command says, and any tool loads the copy. With --zeros the copy is an ordinary
    model of the same size (compress it to send it) in which every weight stands where it stood. Use it to build with
    TensorRT before 10, whose names for weights depend on that.

    Scales and zero points of quantization, tensors in attributes of operators, integers and strings stay, as builders
    bake them into engines; the large ones are listed.

    \b
    Example:
      refit-agent bundle strip-onnx denoiser.onnx denoiser.stripped.onnx
    """
    from refit_agent.authoring import stripping

    with lazy_view() as view, stop.patiently():
        made = stripping.strip_onnx(
            model,
            out,
            zeros=zeros,
            keep_below=keep_below,
            integers=strip_integers,
            force=force,
            on_progress=_step(view, "strip"),
        )
    kept = [tensor for tensor in made.kept if tensor.nbytes >= _LARGE_BYTES]
    if as_json:
        output.emit_json(_document(made, kept))
        return 0
    stripped_bytes = sum(tensor.nbytes for tensor in made.stripped)
    output.emit(
        f"{made.path}: {output.size_text(made.size)}, without the values of "
        f"{output.count_text(len(made.stripped), 'tensor')} ({output.size_text(stripped_bytes)})"
    )
    if made.zeros_path is not None:
        output.emit(f"  its external data: {made.zeros_path}, {output.size_text(made.zeros_size)}")
    elif made.zeros_location:
        where = os.path.join(os.path.dirname(made.path), made.zeros_location)
        output.emit(f"  tools load it beside zeros: truncate -s {made.zeros_size} {where}")
    for tensor in kept[:_MOST_NAMED]:
        output.emit(
            f"  keeps its values: {tensor.place.label}, {tensor.dtype}, {output.size_text(tensor.nbytes)} ({tensor.stays})"
        )
    if len(kept) > _MOST_NAMED:
        output.emit(f"  keep their values: {len(kept) - _MOST_NAMED} more of {_LARGE_BYTES} bytes and above")
    return 0


def _document(made: StrippedModel, kept: list[Tensor]) -> dict[str, object]:
    large = [
        {"name": t.place.label, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "reason": t.stays}
        for t in kept
    ]
    zeros = {"location": made.zeros_location, "size": made.zeros_size, "written": made.zeros_path is not None}
    return {
        "path": made.path,
        "size": made.size,
        "stripped": {"tensors": len(made.stripped), "bytes": sum(t.nbytes for t in made.stripped)},
        "kept": {"tensors": len(made.kept), "bytes": sum(t.nbytes for t in made.kept), "large": large},
        "zeros": zeros if made.zeros_location else None,
    }


@click.command(short_help="Put the weights back into a stripped ONNX file.")
@click.argument("stripped", type=click.Path())
@click.argument("model", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--force", is_flag=True, help="Replace OUT; other external data than MODEL's are never replaced.")
@json_option
def restore_onnx(stripped: str, model: str, out: str, force: bool, as_json: bool) -> int:
    """Write STRIPPED with the weights of MODEL, which it was made from, to OUT. If nobody has changed STRIPPED, OUT
    is MODEL bit for bit, which is checked. What a tool changed in STRIPPED stays, and every weight comes back by name.

    External data are copied to where MODEL has them, seen from the folder of OUT.

    \b
    Example:
      refit-agent bundle restore-onnx denoiser.stripped.onnx denoiser.onnx restored/denoiser.onnx
    """
    from refit_agent.authoring import stripping

    with lazy_view() as view, stop.patiently():
        made = stripping.restore_onnx(stripped, model, out, force=force, on_progress=_step(view, "restore"))
    if as_json:
        output.emit_json(
            {
                "path": made.path,
                "sha256": made.sha256,
                "identical": made.identical,
                "restored": made.restored,
                "missing": list(made.missing),
                "external": list(made.external),
            }
        )
        return 0
    how = "the original, bit for bit" if made.identical else "as a tool has changed it"
    output.emit(f"{made.path}: {how}, with the values of {output.count_text(made.restored, 'tensor')}")
    for location in made.external:
        output.emit(f"  external data: {os.path.join(os.path.dirname(made.path), location)}")
    if made.missing:
        some = ", ".join(made.missing[:_MOST_NAMED])
        more = f" and {len(made.missing) - _MOST_NAMED} more" if len(made.missing) > _MOST_NAMED else ""
        output.emit(f"  the stripped copy has these no more: {some}{more}")
    return 0
