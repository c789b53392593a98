"""What a manifest must not contradict, beyond what its types say."""

from __future__ import annotations

from refit_agent.errors import ManifestInvalid, UnsafePath
from refit_agent.machine import version_tuple
from refit_agent.manifest.fields import Engine, FileRef, Manifest, Model
from refit_agent.manifest.places import path_fault, url_fault

#: TensorRT-LLM's have some kilobytes.
_MAX_CONFIG_BYTES = 16 << 20


def check(manifest: Manifest, path: str) -> None:
    """Raise ManifestInvalid or UnsafePath, which name ``path``, for the first rule that the manifest breaks."""
    seen: set[str] = set()
    # Of all models together: who compares a file once would believe the other's entry of it unseen.
    listed: dict[str, FileRef] = {}
    for model in manifest.models:
        if model.name in seen:
            raise ManifestInvalid(path=path, detail=f"the model name {model.name!r} stands there twice")
        seen.add(model.name)
        for file in model.files():
            fault = path_fault(file.path)
            if fault:
                raise UnsafePath(owner=path, path=file.path, detail=fault)
            other = listed.setdefault(file.path, file)
            for what in ("sha256", "size", "url"):
                if getattr(other, what) != getattr(file, what):
                    kind = {"sha256": "hashes", "size": "sizes", "url": "urls"}[what]
                    raise ManifestInvalid(path=path, detail=f"{file.path!r} is listed with two different {kind}")
            fault = "" if file.url is None else url_fault(file.url)
            if fault:
                # Without the url itself: what is wrong with it may be a password.
                raise ManifestInvalid(path=path, detail=f"the url of {file.path!r} {fault}")
        elsewhere = next((f.path for f in model.files() if f.url and f not in model.weight_files()), None)
        if elsewhere is not None:
            detail = f"{elsewhere!r} has a url, which only the ONNX file and its external data, or safetensors files, may have"
            raise ManifestInvalid(path=path, detail=detail)
        detail = _weights_fault(model)
        if detail:
            raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}]`")
        for number, golden in enumerate(model.golden):
            if not golden.outputs:
                # Nothing compared would count as nothing wrong.
                detail = "golden data must give at least one output"
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].golden[{number}]`")
        for number, engine in enumerate(model.engines):
            detail = _engine_fault(engine) or _trt_llm_fault(engine, model)
            if detail:
                raise ManifestInvalid(path=path, detail=f"{detail} - at `$.models[{model.name!r}].engines[{number}]`")
        for golden in model.golden:
            if golden.profile is not None and golden.profile not in model.profiles():
                detail = f"no engine of {model.name!r} has the profile {golden.profile!r} of its golden data"
                raise ManifestInvalid(path=path, detail=detail)


def _weights_fault(model: Model) -> str:
    """What contradicts itself in where the weights are, or ""."""
    if (model.onnx is None) == (not model.safetensors):
        return "a model needs either an ONNX file (onnx) or safetensors files (safetensors)"
    if model.onnx is None and model.external:
        return "only an ONNX file has external data (external)"
    paths = {file.path for file in model.safetensors}
    if len(paths) != len(model.safetensors):
        return "a safetensors file stands there twice"
    for engine in model.engines:
        strangers = [path for plan in engine.plans for path in plan.safetensors if path not in paths]
        if strangers:
            return f"{engine.path!r} takes weights from {strangers[0]!r}, which is not among the model's safetensors"
        if model.onnx is None and engine.runtime == "onnxruntime":
            return f"{engine.path!r} is for ONNX Runtime, which needs a model with an ONNX file"
    return ""


def _trt_llm_fault(engine: Engine, model: Model) -> str:
    """What contradicts itself in an engine of TensorRT-LLM, or ""."""
    if engine.config is None:
        return (
            "an engine of several plans (ranks) is one of TensorRT-LLM, and must have its config"
            if engine.ranks
            else ""
        )
    if model.onnx is not None:
        return "an engine of TensorRT-LLM (config) takes its weights from safetensors files"
    if engine.runtime != "tensorrt" or engine.version_compatible or engine.lean_runtime or engine.host_code:
        return "an engine of TensorRT-LLM (config) is one of TensorRT, and for its version alone"
    if engine.config.size > _MAX_CONFIG_BYTES:
        return f"a config.json has no {engine.config.size} bytes; at most {_MAX_CONFIG_BYTES} are taken"
    if engine.gpu is None and engine.hardware_compatibility == "none":
        return "an engine of TensorRT-LLM (config) must name the GPU model that it was built on (gpu)"
    if model.golden:
        return "an engine of TensorRT-LLM (config) cannot be run by itself, so its model can have no golden data"
    return ""


def _engine_fault(engine: Engine) -> str:
    """What makes the entry contradict itself, or ""."""
    for plan in engine.plans:
        if plan.compression == "none" and plan.plan_size != plan.size:
            return f"an uncompressed plan of {plan.size} bytes cannot unpack to plan_size {plan.plan_size}"
    if engine.min_runtime is not None:
        if engine.runtime != "onnxruntime":
            # Taken for a promise that it never was: which TensorRT loads a plan has rules of its own.
            return "only a graph for ONNX Runtime has an oldest version that it is for (min_runtime)"
        built, least = version_tuple(engine.built_with), version_tuple(engine.min_runtime)
        common = min(len(built), len(least))  # "1.18" may be any 1.18
        if least[:common] > built[:common]:
            return f"a graph made with ONNX Runtime {engine.built_with} cannot need {engine.min_runtime} (min_runtime)"
    if engine.runtime == "onnxruntime":
        return ""
    if not engine.os:
        return "a TensorRT plan must name the operating systems it was built for (os)"
    if engine.hardware_compatibility == "ampere-plus":
        if engine.min_compute_capability is None:
            return "an ampere-plus plan must give min_compute_capability"
    elif not engine.compute_capabilities:
        return "a TensorRT plan must name the compute capabilities it was built for (compute_capabilities)"
    if engine.refit == "identical" and engine.weights_sha256 is None:
        return "an identical-refit plan must name the weights it was built from (weights_sha256)"
    return ""
