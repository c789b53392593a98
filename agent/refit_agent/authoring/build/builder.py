"""Drive a TensorRT builder: parse the ONNX file, configure, build. In the worker only, since it may crash.

One code for the modules tensorrt and tensorrt_rtx. With a builder it was run with 8.6.0 alone; for 10 and
11 the calls were compared with the signatures in the real Python modules of 10.16 and 11.4, and for
TensorRT-RTX with its documentation: with these no engine was ever built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from refit_agent.authoring.build.messages import BuildJob
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.shapes import Profile
from refit_agent.authoring.errors import BuilderLacks, BuildFailed, BuildOptionsInvalid
from refit_agent.errors import DeviceFailed
from refit_agent.runtimes.tensorrt_log import MessageSink

_REFIT_FLAGS = {"any": "REFIT", "identical": "REFIT_IDENTICAL", "individual": "REFIT_INDIVIDUAL"}
_HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_POOLS = {"workspace": "WORKSPACE", "tactic-shared-memory": "TACTIC_SHARED_MEMORY"}
_MOST_ERRORS = 5


def build_plan(module: Any, logger: Any, sink: MessageSink, job: BuildJob, phase: Callable[[str], None]) -> Any:
    """The plan that ``job`` asks for, as TensorRT's own memory (IHostMemory).

    ``phase`` is told when parsing and building begin.

    Raises:
        BuildFailed: the parser or the builder refused; in the words of TensorRT's log.
        BuildOptionsInvalid: shapes that are not those of the model.
        BuilderLacks: this version has no such flag.
        DeviceFailed: no builder could be made on this GPU.
    """
    phase("parse")
    if hasattr(module, "init_libnvinfer_plugins"):
        module.init_libnvinfer_plugins(logger, "")
    try:
        builder = module.Builder(logger)
    except TypeError as error:  # pybind11's word for a null pointer: a driver too old for this CUDA, mostly
        raise DeviceFailed(detail=f"{job.module} {job.module_version} could not start: {sink.errors()}") from error
    network = builder.create_network(_network_flags(module, job))
    # It owns the weights until the plan is built.
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        raise build_failed(job, "; ".join(_parser_errors(parser)) or sink.errors())
    _mark_refittable(network, job)
    config = builder.create_builder_config()
    _configure(module, config, job)
    _add_profile(builder, network, config, job.profile)
    cache = _read_timing_cache(config, job.options.timing_cache)
    phase("build")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise build_failed(job, sink.errors())
    if cache is not None:
        _write_timing_cache(config, job.options.timing_cache)
    return plan


def build_failed(job: BuildJob, detail: str) -> BuildFailed:
    """The error that says so, in the words ``detail``."""
    return BuildFailed(builder=f"{job.module} {job.module_version}", path=job.model, detail=detail.rstrip("."))


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(min(parser.num_errors, _MOST_ERRORS)):
        error = parser.get_error(index)
        yield f"node {error.node()}: {error.desc()}"


def _member(job: BuildJob, owner: Any, name: str) -> Any:
    """A member of one of TensorRT's enumerations; BuilderLacks if this version has none of that name."""
    member = getattr(owner, name, None)
    if member is None:
        detail = f"it has no {owner.__name__}.{name}"
        raise BuilderLacks(builder=job.kind, version=job.module_version, detail=detail)
    return member


# ---------------------------------------------------------------- the network


def _network_flags(module: Any, job: BuildJob) -> int:
    """From 10 on a batch is always explicit, and from 11 on there is no flag for it; 11 and RTX are always typed."""
    flags = module.NetworkDefinitionCreationFlag
    value = 0
    if hasattr(flags, "EXPLICIT_BATCH"):
        value |= 1 << int(flags.EXPLICIT_BATCH)
    if job.options.strongly_typed:
        value |= 1 << int(_member(job, flags, "STRONGLY_TYPED"))
    return value


def _mark_refittable(network: Any, job: BuildJob) -> None:
    """With REFIT_INDIVIDUAL nothing is refittable but what is marked here."""
    for wish in job.refittable:
        marked = [
            name
            for name in wish.names
            if network.mark_weights_refittable(name) and network.are_weights_marked_refittable(name)
        ]
        if not marked:
            raise build_failed(
                job, f"none of its weights that --refittable {wish.pattern!r} means can be made refittable"
            )


# ---------------------------------------------------------------- the configuration


def _configure(module: Any, config: Any, job: BuildJob) -> None:
    options = job.options
    for name in _flags(options):
        config.set_flag(_member(job, module.BuilderFlag, name))
    if not options.tf32:
        config.clear_flag(_member(job, module.BuilderFlag, "TF32"))
    if options.hardware_compatibility != "none":
        level = _member(job, module.HardwareCompatibilityLevel, _HARDWARE[options.hardware_compatibility])
        config.hardware_compatibility_level = level
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    for pool, size in options.memory_pools.items():
        config.set_memory_pool_limit(_member(job, module.MemoryPoolType, _POOLS[pool]), size)


def _flags(options: BuildOptions) -> Iterator[str]:
    """Names of the builder flags to set."""
    if options.refit is not None:
        yield _REFIT_FLAGS[options.refit]
    if options.strip == "plan":
        yield "STRIP_PLAN"
    if options.version_compatible:
        yield "VERSION_COMPATIBLE"
    if options.exclude_lean_runtime:
        yield "EXCLUDE_LEAN_RUNTIME"
    for precision in options.precisions:
        yield precision.upper()


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:
    tensors = {tensor.name: tensor for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    unknown = sorted(profile.shapes.keys() - tensors.keys())
    if unknown:
        detail = f"the model has no input {', '.join(map(repr, unknown))}; it has: {', '.join(tensors)}"
        raise BuildOptionsInvalid(detail=detail)
    dynamic = {name: tensor for name, tensor in tensors.items() if tensor.is_shape_tensor or -1 in tuple(tensor.shape)}
    missing = [f"{name} ({_shape_text(tensor)})" for name, tensor in dynamic.items() if name not in profile.shapes]
    if missing:
        # A batch of one, which trtexec would make of it, is hardly ever meant.
        detail = f"these inputs have dimensions that are not fixed, so --opt-shapes must give their shapes: {', '.join(missing)}"
        raise BuildOptionsInvalid(detail=detail)
    added = builder.create_optimization_profile()
    for name, shapes in profile.shapes.items():
        try:
            if tensors[name].is_shape_tensor:
                added.set_shape_input(name, list(shapes.min), list(shapes.opt), list(shapes.max))
            else:
                _require_fixed(tuple(tensors[name].shape), shapes.min, shapes.opt, shapes.max)
                added.set_shape(name, shapes.min, shapes.opt, shapes.max)
        except ValueError as error:
            raise BuildOptionsInvalid(detail=f"the shapes of {name!r} are not those of the model: {error}") from error
    if dynamic and config.add_optimization_profile(added) < 0:
        raise BuildOptionsInvalid(detail="TensorRT takes these shapes for no optimization profile")


def _require_fixed(of_model: tuple[int, ...], *shapes: tuple[int, ...]) -> None:
    """Compare with the dimensions that the model fixes, which TensorRT does at the build, in words of its own."""
    for shape in shapes:
        if len(shape) != len(of_model) or any(m not in (-1, d) for m, d in zip(of_model, shape, strict=True)):
            wanted = "x".join("?" if d == -1 else str(d) for d in of_model)
            raise ValueError(f"{'x'.join(map(str, shape))} is not {wanted}")


def _shape_text(tensor: Any) -> str:
    if tensor.is_shape_tensor:
        return "a shape tensor"
    return "x".join("?" if d == -1 else str(d) for d in tuple(tensor.shape))


# ---------------------------------------------------------------- measured times


def _read_timing_cache(config: Any, path: str) -> Any:
    """The timing cache in use: the one in the file, an empty one where there is no file; None without a path."""
    if not path:
        return None
    data = b""
    if os.path.exists(path):
        with open(path, "rb") as file:
            data = file.read()
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildOptionsInvalid(
            detail=f"TensorRT does not take the timing cache {path}: it is damaged, or of another GPU or version"
        )
    return cache


def _write_timing_cache(config: Any, path: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(memoryview(config.get_timing_cache().serialize()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
