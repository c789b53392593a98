"""`refit-agent doctor`: it says what is broken and is never broken by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refit_agent.cli.doctor_checks import runtimes_check
from refit_agent.machine import Gpu, InstalledRuntime, Machine

from .command import Cli


def _checks(cli: Cli, **env: str) -> tuple[int, dict[str, Any]]:
    ran = cli("doctor", "--json", **env)
    assert ran.err == ""
    return ran.code, {check["name"]: check for check in ran.document["checks"]}


def test_sound_installation(cli: Cli, bundle: Path) -> None:
    """No check fails; versions, folders, runtimes and the cache are there."""
    cli("provision", bundle)
    code, checks = _checks(cli)
    assert code == 0
    assert checks["versions"]["facts"]["packages"]["msgspec"] and checks["versions"]["status"] == "ok"
    assert (
        checks["cache folder"]["facts"]["path"] == str(cli.cache) and checks["cache folder"]["facts"]["mode"] == "700"
    )
    assert any(line.startswith("onnxruntime") for line in checks["runtimes"]["lines"])
    assert checks["cache"]["facts"]["entries"] == 1
    assert checks["settings"]["facts"]["REFIT_AGENT_HOME"] == str(cli.home)
    text = cli("doctor")
    assert text.code == 0 and "ok   versions: refit-agent " in text.out and text.out.endswith("\n")


def test_secrets_are_not_shown(cli: Cli) -> None:
    """The output is meant to be sent to somebody."""
    text = cli("doctor", REFIT_AGENT_TOKEN="hunter2").out
    assert "REFIT_AGENT_TOKEN=(not shown)" in text and "hunter2" not in text


def test_wrong_settings_fail(cli: Cli) -> None:
    """A setting that no command could use is a failed check, with what to do."""
    code, checks = _checks(cli, REFIT_AGENT_CACHE_QUOTA="lots")
    assert code == 1 and checks["settings"]["status"] == "fail" and checks["settings"]["advice"]
    ran = cli("doctor", REFIT_AGENT_LOG_LEVEL="loud")
    assert ran.code == 1 and "FAIL settings: REFIT_AGENT_LOG_LEVEL is 'loud'" in ran.out


def test_broken_folders_fail(cli: Cli) -> None:
    """A home that is a file, a cache that others may write to, a failure note that is garbage."""
    cli.home.write_text("")
    code, checks = _checks(cli)
    assert code == 1
    assert {name for name, check in checks.items() if check["status"] == "fail"} == {"cache folder", "state folder", "cache", "failures"}  # fmt: skip
    cli.home.unlink()
    cli.cache.mkdir(parents=True)
    cli.cache.chmod(0o777)
    failures = cli.home / "state" / "failures"
    failures.mkdir(parents=True)
    (failures / "x.json").write_bytes(b"\xff")
    code, checks = _checks(cli)
    assert code == 1 and "chmod 700" in checks["cache folder"]["advice"]
    assert "cannot be read" in checks["failures"]["lines"][0]
    assert cli("doctor").out.count("FAIL ") == 2


def test_damaged_engine_is_a_warning(cli: Cli, bundle: Path) -> None:
    """It is named, with the command that sets it aside."""
    path = Path(cli("path", bundle, "classifier").out.strip())
    path.write_bytes(b"")
    code, checks = _checks(cli)
    assert code == 0 and checks["cache"]["status"] == "warn" and "cache verify" in checks["cache"]["advice"]


def test_missing_runtimes() -> None:
    """Where nothing can run an engine, that is the failure; where a GPU or the CPU is left out, a warning."""
    gpu = Gpu(index=0, name="NVIDIA L4", uuid="GPU-1", compute_capability="8.9")
    ort = InstalledRuntime(module="onnxruntime", version="1.20")
    lean = InstalledRuntime(module="tensorrt_lean", version="11.4.0.106", cuda_major=13)

    def status(gpus: tuple[Gpu, ...], runtimes: tuple[InstalledRuntime, ...]) -> str:
        check = runtimes_check(Machine(os="linux", arch="x86_64", gpus=gpus, runtimes=runtimes))
        assert check.status == "ok" or "pip install" in check.advice
        return check.status

    assert status((), ()) == status((gpu,), ()) == "fail"
    assert status((gpu,), (ort,)) == status((), (lean,)) == "warn"
    assert status((gpu,), (lean,)) == status((), (ort,)) == status((gpu,), (lean, ort)) == "ok"
