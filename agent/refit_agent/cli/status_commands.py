"""`refit-agent status`, `watch` and `bundles add|list|remove`: what the service does, and for which apps."""

from __future__ import annotations

import os
import time

import click
import msgspec

from refit_agent.cli import output, stop
from refit_agent.cli.group import json_option
from refit_agent.client.messages import BundleRecord, JobStatus, Status
from refit_agent.client.sync import ServiceClient

_ERRORS_SHOWN = 5


@click.command(short_help="Show what the service is doing.")
@json_option
def status(as_json: bool) -> int:
    """Show whether the service runs, what it is making and for how many it is making it, the state of its
    background work, its cache and its last errors. Exit code 8 if there is no service.

    \b
    Example:
      refit-agent status --json
    """
    with ServiceClient() as client:
        now = client.status()
    if as_json:
        output.emit_json({**msgspec.to_builtins(now), "socket": client.path})
        return 0
    output.emit(f"refit-agent {now.version}, process {now.pid}, up for {output.seconds_text(now.uptime_s)}")
    output.emit(f"  socket {client.path}")
    cache = now.cache
    output.emit(
        f"  {output.count_text(cache.entries, 'engine')} in the cache, {output.size_text(cache.bytes)} of {output.size_text(cache.quota)}; "
        f"{output.count_text(now.bundles, 'bundle')} registered"
    )
    reason = f": {now.warm.reason}" if now.warm.reason else ""
    output.emit(f"  background work: {now.warm.state}{reason}")
    for failure in now.warm.failures:
        output.emit(f"    failed: {_failure_text(failure)}")
    for job in now.jobs:
        output.emit(f"  making {_job_text(job)}")
    for note in now.errors[-_ERRORS_SHOWN:]:
        when = output.age_text(time.time() - note.when) if isinstance(note.when, (int, float)) else str(note.when)
        output.emit(f"  error {when} [{note.code}]: {note.message.splitlines()[0] if note.message else ''}")
    return 0


def _failure_text(failure: object) -> str:
    if not isinstance(failure, dict):
        return str(failure)
    named = " of ".join(str(failure[k]) for k in ("model", "bundle") if failure.get(k))
    return f"{named}: {failure.get('message') or failure.get('code') or failure}".splitlines()[0]


def _job_text(job: JobStatus) -> str:
    where = f" for {job.target}" if job.target else ""
    whom = "in the background" if job.background else f"{output.count_text(job.waiters, 'caller')} waiting"
    return f"{job.model} ({job.engine}){where}: {job.fraction:.0%} {job.phase}, {whom}"


@click.command(short_help="Follow what the service is making.")
@click.option("--until-idle", is_flag=True, help="End when nothing is being made any more.")
@click.option("--every", type=click.FloatRange(min=0.05, max=3600), default=0.5, show_default=True, metavar="SECONDS", help="How often to ask.")  # fmt: skip
@json_option
def watch(until_idle: bool, every: float, as_json: bool) -> int:
    """Follow the service's work, one line for each change, until Ctrl+C.

    With --json nothing is shown until the service is idle, and then its status.

    \b
    Example:
      refit-agent watch --until-idle
    """
    shown: dict[str, str] = {}
    state = ""
    with ServiceClient() as client:
        while True:
            now = client.status()
            if not as_json:
                state = _show_changes(now, shown, state)
            if (until_idle or as_json) and _is_idle(now):
                break
            _wait(every)
    if as_json:
        output.emit_json({**msgspec.to_builtins(now), "socket": client.path})
    return 0


def _is_idle(now: Status) -> bool:
    return not now.jobs and now.warm.state != "working"


def _show_changes(now: Status, shown: dict[str, str], state: str) -> str:
    """Print what differs from the last time; gives the state of the background work."""
    for job in now.jobs:
        text = _job_text(job)
        if shown.get(job.key) != text:
            output.emit(text)
            shown[job.key] = text
    for key in [k for k in shown if k not in {job.key for job in now.jobs}]:
        output.emit(f"{shown.pop(key).partition(':')[0]}: over")
    warm = now.warm.state + (f": {now.warm.reason}" if now.warm.reason else "")
    if warm != state:
        output.emit(f"background work: {warm}")
    return warm


def _wait(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        stop.check()
        time.sleep(min(left, 0.1))


@click.group(short_help="Tell the service which apps' engines to keep ready.")
def bundles() -> None:
    """The bundles that the service keeps ready: their engines are made in the background, also after a new
    driver or GPU. Needs a running service, and lasts until the bundle is removed.

    \b
    Example:
      refit-agent bundles add /opt/app/bundle
    """


@bundles.command("add", short_help="Keep a bundle's engines ready.")
@click.argument("bundle", type=click.Path())
@json_option
def add(bundle: str, as_json: bool) -> int:
    """Register BUNDLE with the service, for instance when its app has been installed. Once more does no harm."""
    with ServiceClient() as client:
        record = client.add_bundle(bundle)
    if as_json:
        output.emit_json(msgspec.to_builtins(record))
    else:
        output.emit(f"{record.id}  {_bundle_text(record)}")
    return 0


@bundles.command("list", short_help="List the registered bundles.")
@json_option
def list_command(as_json: bool) -> int:
    """List the bundles that the service keeps ready."""
    with ServiceClient() as client:
        records = client.bundles()
    if as_json:
        output.emit_json({"bundles": msgspec.to_builtins(records)})
        return 0
    for record in records:
        output.emit(f"{record.id}  {_bundle_text(record)}")
    if not records:
        output.emit("no bundle is registered")
    return 0


@bundles.command("remove", short_help="Forget a bundle.")
@click.argument("bundle")
@json_option
def remove(bundle: str, as_json: bool) -> int:
    """Forget BUNDLE, named by its id or its folder, for instance when its app is removed. Its engines stay in
    the cache until they age out.
    """
    with ServiceClient() as client:
        known = {record.id for record in client.bundles()}
        name = bundle if bundle in known else _id_of(client, bundle)
        client.remove_bundle(name)
    if as_json:
        output.emit_json({"removed": name})
    else:
        output.emit(f"removed {name}")
    return 0


def _id_of(client: ServiceClient, bundle: str) -> str:
    """The id of the bundle in a folder, which may be gone already; what is none is for the service to refuse."""
    folder = os.path.realpath(bundle)
    return next((r.id for r in client.bundles() if os.path.realpath(r.path) == folder), bundle)


def _bundle_text(record: BundleRecord) -> str:
    return f"{record.name} {record.version} ({record.app}), {output.count_text(len(record.models), 'model')}, {record.path}"
