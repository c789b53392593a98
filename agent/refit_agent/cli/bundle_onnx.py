"""`refit-agent bundle canonicalize`: the form of a model in which every weight has a name of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from refit_agent.cli import output, stop
from refit_agent.cli.ensure import LazyView, lazy_view
from refit_agent.cli.group import json_option
from refit_agent.progress import Progress

if TYPE_CHECKING:
    from refit_agent.authoring.canonical import CanonicalReport

#: Phase -> words, and the fraction of the whole at which it begins and ends.
_PHASES = {
    "read": ("rewriting the graph", 0.0, 0.1),
    "write": ("writing the weights", 0.1, 0.5),
    "check": ("comparing results", 0.5, 0.5),
    "publish": ("done", 1.0, 1.0),
}
_MOST_NAMED = 10


@click.command(short_help="Bring an ONNX file into the form that is best to refit from.")
@click.argument("model", type=click.Path())
@click.argument("out", type=click.Path())
@click.option("--order", "order_file", type=click.Path(), metavar="FILE", help="A JSON list of names: these weights come first in the data file.")  # fmt: skip
@click.option("--data", "data_name", metavar="NAME", help="Name of the data file beside OUT; by default OUT.data.")
@click.option("--no-check", is_flag=True, help="Do not run both models with ONNX Runtime to compare their results.")
@click.option("--input-shape", "input_shapes", multiple=True, metavar="NAME:2x3x224x224", help="Shape of an input for the comparison; else open dimensions are small numbers. May be given several times.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace files of these names.")
@json_option
def canonicalize(
    model: str,
    out: str,
    order_file: str | None,
    data_name: str | None,
    no_check: bool,
    input_shapes: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> int:
    """Write MODEL in canonical form to OUT and its weights to OUT.data. MODEL stays as it is; ship OUT, and build
    its engines from OUT.

    In canonical form every weight is an initializer with a name of its own, so that every version of TensorRT names
    it alike: those in Constant nodes, nested graphs and local functions too. BatchNormalization goes into its Conv or
    becomes one Mul and one Add, float64 becomes float32, and the weights lie in one file in the order of their use.

    Results of both models are compared on random inputs with ONNX Runtime on the CPU; if they differ, nothing is
    written. A model that cannot be run here is written all the same, and the command says so.

    \b
    Example:
      refit-agent bundle canonicalize denoiser.onnx bundle/denoiser.onnx --input-shape image:1x3x512x512
    """
    from refit_agent.authoring.canonical import canonicalize as write_canonical

    order = None if order_file is None else _read_order(order_file)
    shapes = _read_shapes(input_shapes)
    with lazy_view() as view, stop.patiently():
        report = write_canonical(
            model,
            out,
            order=order,
            data=data_name,
            check=not no_check,
            input_shapes=shapes,
            force=force,
            on_step=_step(view),
        )
    if as_json:
        output.emit_json(report.document())
    else:
        for line in _lines(report):
            output.emit(line)
    return 0


def _step(view: LazyView) -> Callable[[str, int, int], None]:
    def step(phase: str, done: int, total: int) -> None:
        stop.check()
        text, begin, end = _PHASES[phase]
        fraction = begin + (end - begin) * (done / total if total else 0.0)
        view.show("canonicalize", Progress(phase=phase, text=text, fraction=fraction, done=done, total=total))

    return step


def _read_order(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            names = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--order") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise click.BadParameter(f"{path} is no JSON list of names.", param_hint="--order")
    return names


def _read_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    if not texts:
        return {}
    from refit_agent.authoring.build.shapes import parse_shapes
    from refit_agent.authoring.errors import BuildOptionsInvalid

    try:
        return parse_shapes(",".join(texts), "--input-shape")
    except BuildOptionsInvalid as error:
        raise click.BadParameter(str(error.facts["detail"]), param_hint="--input-shape") from error


def _lines(report: CanonicalReport) -> list[str]:
    """The report for people; what did not happen is not mentioned."""
    weights = output.count_text(report.weights, "weight")
    lines = [f"{report.onnx}: {output.size_text(report.onnx_bytes)}, {weights}"]
    if report.data:
        lines.append(f"  {report.external} of them in {report.data}: {output.size_text(report.data_bytes)}")
    for count, noun, what in (
        (report.inlined_calls, "call", "of local functions inlined"),
        (report.hoisted, "weight", "taken out of nodes and nested graphs"),
        (report.folded, "BatchNormalization", "put into the Conv before it"),
        (report.scaled, "BatchNormalization", "replaced by a Mul and an Add"),
        (report.identities_removed, "Identity", "of a weight removed"),
        (len(report.dropped), "weight", "dropped that nothing reads"),
        (len(report.renamed), "weight", "renamed"),
    ):
        if count:
            lines.append(f"  {output.count_text(count, noun)} {what}")
    if report.float64 is not None:
        lines.append(
            f"  {output.count_text(report.float64.weights, 'weight')} of float64 rounded to float32: largest relative "
            f"error {report.float64.largest_relative_error:.2g}, in {report.float64.of!r}; "
            f"{output.count_text(report.float64.underflows, 'number')} too small for float32's full precision"
        )
    if report.unknown_order:
        some = ", ".join(report.unknown_order[:_MOST_NAMED])
        more = len(report.unknown_order) - _MOST_NAMED
        lines.append(f"  --order names no weight of the data file: {some}" + (f" and {more} more" if more > 0 else ""))
    lines += [f"  note: {note}" for note in report.notes]
    check = report.check
    if check.done:
        worst = max(check.errors, key=lambda name: check.errors[name], default="")
        lines.append(
            f"  same results as {report.model}: largest error {check.errors.get(worst, 0.0):.2g}, in output {worst!r} "
            f"(up to {check.tolerance:g} is rounding)"
        )
    else:
        lines.append(f"  results not compared with {report.model}: {check.reason}")
    return lines
