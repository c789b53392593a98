"""`refit-agent provision` and the full form of `refit-agent path`."""

from __future__ import annotations

import click

from refit_agent.bundle import Bundle
from refit_agent.cli import output, stop
from refit_agent.cli.deadline import Deadline
from refit_agent.cli.ensure import lazy_view
from refit_agent.cli.group import json_option
from refit_agent.cli.option_types import Seconds, Target
from refit_agent.cli.path_command import print_path
from refit_agent.cli.provision_in_lines import CommandInLines, provision_in_lines
from refit_agent.cli.provision_run import ForPeople, InDocument, NoView, Options, provide_all
from refit_agent.cli.public_keys import pinned_keys, public_key_option
from refit_agent.cli.wishes import ALL_TARGETS, Wish, wishes
from refit_agent.manifest import Model
from refit_agent.provision import Form

_TARGET_HELP = "cpu, gpu, cuda:N or a GPU's UUID; without it, whatever is best."


@click.command(cls=CommandInLines, short_help="Make a bundle's engines ready, in the cache.")
@click.argument("bundle", type=click.Path())
@click.option("--model", help="This model alone; without it, every model of the bundle.")
@click.option("--profile", help="A profile's name; without it, each model's default.")
@click.option("--all-profiles", is_flag=True, help="Every profile of each model.")
@click.option("--target", type=Target(or_all=True), help=_TARGET_HELP + " 'all' means every distinct GPU.")
@click.option("--weights", type=click.Path(), metavar="FILE", help="Take the weights from this ONNX file, of the same model.")  # fmt: skip
@click.option("--retry", is_flag=True, help="Also try what failed on this machine before.")
@click.option("--deadline", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Longest time for the whole command; without it, 900 for each engine.")  # fmt: skip
@click.option("--background", is_flag=True, help="Work at idle priority.")
@click.option("--progress", type=click.Choice(["auto", "json", "none"]), default="auto", show_default=True, help="json: a JSON line for every event on standard output, for installers; auto: for people, on standard error.")  # fmt: skip
@public_key_option
@json_option
def provision(
    bundle: str,
    model: str | None,
    profile: str | None,
    all_profiles: bool,
    target: str | None,
    weights: str | None,
    retry: bool,
    deadline: float | None,
    background: bool,
    progress: str,
    public_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make the engines of BUNDLE ready for this machine, for instance while an app is being installed.

    An engine that is in the cache already is a hit and costs nothing, so that a command which was stopped goes
    on where it was when it is run again. An error of one model does not keep the others from being made; the exit
    code is that of the first error. What the deadline leaves no time for is an error too.

    \b
    Example:
      refit-agent provision /opt/app/bundle --json
      refit-agent provision /opt/app/bundle --progress=json --deadline 600
    """
    if profile is not None and all_profiles:
        raise click.UsageError("--profile and --all-profiles exclude each other.")
    if progress == "json" and as_json:
        raise click.UsageError("--json and --progress=json exclude each other.")
    limit = Deadline(deadline)

    def opened() -> tuple[Bundle, Options]:
        keys = pinned_keys(public_key)
        found = Bundle.open(bundle, keys)
        if weights is not None and len(models(found)) > 1:
            raise click.UsageError("--weights belongs to one model: name it with --model.")
        return found, Options(weights, retry, background, keys)

    def models(found: Bundle) -> tuple[Model, ...]:
        return found.manifest.models if model is None else (found.model(model),)

    def wanted(found: Bundle) -> list[Wish]:
        return [*wishes(found, models(found), profile, all_profiles, target)]

    if progress == "json":
        return provision_in_lines(bundle, opened, wanted, limit, count_at_once=target != ALL_TARGETS)
    found, options = opened()
    with lazy_view() as lazy:
        view = lazy if progress == "auto" else NoView()
        report = InDocument(lazy) if as_json else ForPeople(lazy)
        outcome = provide_all(found, wanted(found), options, limit, view, report, limit)
    if isinstance(report, InDocument):
        app = found.manifest.app
        output.emit_json({"bundle": found.root, "app": app.id, "app_version": app.version, "engines": report.engines})
    return outcome.code


@click.command(short_help="Print the path of a ready engine, alone.")
@click.argument("bundle", type=click.Path())
@click.argument("model")
@click.option("--profile", help="A profile's name; without it, the model's default.")
@click.option("--target", type=Target(), help=_TARGET_HELP)
@click.option("--deadline", type=Seconds(min=0, min_open=True), metavar="SECONDS", help="Longest time to make it.")  # fmt: skip
@click.option("--form", type=click.Choice(["plan", "onnx"]), default="plan", show_default=True, help="onnx: the file for ONNX Runtime's TensorRT execution provider.")  # fmt: skip
@public_key_option
@json_option
def path(
    bundle: str,
    model: str,
    profile: str | None,
    target: str | None,
    deadline: float | None,
    form: Form,
    public_key: tuple[str, ...],
    as_json: bool,
) -> int:
    """Print the path of the engine of MODEL in BUNDLE, and nothing else; make it first if it is not in the cache.

    The lease, which keeps the engine from eviction, lasts only as long as this process. Load the file
    soon, and ask again at each start. Progress and errors go to standard error.

    \b
    Example:
      trt-app --engine "$(refit-agent path /opt/app/bundle denoiser)"
    """
    stop.check()
    keys = pinned_keys(public_key)
    return print_path(bundle, model, profile, target, deadline_s=deadline, public_keys=keys, form=form, as_json=as_json)
