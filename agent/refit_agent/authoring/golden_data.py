"""Golden data of a model: inputs with the outputs that ONNX Runtime gives for them on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from refit_agent.authoring.change import BundleChange
from refit_agent.authoring.errors import AuthoringMissing, GoldenImpossible, NameTaken
from refit_agent.authoring.golden_inputs import Extent, Range, Wish, load_array, make_inputs, model_inputs, others
from refit_agent.authoring.model_in_bundle import model_files, require_sound_model
from refit_agent.authoring.places import GOLDEN, Places, file_word
from refit_agent.authoring.steps import Steps
from refit_agent.authoring.tolerances import require_tolerance
from refit_agent.bundle import Bundle
from refit_agent.digest import hash_file
from refit_agent.errors import UnknownProfile
from refit_agent.manifest import FileRef, Golden, Manifest, Model
from refit_agent.progress import ProgressCallback
from refit_agent.runtimes.base import Array
from refit_agent.runtimes.importing import import_onnxruntime


class Tensor(NamedTuple):
    """One input or output: its name, NumPy's name of its type, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class AddedGolden(NamedTuple):
    """The set as the manifest has it, what it consists of, how many sets were removed for it, and what makes it a
    weak check, in sentences."""

    golden: Golden
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    removed: int
    warnings: tuple[str, ...]


def add_golden(
    root: str | os.PathLike[str],
    model: str,
    *,
    inputs: Mapping[str, str | os.PathLike[str] | Array] | None = None,
    shapes: Mapping[str, Sequence[Extent]] | None = None,
    ranges: Mapping[str, Range] | None = None,
    seed: int = 0,
    profile: str | None = None,
    tolerance: float | None = None,
    clear: bool = False,
    progress: ProgressCallback | None = None,
) -> AddedGolden:
    """Run ``model`` of the bundle at ``root`` on the CPU and store inputs and outputs as one more set of golden data.

    Every fitting set is checked when an engine is made, so a model with several profiles wants one for each:
    ``profile`` is the one that the set fits alone. Inputs are arrays or ``.npy`` files by name; those not given
    are random, see `golden_inputs.make_inputs`. ``tolerance`` (relative L2, by default 0.01) holds for engines that
    have none of their own; `add_engine` gives every engine one. ``clear`` removes the sets that are there.

    Raises:
        AuthoringMissing: ONNX Runtime is not installed.
        SettingInvalid: inputs, shapes or ranges do not fit the model.
        GoldenImpossible: the model cannot be run, or its outputs are no check: not numbers, not finite.
        NameTaken: the model has this very set already.
        UnknownModel, NotAnOnnxModel, UnknownProfile, BundleUnwritable, BundleError
    """
    require_tolerance(tolerance)
    wish = Wish({name: _array(value) for name, value in (inputs or {}).items()}, dict(shapes or {}), dict(ranges or {}))
    with BundleChange(root) as change:
        target = change.bundle.model(model)
        _require_profile(target, profile)
        steps = Steps(progress, look=0.3, run=0.9, write=1.0)
        steps.begin("look", "reading the model", sum(ref.size for ref in model_files(target)))
        onnx = require_sound_model(change.bundle, target, steps.add)
        steps.begin("run", "running the model on the CPU")
        session = _session(onnx, model)
        described = model_inputs(session.get_inputs())
        given = make_inputs(described, wish, seed)
        outputs = _run(session, given, model)
        _require_useful(outputs, model)
        warnings = [
            *_insensitive(session, outputs, others(described, given, wish, seed)),
            *_doubts(target, outputs, tolerance),
        ]
        steps.begin("write", "writing the golden data")
        folder = change.folder()
        staged = {"in": _store(folder, "in", given), "out": _store(folder, "out", outputs)}
        removed = 0
        added: Golden | None = None

        def edit(manifest: Manifest, places: Places) -> Manifest:
            nonlocal added, removed
            now = Bundle(change.root, manifest).model(model)
            if now.weights_digest() != target.weights_digest():
                raise GoldenImpossible(model=model, detail="another command has replaced the model meanwhile")
            _require_profile(now, profile)
            kept = () if clear else now.golden
            removed = len(now.golden) - len(kept)
            home = places.free(f"{GOLDEN}/{model}/{file_word(profile) if profile else 'set'}")
            refs = {
                kind: {
                    name: FileRef(path=places.put(path, places.free(f"{home}/{kind}-{file_word(name)}.npy")), size=size, sha256=digest)
                    for name, (path, digest, size) in files.items()
                }
                for kind, files in staged.items()
            }  # fmt: skip
            added = Golden(inputs=refs["in"], outputs=refs["out"], profile=profile)
            if tolerance is not None:
                added = msgspec.structs.replace(added, tolerance=tolerance)
            for other in kept:
                if _same_inputs(other, added):
                    detail = f"this very set of golden data for {model!r}"
                    raise NameTaken(bundle=change.root, what=detail, hint="Another --seed gives other inputs.")
            return _with_golden(manifest, now, (*kept, added))

        change.commit(edit)
    assert added is not None
    return AddedGolden(added, _told(given), _told(outputs), removed, tuple(warnings))


def clear_golden(root: str | os.PathLike[str], model: str) -> int:
    """Remove all golden data of a model; gives how many sets that were. Raises as `add_golden`."""
    with BundleChange(root) as change:
        removed = 0

        def edit(manifest: Manifest, places: Places) -> Manifest:
            del places
            nonlocal removed
            now = Bundle(change.root, manifest).model(model)
            removed = len(now.golden)
            return _with_golden(manifest, now, ())

        change.commit(edit)
    return removed


def _with_golden(manifest: Manifest, model: Model, golden: tuple[Golden, ...]) -> Manifest:
    changed = msgspec.structs.replace(model, golden=golden)
    models = tuple(changed if one.name == model.name else one for one in manifest.models)
    return msgspec.structs.replace(manifest, models=models)


def _array(value: str | os.PathLike[str] | Array) -> Array:
    return value if isinstance(value, np.ndarray) else load_array(os.fspath(value))


def _require_profile(model: Model, profile: str | None) -> None:
    if profile is not None and profile not in model.profiles():
        known = ", ".join(model.profiles()) or "no engine with a named profile"
        raise UnknownProfile(model=model.name, profile=profile, known=known, hint="Add an engine for it first.")


def _same_inputs(one: Golden, other: Golden) -> bool:
    hashes = [{name: ref.sha256 for name, ref in golden.inputs.items()} for golden in (one, other)]
    return hashes[0] == hashes[1] and one.profile == other.profile


# ---------------------------------------------------------------- ONNX Runtime


def _session(onnx: str, model: str) -> Any:
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise AuthoringMissing(library="ONNX Runtime", detail=str(error)) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would print stands in the exception
    try:
        return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise GoldenImpossible(model=model, detail=f"ONNX Runtime cannot load it: {_words(error)}") from error


def _run(session: Any, inputs: Mapping[str, Array], model: str) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    try:
        results = session.run(names, dict(inputs))
    except Exception as error:  # ONNX Runtime's own, which have no common base
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        detail = f"ONNX Runtime cannot run it with the inputs {shapes}: {_words(error)}"
        hint = "Give the inputs other shapes with --shape, other values with --range, or as files with --input."
        raise GoldenImpossible(model=model, detail=detail, hint=hint) from error
    return dict(zip(names, results, strict=True))


def _require_useful(outputs: Mapping[str, Array], model: str) -> None:
    if not outputs:
        raise GoldenImpossible(model=model, detail="it has no outputs")
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise GoldenImpossible(model=model, detail=f"output {name!r} is no tensor of numbers")
        if array.size == 0:
            raise GoldenImpossible(
                model=model, detail=f"output {name!r} has the shape {list(array.shape)}, and no values"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            # Nothing could ever be compared with them: the difference of two infinities is no number.
            what = "a NaN" if np.isnan(array).any() else "an infinity"
            hint = "Give inputs that the model is meant for, with --range or --input."
            raise GoldenImpossible(model=model, detail=f"output {name!r} holds {what} for these inputs", hint=hint)


def _insensitive(session: Any, outputs: Mapping[str, Array], changed: Mapping[str, Array]) -> list[str]:
    """Outputs that other inputs do not change: whatever an engine does with its input, they agree."""
    try:
        again = session.run(list(outputs), dict(changed))
    except Exception:  # noqa: BLE001 - the model may not take them, and then nothing is known
        return []
    return [
        f"output {name!r} is the same for other inputs, so it checks little"
        for (name, array), other in zip(outputs.items(), again, strict=True)
        if np.array_equal(array, other)
    ]


def _doubts(model: Model, outputs: Mapping[str, Array], tolerance: float | None) -> list[str]:
    doubts = [
        f"output {name!r} is all zeros, so it checks little"
        for name, array in outputs.items()
        if not array.any()
    ]  # fmt: skip
    doubts += [
        f"output {name!r} holds {array.dtype}: where rounding decides between two numbers, a sound engine may fail"
        for name, array in outputs.items()
        if array.dtype.kind in "iu"
    ]
    own = [engine.path for engine in model.engines if engine.tolerance is not None]
    if tolerance is not None and own:
        doubts.append(f"the tolerance {tolerance:g} does not hold for engines that have their own: {', '.join(own)}")
    return doubts


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:600]


# ---------------------------------------------------------------- files


def _store(folder: str, kind: str, arrays: Mapping[str, Array]) -> dict[str, tuple[str, str, int]]:
    """Write the arrays; path, SHA-256 and size of each by tensor name."""
    stored = {}
    for number, (name, array) in enumerate(arrays.items()):
        path = os.path.join(folder, f"{kind}{number}.npy")
        with open(path, "xb") as file:
            np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        stored[name] = (path, *hash_file(path))
    return stored


def _told(arrays: Mapping[str, Array]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, str(array.dtype), array.shape) for name, array in arrays.items())
