"""The options of `refit-agent bundle add-engine` that say what a plan does not tell, and the questions for the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from refit_agent.errors import SettingInvalid

if TYPE_CHECKING:
    from refit_agent.authoring import EngineFacts, KnownPlan

Function = TypeVar("Function", bound=Callable[..., Any])
_MOST_MAP_BYTES = 64 << 20
_REFITS = ("identical", "any", "individual")

_OPTIONS = [
    click.option("--record", type=click.Path(), metavar="FILE", help="The record of its build; by default the one beside PLAN."),
    click.option("--os", multiple=True, type=click.Choice(["linux", "windows"]), help="What it was built for; may be given twice."),
    click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="X.Y", help="Of the GPU that it was built for, as 8.9; may be given several times."),
    click.option("--ampere-plus", "min_compute_capability", metavar="X.Y", help="Built for all GPUs from this compute capability on (hardware compatibility ampere+)."),
    click.option("--same-compute-capability", is_flag=True, help="Built for all GPUs of its compute capability (hardware compatibility)."),
    click.option("--gpu", metavar="NAME", help="The GPU model that it was built on, as nvidia-smi names it: there it is preferred."),
    click.option("--min-driver", metavar="VERSION", help="The oldest driver that it works with."),
    click.option("--version-compatible/--exact-version", default=None, help="Whether newer TensorRT versions may load it, the lean runtime too."),
    click.option("--profile", metavar="NAME", help="Its optimization profile; without it, it fits every profile."),
    click.option("--precision", metavar="NAME", help="What it computes in: fp32, tf32, fp16, bf16, int8, fp8, int4, fp4, or several with +."),
    click.option("--strip", type=click.Choice(["plan", "zeros", "none"]), help="plan: built with STRIP_PLAN; zeros: built from zeroed weights; none: it holds its weights."),
    click.option("--refit", type=click.Choice(_REFITS), help="identical: built with REFIT_IDENTICAL; any: REFIT; individual: REFIT_INDIVIDUAL."),
    click.option("--weight-map", type=click.Path(), metavar="FILE", help="JSON with the sources of weights that the naming rules do not find."),
    click.option("--tolerance", type=float, metavar="NUMBER", help="Allowed relative L2 error of its results; by default that of the precision."),
    click.option("--include-refit", is_flag=True, help="The finished plan can itself be refitted by the app."),
    click.option("--host-code", is_flag=True, help="It holds code for the CPU, such as a lean runtime: it needs a signed bundle."),
    click.option("--lean-runtime", type=click.Path(), metavar="FILE", help="A lean runtime library to ship with it: it needs a signed bundle."),
]  # fmt: skip

#: What may be missing -> the options that say it, and what is asked for on a terminal.
_WORDS = {
    "os": ("--os", "Operating systems (linux, windows or both)"),
    "compute_capabilities": (
        "--compute-capability or --ampere-plus",
        "Compute capability (as 8.9, or 8.6 8.9, or 8.0+ for Ampere and later)",
    ),
    "gpu": ("--gpu", "GPU model that it was built on (as nvidia-smi names it)"),
    "version_compatible": ("--version-compatible or --exact-version", "Built with VERSION_COMPATIBLE?"),
    "precision": ("--precision", "Precision (fp32, tf32, fp16, bf16, int8, fp8, int4, fp4)"),
    "strip": ("--strip", "Without weights by (plan: STRIP_PLAN, zeros: zeroed weights, none: it has them)"),
    "refit": (
        "--refit",
        "Built with (identical: REFIT_IDENTICAL, any: REFIT, individual)",
    ),
}


def fact_options(function: Function) -> Function:
    """The options that say what a plan is."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def given_facts(said: Mapping[str, Any]) -> EngineFacts:
    """The facts in the options' values. Raises SettingInvalid for a weight map that is none, EngineRefused else."""
    from refit_agent.authoring.engine_facts import checked_facts

    facts = dict(said)
    if facts.pop("same_compute_capability"):
        facts["hardware_compatibility"] = "same-compute-capability"
    if facts["min_compute_capability"] is not None:
        if "hardware_compatibility" in facts:
            raise click.UsageError("--ampere-plus and --same-compute-capability exclude each other.")
        facts["hardware_compatibility"] = "ampere-plus"
    for flag in ("include_refit", "host_code"):
        facts[flag] = facts[flag] or None  # not given is not said
    for several in ("os", "compute_capabilities"):
        facts[several] = list(dict.fromkeys(facts[several])) or None
    if facts["weight_map"] is not None:
        facts["weight_map"] = _weight_map(facts["weight_map"])
    return checked_facts(**facts)


def require_all(plan: str, missing: Sequence[str]) -> NoReturn:
    """Raise FactsMissing, which lists every option that is missing."""
    from refit_agent.authoring.errors import FactsMissing

    options = "; ".join(_WORDS[name][0] for name in missing)
    raise FactsMissing(plan=plan, missing=", ".join(missing).replace("_", " "), hint=f"Give {options}.")


def ask_for(plan: str, known: KnownPlan, facts: EngineFacts) -> EngineFacts:
    """The facts with what the person at the terminal says about the rest."""
    import msgspec

    built = ".".join(map(str, known.header.version))
    click.echo(f"The plan says that {known.header.runtime} {built} built it. What else is true of it?", err=True)
    answers: dict[str, Any] = {}
    try:
        for name in known.missing:
            answers.update(_ask(name))
    except click.Abort:  # the end of the input: nobody is there to be asked
        click.echo(err=True)
        require_all(plan, [name for name in known.missing if name not in answers])
    from refit_agent.authoring.engine_facts import checked_facts

    said = {name: value for name, value in msgspec.structs.asdict(facts).items() if value is not None}
    return checked_facts(**{**said, **answers})


def _ask(name: str) -> dict[str, Any]:
    """The answer to one question, as fields of `EngineFacts`. Raises click.Abort at the end of the input."""
    question = _WORDS[name][1]
    if name == "version_compatible":
        return {name: click.confirm(question, err=True)}
    if name == "os":
        return {name: click.prompt(question, value_proc=_systems, err=True)}
    if name == "compute_capabilities":
        found: dict[str, Any] = click.prompt(question, value_proc=_capabilities, err=True)
        return found
    if name == "gpu":
        return {name: click.prompt(question, err=True)}
    if name == "precision":
        return {name: click.prompt(question, value_proc=_precision, err=True)}
    choices = _REFITS if name == "refit" else ("plan", "zeros", "none")
    return {name: click.prompt(question, type=click.Choice(choices), show_choices=False, err=True)}


def _precision(text: str) -> str:
    """One that has a tolerance."""
    from refit_agent.authoring.tolerances import tolerance_for

    if tolerance_for(text) is None:
        raise click.UsageError(f"{text!r} is none of these, nor several of them with +")
    return text.strip()


def _systems(text: str) -> list[str]:
    """ "linux", "windows" or both, in either order."""
    words = list(dict.fromkeys(text.lower().replace(",", " ").replace("both", "linux windows").split()))
    if not words or not set(words) <= {"linux", "windows"}:
        raise click.UsageError(f"{text!r} is not linux, windows or both")
    return words


def _capabilities(text: str) -> dict[str, Any]:
    """ "8.6 8.9", or "8.0+", as fields of `EngineFacts`."""
    words = text.replace(",", " ").split()
    if not words or not all(re.fullmatch(r"\d{1,3}\.\d{1,2}\+?", word) for word in words):
        raise click.UsageError(f"{text!r} is no compute capability such as 8.9")
    if len(words) == 1 and words[0].endswith("+"):
        return {"min_compute_capability": words[0][:-1], "hardware_compatibility": "ampere-plus"}
    if any(word.endswith("+") for word in words):
        raise click.UsageError("a plan for Ampere and later has one least compute capability")
    return {"compute_capabilities": list(dict.fromkeys(words))}


def _weight_map(path: str) -> object:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_MOST_MAP_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingInvalid(
            name="--weight-map", value=path, wanted=f"a JSON file that can be read ({error})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise SettingInvalid(name="--weight-map", value=path, wanted="a JSON object with an object for each weight")
    return found
