"""`refit-agent bundle golden`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.bundle_words import emit_state, emit_warnings, stoppable, was_signed
from refit_agent.cli.group import json_option

if TYPE_CHECKING:
    from refit_agent.authoring.golden_data import Tensor

_DIMENSION = re.compile(r"(\d{1,10})(?:\.\.(\d{1,10}))?")


@click.command(short_help="Make golden data: inputs with the right outputs.")
@click.argument("bundle", type=click.Path())
@click.argument("model")
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE", help="This input from a .npy file; the others are random.")  # fmt: skip
@click.option("--shape", "shapes", multiple=True, metavar="NAME:2x3x64x64", help="The shape of a random input; a dimension as 1..8 is picked at random. Without it, dynamic dimensions are 1.")  # fmt: skip
@click.option("--range", "ranges", multiple=True, metavar="NAME=LOW:HIGH", help="The values of a random input. Without it: normally distributed floats, integers 0 and 1.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, (1 << 32) - 1), default=0, show_default=True, help="The same seed gives the same inputs.")  # fmt: skip
@click.option("--profile", metavar="NAME", help="The one optimization profile that the data fits; without it, all.")
@click.option("--tolerance", type=float, metavar="NUMBER", help="Allowed relative L2 error, for engines without a tolerance of their own.")  # fmt: skip
@click.option("--clear", is_flag=True, help="Remove the model's golden data first.")
@click.option("--clear-only", is_flag=True, help="Remove the model's golden data and make none.")
@json_option
def golden(
    bundle: str,
    model: str,
    inputs: Sequence[str],
    shapes: Sequence[str],
    ranges: Sequence[str],
    seed: int,
    profile: str | None,
    tolerance: float | None,
    clear: bool,
    clear_only: bool,
    as_json: bool,
) -> int:
    """Run MODEL of BUNDLE with ONNX Runtime on the CPU, and store the inputs and outputs in the bundle. On the user's
    machine every new engine is run with these inputs, and must give these outputs, before anything uses it.

    Every call adds a set, and all that fit an engine's profile are checked. Token ids and the like want a --range or
    a file: nobody can tell from a model what its integers mean.

    \b
    Example:
      refit-agent bundle golden ./bundle denoiser --shape image:1x3x256x256
      refit-agent bundle golden ./bundle encoder --shape ids:2x64 --range ids=0:30521
    """
    from refit_agent import authoring

    signed = was_signed(bundle)
    if clear_only:
        if inputs or shapes or ranges or profile or tolerance or clear:
            raise click.UsageError("--clear-only goes with no other option: it makes nothing.")
        removed = authoring.clear_golden(bundle, model)
        if as_json:
            output.emit_json({"bundle": os.path.abspath(bundle), "model": model, "removed": removed})
        else:
            output.emit(f"removed {output.count_text(removed, 'set')} of golden data")
            emit_state(bundle, signed_before=signed)
        return 0
    files = _pairs(inputs, "--input")
    wanted_shapes = {name: _shape(name, text) for name, text in _shapes(shapes).items()}
    wanted_ranges = {name: _range(name, text) for name, text in _pairs(ranges, "--range").items()}
    with stoppable(model) as progress:
        added = authoring.add_golden(
            bundle,
            model,
            inputs=files,
            shapes=wanted_shapes,
            ranges=wanted_ranges,
            seed=seed,
            profile=profile,
            tolerance=tolerance,
            clear=clear,
            progress=progress,
        )
    if as_json:
        tensors = {
            kind: [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in found]
            for kind, found in (("inputs", added.inputs), ("outputs", added.outputs))
        }
        output.emit_json({"bundle": os.path.abspath(bundle), "model": model, "golden": msgspec.to_builtins(added.golden), **tensors, "removed": added.removed, "warnings": list(added.warnings)})  # fmt: skip
        return 0
    if added.removed:
        output.emit(f"removed {output.count_text(added.removed, 'older set')} of golden data")
    for word, tensors_, refs in (
        ("input", added.inputs, added.golden.inputs),
        ("output", added.outputs, added.golden.outputs),
    ):
        for tensor in tensors_:
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            origin = "" if word == "output" else _origin(tensor, files, wanted_ranges, seed)
            output.emit(f"{word} {tensor.name}: {tensor.dtype} {shape}{origin}")
            output.emit(f"  {refs[tensor.name].path}, {output.size_text(refs[tensor.name].size)}")
    emit_warnings(added.warnings)
    emit_state(bundle, signed_before=signed)
    return 0


def _origin(tensor: Tensor, files: Mapping[str, str], ranges: Mapping[str, object], seed: int) -> str:
    if tensor.name in files:
        return ", from a file"
    if "int" in tensor.dtype and tensor.name not in ranges:
        return f", random 0 and 1 (say with --range what else it may hold), seed {seed}"
    return f", random, seed {seed}"


def _pairs(values: Sequence[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name or not text:
            raise click.UsageError(f"{option} takes NAME=VALUE, and {value!r} is not of that form.")
        if name in found:
            raise click.UsageError(f"{option} names the input {name!r} twice.")
        found[name] = text
    return found


def _shapes(values: Sequence[str]) -> dict[str, str]:
    from refit_agent.authoring.build.shapes import split_shapes
    from refit_agent.authoring.errors import BuildOptionsInvalid

    found: dict[str, str] = {}
    for value in values:
        try:
            shapes = split_shapes(value, "--shape")
        except BuildOptionsInvalid as error:
            raise click.UsageError(f"{error.facts['detail']}.") from error
        twice = sorted(shapes.keys() & found.keys())
        if twice:
            raise click.UsageError(f"--shape names the input {twice[0]!r} twice.")
        found |= shapes
    return found


def _shape(name: str, text: str) -> list[int | tuple[int, int]]:
    if text in ("", "scalar"):
        return []
    shape: list[int | tuple[int, int]] = []
    for part in text.split("x"):
        match = _DIMENSION.fullmatch(part)
        if match is None:
            raise click.UsageError(f"--shape {name}:{text}: {part!r} is no dimension such as 64 or 1..8.")
        low, high = match.groups()
        shape.append(int(low) if high is None else (int(low), int(high)))
    return shape


def _range(name: str, text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return _number(low), _number(high)
    except (ValueError, OverflowError) as error:
        raise click.UsageError(f"--range {name}={text} is not LOW:HIGH, two numbers.") from error


def _number(text: str) -> float:
    """An int where it is one: a float does not hold every 64-bit integer."""
    return int(text) if re.fullmatch(r"[+-]?\d{1,20}", text.strip()) else float(text)
