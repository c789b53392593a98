"""What the commands that make bundles say alike: engines in words, progress, and how far the bundle is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from refit_agent.bundle import Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.ensure import lazy_view
from refit_agent.manifest import Engine, unfinished
from refit_agent.signature import SIGNATURE_NAME

if TYPE_CHECKING:
    from refit_agent.progress import Progress, ProgressCallback

_RUNTIMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}


@contextlib.contextmanager
def stoppable(label: str) -> Iterator[ProgressCallback]:
    """Shows the progress of a change under ``label``; a signal ends the work at its next step, with nothing left over."""
    with lazy_view() as view, stop.patiently():

        def on_progress(progress: Progress) -> None:
            stop.check()
            view.show(label, progress)

        yield on_progress


def runtime_text(engine: Engine) -> str:
    """Such as "TensorRT 10.16.1.11", or "ONNX Runtime 1.18+"."""
    if engine.runtime == "onnxruntime":
        least = engine.min_runtime or ".".join(engine.built_with.split(".")[:2])
        return f"{_RUNTIMES[engine.runtime]} {least}+"
    return f"{_RUNTIMES[engine.runtime]} {engine.built_with}"


def short_path(engine: Engine, model: str) -> str:
    """Its path without the folder that all engines of the model share by default."""
    return engine.path.removeprefix(f"engines/{model}/")


def place_text(engine: Engine) -> str:
    """The machines that it is for, such as "9.0, linux"."""
    if engine.runtime == "onnxruntime":
        return "CPU"
    if engine.hardware_compatibility == "ampere-plus":
        text = f"{engine.min_compute_capability} and newer"
    else:
        text = " ".join(engine.compute_capabilities)
    if engine.hardware_compatibility == "same-compute-capability":
        text += " (every GPU)"
    return text + (f", {' '.join(engine.os)}" if engine.os else "")


def share_text(saved: float) -> str:
    """A share in percent, with more digits near the whole: "68 %", "98.7 %", "99.94 %", "> 99.99 %"."""
    percent = 100 * saved
    if 99.99 < percent < 100:
        return "> 99.99 %"
    digits = 0 if percent < 90 else 1 if percent < 99 else 2
    return f"{percent:.{digits}f} %"


def was_signed(bundle: str) -> bool:
    """Whether there is a signature, which a change of the bundle will end."""
    root = os.path.dirname(bundle) if os.path.isfile(bundle) else bundle
    return os.path.lexists(os.path.join(root, SIGNATURE_NAME))


def emit_warnings(warnings: Sequence[str]) -> None:
    """Each as a line of its own."""
    for warning in warnings:
        output.emit(f"warning: {warning}")


def emit_state(bundle: str, *, signed_before: bool) -> None:
    """What a bundle still lacks after a change."""
    if signed_before:
        output.emit("its signature was removed, since the manifest is another now: sign it again")
    opened = Bundle.open(bundle, draft=True)
    missing = unfinished(opened.manifest)
    if missing:
        output.emit(f"the bundle is not finished, and no app will take it: {missing}")
