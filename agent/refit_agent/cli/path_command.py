"""`refit-agent path`: the path of a ready engine and nothing else, as fast as a process can say it."""

from __future__ import annotations

import os

from refit_agent import logs
from refit_agent.cli.ensure import ensure, lazy_view
from refit_agent.cli.output import emit_json, write
from refit_agent.provision import Form


def print_path(
    bundle: str,
    model: str,
    profile: str | None = None,
    target: str | None = None,
    *,
    deadline_s: float | None = None,
    public_keys: tuple[str, ...] | None = None,
    form: Form = "plan",
    as_json: bool = False,
) -> int:
    """Print the path of the engine, made first if it has to be; gives the exit code."""
    logs.want()
    with (
        lazy_view() as view,
        ensure(
            bundle, model, profile, target, view=view, deadline_s=deadline_s, public_keys=public_keys, form=form
        ) as engine,
    ):
        path = os.fspath(engine)
        if as_json:
            emit_json({"path": path, "hit": engine.hit, "key": engine.key, "runtime": engine.runtime, "runtime_version": engine.runtime_version, "target": engine.target})  # fmt: skip
        else:
            view.close()
            # As the system has it: a file name need not be text in the present locale.
            write(os.fsencode(path) + b"\n")
    return 0
