"""`refit-agent uninstall`: takes away what refit-agent has written for this user."""

from __future__ import annotations

import os
import stat
import sys

import click

from refit_agent import paths, settings_file
from refit_agent.cache.store import Store
from refit_agent.cli import output, stop
from refit_agent.cli.group import json_option
from refit_agent.cli.removal import Removal
from refit_agent.cli.service_stop import Stopped, jobs_of_service, stop_service
from refit_agent.errors import CacheUnwritable, EnginesInUse, SettingInvalid, StateInsecure
from refit_agent.service_socket import socket_path

_SHOWN = 20
_TAKEN = "The cache was taken to be {}."
_NAMES_A_CACHE = "it cannot be read, and may name another cache (cache_dir): remove that folder, then this file"
_MOST_BYTES = 1 << 20
_PROGRAM = "refit-agent itself stays: remove it with what installed it (apt, the app's uninstaller, pip)."


@click.command(short_help="Stop the service and remove what was written for this user.")
@click.option("--purge", is_flag=True, help="The cache of engines and the user's settings file, too.")
@click.option("--force", is_flag=True, help="With --purge: engines too that a process uses right now.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def uninstall(purge: bool, force: bool, yes: bool, as_json: bool) -> int:
    """Take away what refit-agent has written for this user, before refit-agent itself is removed: stop the
    service, forget registered bundles, and remove state and logs; with --purge also the cache of engines and the
    user's settings file. Apps of every vendor share them: to take away one app, use 'unregister'. Exit code 7
    if something of it could not be removed, and with --purge, before anything is stopped or removed, if engines
    are in use.

    \b
    Example:
      refit-agent uninstall --purge --yes
    """
    if force and not purge:
        raise click.UsageError("--force belongs to --purge.")
    home, unread = _home()
    place = socket_path()
    settings = settings_file.path_of("user")
    # Gigabytes may lie there, and nothing else knows where.
    keeps_settings = bool(unread) and _may_name_a_cache(settings)
    _require_own(home.state)
    if not yes and not _agreed(home, purge=purge):
        return 1
    with stop.patiently():
        removal = Removal()
        store = Store(home.cache)
        if purge:
            store.check_owner()
        if purge and not force:
            _require_unused(removal, store)
        stopped = stop_service()
        if purge and not force:
            _require_unused(removal, store, hint=" The service was stopped meanwhile.")
        removal.left += stopped.faults
        removal.runtime(place)
        removal.state(home.state)
        if purge:
            removal.cache(store, force=force)
            if keeps_settings:
                removal.left.append((settings, _NAMES_A_CACHE))
            else:
                removal.file(settings)
    warnings = [f"{unread} {_TAKEN.format(home.cache)}"] if unread else []
    if as_json:
        output.emit_json({**_document(removal, stopped, home, purge=purge), "warnings": warnings})
    else:
        _say(removal, stopped, home, purge=purge)
        for warning in warnings:
            output.emit(f"warning: {warning}")
    return CacheUnwritable.exit_code if removal.left else 0


def _home() -> tuple[paths.Home, str]:
    """The folders, and what is wrong with the user's settings file, if anything is: it goes too, and must not keep
    anybody from removing the rest.

    Raises:
        SettingInvalid: the policy, the environment or the machine's file is not what it must be.
    """
    try:
        return paths.home(), ""
    except SettingInvalid as error:
        return paths.home(user_file=False), str(error)


def _may_name_a_cache(path: str) -> bool:
    """Whether the settings file, which could not be understood, may say where the cache is: unless it is a file that
    can be read whole and has no word of it."""
    try:
        fd = os.open(path, settings_file.OPEN_FLAGS)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return True
            data = os.read(fd, _MOST_BYTES + 1)
        finally:
            os.close(fd)
    except OSError:
        return True
    return len(data) > _MOST_BYTES or b"cache_dir" in data.replace(b"\0", b"")  # in whatever an editor has made of it


def _require_own(state: str) -> None:
    """Raise StateInsecure if it is another user's: with sudo, and that user's HOME, their service would be stopped and
    their files removed, by one who is asked for neither."""
    if sys.platform == "win32":
        return
    try:
        owner = os.lstat(state).st_uid
    except OSError:
        return
    if owner != os.geteuid():
        detail = f"it belongs to user {owner}, and this is user {os.geteuid()}"
        raise StateInsecure(path=state, detail=detail, hint="Run it as that user, without sudo.")


def _require_unused(removal: Removal, store: Store, *, hint: str = "") -> None:
    """Raise EnginesInUse if a process uses an engine of the cache, or waits for one that is being made. What the service
    makes in the background nobody waits for."""
    busy = removal.busy_keys(store)
    jobs = jobs_of_service()
    busy = (busy - {job.key for job in jobs if job.background}) | {job.key for job in jobs if not job.background}
    if busy:
        keys = ", ".join(key[:12] for key in sorted(busy))
        hint = f"Close the apps that use them and try again, or give --force.{hint}"
        raise EnginesInUse(path=store.root, keys=keys, hint=hint)


def _agreed(home: paths.Home, *, purge: bool) -> bool:
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise click.UsageError("There is no terminal to ask at: give --yes.")
    what = f"the engines in {home.cache} and the settings file" if purge else "state and logs"
    question = output.printable(f"Stop the service and remove {what}, for all apps of this user?")
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        click.echo("Nothing was done.", err=True)
    return agreed


def _document(removal: Removal, stopped: Stopped, home: paths.Home, *, purge: bool) -> dict[str, object]:
    return {
        "purge": purge,
        "service": {
            "pid": stopped.pid or None,
            "units": list(stopped.units),
            "enabled_for_all": list(stopped.enabled_for_all),
        },
        "removed": removal.removed,
        "freed_bytes": removal.freed,
        "left": [{"path": path, "reason": reason} for path, reason in removal.left],
        "foreign": [{"path": path, "reason": reason} for path, reason in removal.foreign],
        "cache": None if purge else home.cache,
    }


def _say(removal: Removal, stopped: Stopped, home: paths.Home, *, purge: bool) -> None:
    if stopped.units:
        output.emit(f"disabled {', '.join(stopped.units)}")
    for unit in stopped.enabled_for_all:
        output.emit(f"stopped {unit}; it is enabled for all users and starts at the next login")
    if stopped.pid:
        output.emit(f"stopped the service, process {stopped.pid}")
    for path in removal.removed[:_SHOWN]:
        output.emit(f"removed {path}")
    if len(removal.removed) > _SHOWN:
        output.emit(f"removed {len(removal.removed) - _SHOWN} more")
    if removal.removed:
        output.emit(f"{output.size_text(removal.freed)} in all")
    else:
        output.emit("there was nothing to remove")
    for path, reason in removal.left:
        output.emit(f"LEFT {path}: {reason}")
    for path, reason in removal.foreign:
        output.emit(f"left {path}: {reason}")
    if not purge:
        output.emit(f"left: the cache, {home.cache} (--purge removes it)")
    output.emit(_PROGRAM)
