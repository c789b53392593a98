"""`select`: ranks what fits and keeps the reason for everything else."""

from __future__ import annotations

from collections.abc import Iterable

from refit_agent.errors import UnknownProfile, UnknownTarget
from refit_agent.machine import Gpu, Machine, version_tuple
from refit_agent.manifest import Engine, Manifest, Model
from refit_agent.selection.fit import Fit, cpu_fit, gpu_fit, os_misfit
from refit_agent.selection.records import TIERS, Candidate, Refusal, Selection
from refit_agent.selection.versions import Misfit


def select(
    manifest: Manifest, model: Model, profile: str | None, machine: Machine, target: str | None = None
) -> Selection:
    """The engines of ``model`` that can be used on ``machine``, best first, and why the others cannot.

    ``profile`` None means the model's default, else its only one, else "default". ``target`` is None
    (any), "cpu", "gpu" or "cuda" (any GPU), "cuda:<index>" or a GPU's UUID.

    The stronger GPU comes first with all its engines, the CPU last; on one GPU the order is that of
    `records.TIERS`, then the newer builder, then the manifest's order. Every engine has, for each target
    it could be meant for (TensorRT: each GPU; ONNX Runtime: the CPU), a candidate or a refusal; a refusal
    that holds for all its targets stands once, with target "". No candidate at all is no error here.

    Pure: the same arguments give the same answer, in any process.

    Raises:
        UnknownProfile: no engine was built for that profile, or none was named and none is obvious.
        UnknownTarget: the machine has no such target.
    """
    del manifest  # nothing in it outside the model bears on the choice yet
    chosen = _profile(model, profile)
    asked = _targets(machine, target)
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    for number, engine in enumerate(model.engines):
        for name, gpu, outcome in _outcomes(engine, chosen, machine, asked, target):
            if isinstance(outcome, Misfit):
                refusals.append(Refusal(number=number, engine_path=engine.path, target=name, **outcome._asdict()))
            else:
                candidates.append(
                    Candidate(
                        engine=engine,
                        number=number,
                        target=name,
                        gpu=gpu,
                        runtime=outcome.runtime,
                        tier=outcome.tier,
                        needs_check=outcome.tier == "same-sm-unpromised",
                        reason=outcome.reason,
                    )
                )
    candidates.sort(key=_rank)
    return Selection(candidates=tuple(candidates), refusals=tuple(refusals), profile=chosen)


def _outcomes(
    engine: Engine, profile: str | None, machine: Machine, asked: frozenset[str], target: str | None
) -> Iterable[tuple[str, Gpu | None, Fit | Misfit]]:
    """What becomes of the engine on each of its targets."""
    on_cpu = engine.runtime == "onnxruntime"
    everywhere = _everywhere(engine, profile, machine, asked, target)
    if everywhere is not None:
        yield "", None, everywhere
    elif on_cpu:
        yield "cpu", None, cpu_fit(engine, machine)
    else:
        for gpu in machine.gpus:
            name = _name(gpu)
            yield name, gpu, gpu_fit(engine, gpu, machine) if name in asked else _other_target(target)


def _everywhere(
    engine: Engine, profile: str | None, machine: Machine, asked: frozenset[str], target: str | None
) -> Misfit | None:
    """What refuses the engine whatever the target."""
    if engine.profile is not None and engine.profile != profile:
        return Misfit(
            "other-profile",
            f"built for profile {engine.profile!r}; asked for is {profile!r}",
            f"profile {engine.profile!r}",
        )
    misfit = os_misfit(engine, machine)
    if misfit is not None:
        return misfit
    if engine.runtime == "onnxruntime":
        if "cpu" in asked:
            return None
        return _other_target(target, "" if asked else f"no GPU can be used here: {_no_gpu(machine)}")
    if asked == {"cpu"} and target is not None:
        return _other_target(target)
    if not machine.gpus:
        why = _no_gpu(machine)
        return Misfit("no-gpu", f"it needs an NVIDIA GPU: {why}", f"an NVIDIA GPU ({why})")
    return None


def _other_target(target: str | None, fault: str = "") -> Misfit:
    """``fault`` says why nothing could be used on that target, whatever the engine; "" if something could."""
    reason, need = f"only {target} was asked for", f"another target than {target}"
    if fault:
        return Misfit("other-target", f"{reason}, and {fault}", f"{need} ({fault})")
    return Misfit("other-target", reason, need)


def _no_gpu(machine: Machine) -> str:
    return machine.no_gpu_reason or "none was found"


def _profile(model: Model, profile: str | None) -> str | None:
    known = model.profiles()
    if profile is None:
        if not known and model.default_profile is None:
            return None
        profile = model.default_profile or (known[0] if len(known) == 1 else "default")
    if profile not in known:
        raise UnknownProfile(model=model.name, profile=profile, known=", ".join(known) or "no named profile")
    return profile


def _targets(machine: Machine, target: str | None) -> frozenset[str]:
    """The names of the targets that were asked for."""
    gpus = frozenset(_name(gpu) for gpu in machine.gpus)
    if target is None:
        return gpus | {"cpu"}
    if target == "cpu":
        return frozenset(["cpu"])
    if target in ("gpu", "cuda"):
        return gpus
    for gpu in machine.gpus:
        if target == _name(gpu) or target.lower() == gpu.uuid.lower() != "":
            return frozenset([_name(gpu)])
    known = ", ".join(["cpu", *(f"{_name(gpu)} ({gpu.name}, {gpu.uuid})" for gpu in machine.gpus)])
    if not machine.gpus and machine.no_gpu_reason:
        raise UnknownTarget(target=target, known=known, hint=f"No GPU can be used here: {machine.no_gpu_reason}.")
    raise UnknownTarget(target=target, known=known)


def _name(gpu: Gpu) -> str:
    return f"cuda:{gpu.index}"


def _rank(candidate: Candidate) -> tuple[object, ...]:
    gpu = candidate.gpu
    strength: tuple[object, ...] = (1,)
    if gpu is not None:
        major, minor = (*version_tuple(gpu.compute_capability), 0, 0)[:2]
        strength = (0, -major, -minor, -gpu.memory_total, gpu.index)
    # Padded, so that 10.1 and 10.1.0.0 are equally new and the manifest's order decides.
    built = (*version_tuple(candidate.engine.built_with), 0, 0, 0, 0)[:4]
    return (*strength, TIERS.index(candidate.tier), tuple(-n for n in built), candidate.number)
