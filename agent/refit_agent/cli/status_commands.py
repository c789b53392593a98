"""`refit-agent status` and `watch`: what the service does."""

from __future__ import annotations

import time

import click
import msgspec

from refit_agent.cli import output, stop
from refit_agent.cli.group import json_option
from refit_agent.cli.option_types import Seconds
from refit_agent.client.messages import JobStatus, Status
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
@click.option("--every", type=Seconds(min=0.05, max=3600), default=0.5, show_default=True, metavar="SECONDS", help="How often to ask.")  # fmt: skip
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
