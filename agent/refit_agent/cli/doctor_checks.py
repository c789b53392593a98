"""The checks of `refit-agent doctor`. Each may find anything broken; none may let that stop the others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import stat
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

from refit_agent import __version__, logs, paths
from refit_agent.cache.disk import existing_parent, free_bytes
from refit_agent.cache.store import FOLDERS, Store
from refit_agent.cache.upkeep import DISK_MARGIN_BYTES, list_entries
from refit_agent.cli.cache_document import is_leased, quota
from refit_agent.cli.inspect_commands import driver_text
from refit_agent.cli.output import count_text, size_text
from refit_agent.cli.settings_document import all_files, all_settings
from refit_agent.errors import RefitAgentError
from refit_agent.errors.advice import reinstall, suited
from refit_agent.gpu.detect import detect
from refit_agent.machine import Machine, version_tuple

Status = Literal["ok", "warn", "fail"]
_OPTIONAL = ("onnxruntime", "tensorrt-lean-cu12", "tensorrt-lean-cu13", "tensorrt", "tensorrt-rtx")
_KNOWN = frozenset(f"REFIT_AGENT_{n}" for n in ("HOME", "RUNTIMES", "LOG_LEVEL", "DEBUG", "SOCKET", "PYTHON", "KEY_PASSWORD"))  # fmt: skip
_SETTINGS = re.compile(
    r"REFIT_AGENT_|CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|MODULE_LOADING)$|NVIDIA_VISIBLE_DEVICES$|"
    r"XDG_(CACHE|STATE)_HOME$|LD_LIBRARY_PATH$"
)
_CPU = "Install one: pip install 'refit-agent[cpu]'"
_GPU = "pip install 'refit-agent[cu13]' (cu12 for drivers before 580)"
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY")


class Check(NamedTuple):
    """What one check found. ``advice`` says what to do about it, "" when nothing is to be done."""

    name: str
    status: Status
    summary: str
    lines: tuple[str, ...] = ()
    advice: str = ""
    facts: dict[str, object] = {}  # noqa: RUF012 - never changed


def all_checks() -> list[Check]:
    """Every check, done now, in the order in which they are shown."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("versions", _versions),
        ("settings", _settings),
        ("cache folder", lambda: _folder("cache folder", paths.home().cache, needs_room=True)),
        ("state folder", lambda: _folder("state folder", paths.home().state, needs_room=False)),
        ("gpus", _gpus),
        ("runtimes", lambda: runtimes_check(detect())),
        ("cache", _cache),
        ("failures", _failures),
        ("service", _service),
    ]
    return [_safely(name, check) for name, check in checks]


def _safely(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except RefitAgentError as error:
        return Check(name, "fail", str(error), advice=error.hint, facts={"code": error.code})
    except Exception as error:  # noqa: BLE001 - whatever is broken, the other checks are wanted all the more
        return Check(name, "fail", f"the check itself failed: {type(error).__name__}: {error}")


def _versions() -> Check:
    found: dict[str, object] = {}
    missing: list[str] = []
    for requirement in _requirements():
        name, _, marker = requirement.partition(";")
        distribution = re.split(r"[^A-Za-z0-9._-]", name.strip(), maxsplit=1)[0]
        if "extra ==" in marker:
            continue
        version = _version(distribution)
        if version:
            found[distribution] = version
        # A marker that excludes this machine makes a missing package right.
        elif not marker:
            missing.append(distribution)
    for distribution in _OPTIONAL:
        version = _version(distribution)
        if version:
            found[distribution] = version
    python = f"{platform.python_implementation()} {platform.python_version()}"
    lines = [f"{python} at {sys.executable}", platform.platform(), ", ".join(f"{n} {v}" for n, v in found.items())]
    facts: dict[str, object] = {"refit-agent": __version__, "python": platform.python_version(), "os": platform.platform(), "packages": found}  # fmt: skip
    if missing:
        return Check("versions", "fail", f"missing: {', '.join(missing)}", tuple(lines), reinstall(), facts)  # fmt: skip
    return Check("versions", "ok", f"refit-agent {__version__}", tuple(lines), facts=facts)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires("refit-agent") or []
    except importlib.metadata.PackageNotFoundError:
        return []  # run from its source, not installed


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _settings() -> Check:
    shown = {n: "(not shown)" if _SECRET.search(n) else v for n, v in sorted(os.environ.items()) if _SETTINGS.match(n)}
    lines = tuple(f"{name}={value}" for name, value in shown.items())
    # Each raises what is wrong with its setting.
    states, files = all_settings(), all_files()
    for wrong in (*(f.error for f in files), *(s.error for s in states)):
        if wrong is not None:
            raise wrong
    logs.level()
    lines += tuple(f"{s.name}: {s.text} ({s.source})" for s in states if s.kind not in ("default", "environment"))
    known = _KNOWN | {s.variable for s in states}
    doubts = [
        f"{name} is no setting of refit-agent"
        for name in shown
        if name.startswith("REFIT_AGENT_") and name not in known
    ]
    doubts += [f"{f.path} has what this refit-agent does not know: {', '.join(f.unknown)}" for f in files if f.unknown]
    doubts += [f"REFIT_AGENT_RUNTIMES: there is no folder {f}" for f in os.environ.get("REFIT_AGENT_RUNTIMES", "").split(os.pathsep) if f and not os.path.isdir(f)]  # fmt: skip
    if doubts:
        return Check("settings", "warn", "; ".join(doubts), lines, "Correct it, or leave it out.", dict(shown))
    summary = f"{len(shown)} in the environment" if shown else "none in the environment"
    read = ", ".join(f.path for f in files if f.found)
    return Check("settings", "ok", summary + (f"; read: {read}" if read else ""), lines, facts=dict(shown))


def _folder(name: str, path: str, *, needs_room: bool) -> Check:
    free = free_bytes(path)
    facts: dict[str, object] = {"path": path, "free_bytes": free}
    summary = f"{path}, {size_text(free)} free on its disk"
    elsewhere = "Make it a folder that is yours alone, or point REFIT_AGENT_HOME elsewhere."
    try:
        status = os.stat(path)
    except FileNotFoundError:
        above = existing_parent(path)
        if not os.access(above, os.W_OK | os.X_OK):
            return Check(
                name, "fail", f"{summary}; it does not exist, and {above} cannot be written", (), elsewhere, facts
            )
        return _room(Check(name, "ok", f"{summary}; not made yet", facts=facts), free, needs_room)
    except OSError as error:
        return Check(name, "fail", f"{path} cannot be used: {error.strerror}", (), elsewhere, facts)
    if not stat.S_ISDIR(status.st_mode):
        return Check(name, "fail", f"{path} is not a folder", (), elsewhere, facts)
    facts["mode"] = mode = f"{stat.S_IMODE(status.st_mode):o}"
    for part in (path, *(f"{path}/{folder}" for folder in FOLDERS if needs_room)):
        if os.path.exists(part) and not os.access(part, os.R_OK | os.W_OK | os.X_OK):
            where = "it" if part == path else part
            mode = f"{stat.S_IMODE(os.stat(part).st_mode):o}"
            return Check(name, "fail", f"{summary}; {where} cannot be written (mode {mode})", (), elsewhere, facts)
    if needs_room:
        Store(path).check_owner()
    return _room(Check(name, "ok", f"{summary}, mode {mode}", facts=facts), free, needs_room)


def _room(check: Check, free: int, needs_room: bool) -> Check:
    if needs_room and free < 4 * DISK_MARGIN_BYTES:
        return check._replace(
            status="warn", advice="The disk is nearly full: free some space, or no engine can be made."
        )
    return check


def _gpus() -> Check:
    machine = detect(fresh=True)
    facts: dict[str, object] = {"driver": machine.driver, "cuda": machine.cuda, "gpus": [g.name for g in machine.gpus], "reason": machine.no_gpu_reason}  # fmt: skip
    warnings = tuple(machine.warnings)
    if not machine.gpus:
        return Check("gpus", "warn", f"none: {machine.no_gpu_reason}", warnings, "Only CPU engines can be used; on a machine with an NVIDIA GPU, install its driver.", facts)  # fmt: skip
    lines = [
        f"cuda:{g.index} {g.name}, compute capability {g.compute_capability}, {size_text(g.memory_total)}, {g.uuid}"
        for g in machine.gpus
    ]
    advice = "See what nvidia-smi says." if warnings else ""
    return Check("gpus", "warn" if warnings else "ok", driver_text(machine), (*lines, *warnings), advice, facts)


def runtimes_check(machine: Machine) -> Check:
    """Whether the machine has a runtime for what it can run engines on."""
    facts: dict[str, object] = {"runtimes": [f"{r.module} {r.version}" for r in machine.runtimes]}
    lines = tuple(
        f"{r.module} {r.version or '?'}"
        + (f", CUDA {r.cuda_major}" if r.cuda_major else "")
        + (f", in {r.folder}" if r.folder else "")
        for r in machine.runtimes
    )
    modules = {r.module for r in machine.runtimes}
    if not modules:
        return Check("runtimes", "fail", "none is installed", (), f"{suited(_CPU)}; for an NVIDIA GPU {suited(_GPU)}", facts)  # fmt: skip
    if machine.gpus and modules <= {"onnxruntime"}:
        return Check("runtimes", "warn", "none for the GPU", lines, f"For it {suited(_GPU)}", facts)  # fmt: skip
    if not machine.gpus and "onnxruntime" not in modules:
        return Check("runtimes", "warn", "none for the CPU, and there is no GPU", lines, suited(_CPU), facts)  # fmt: skip
    if any(
        r.module.startswith("tensorrt") and not r.cuda_major and version_tuple(r.version) >= (10,)
        for r in machine.runtimes
    ):
        return Check("runtimes", "warn", "TensorRT for several CUDA majors in one folder: one has overwritten the other", lines, "Uninstall every tensorrt-lean package, then install refit-agent[cu13] or refit-agent[cu12], not both.", facts)  # fmt: skip
    return Check("runtimes", "ok", f"{len(machine.runtimes)} installed", lines, facts=facts)


def _cache() -> Check:
    store = Store(paths.home().cache)
    store.check_owner()
    entries = list_entries(store)
    total, limit = sum(c.size for c in entries), quota(store)
    damaged = [c for c in entries if c.fault]
    leased = sum(is_leased(store, c.key) is True for c in entries)
    facts: dict[str, object] = {"entries": len(entries), "bytes": total, "quota_bytes": limit, "damaged": len(damaged), "leased": leased}  # fmt: skip
    summary = f"{count_text(len(entries), 'engine')}, {size_text(total)} of {size_text(limit)}, {leased} in use"
    lines = tuple(f"{c.key[:12]}: {c.fault}" for c in damaged)
    if damaged:
        return Check("cache", "warn", f"{summary}, {len(damaged)} damaged", lines, "Set them aside: refit-agent cache verify", facts)  # fmt: skip
    if total > limit:
        return Check("cache", "warn", f"{summary}, more than its limit", (), "refit-agent cache prune", facts)
    return Check("cache", "ok", summary, facts=facts)


def _failures() -> Check:
    import msgspec

    from refit_agent.errors import from_wire
    from refit_agent.failures import Failure

    folder = os.path.join(paths.home().state, "failures")
    lines: list[str] = []
    try:
        names = sorted(n for n in os.listdir(folder) if n.endswith(".json"))
    except FileNotFoundError:
        names = []
    except OSError as error:
        return Check("failures", "fail", f"{folder} cannot be read: {error.strerror}")
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as file:
                failure = msgspec.json.decode(file.read(), type=Failure)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            lines.append(f"{name}: cannot be read: {error}")
            continue
        words = " ".join(str(from_wire(failure.code, failure.facts)).split())
        lines.append(f"{name[:12]} {count_text(failure.count, 'time')} [{failure.code}] {words}")
    facts: dict[str, object] = {"failures": lines}
    if lines:
        return Check("failures", "warn", f"failed here and skipped: {count_text(len(lines), 'engine')}", tuple(lines), "Try them again with: refit-agent provision BUNDLE --retry", facts)  # fmt: skip
    return Check("failures", "ok", "none is remembered", facts=facts)


def _service() -> Check:
    from refit_agent.client.sync import ServiceClient
    from refit_agent.errors import ServiceUnreachable
    from refit_agent.service_socket import socket_path

    place = socket_path()
    facts: dict[str, object] = {"socket": place, "runs": False}
    if not place:
        return Check("service", "ok", "not used: REFIT_AGENT_SOCKET is empty", facts=facts)
    try:
        with ServiceClient(place) as client:
            now = client.status()
    except ServiceUnreachable as error:
        if not os.path.lexists(place) or isinstance(error.__cause__, ConnectionRefusedError):
            return Check("service", "ok", f"none runs at {place}; commands and apps do its work themselves", facts=facts)  # fmt: skip
        return Check("service", "warn", str(error), (), "Restart it: end its process, then refit-agent serve", facts)
    facts |= {"runs": True, "version": now.version, "pid": now.pid}
    summary = f"refit-agent {now.version} runs as process {now.pid} at {place}"
    if now.version != __version__:
        return Check("service", "warn", summary, (), f"Restart it: this is refit-agent {__version__}.", facts)
    return Check("service", "ok", summary, facts=facts)
