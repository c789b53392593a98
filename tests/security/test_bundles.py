"""What a hostile bundle can name, and what it can have printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bundles import MODEL, edit, model_of
from refit_agent.errors import BundleError, RefitAgentError, UnsafePath
from refit_agent.provision import ensure_engine
from service.running import Running, until

FOREIGN = ["/proc/self/environ", "/proc/self/mem", "/proc/self/exe", "/dev/zero", "/etc/passwd"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("target", FOREIGN)
@pytest.mark.parametrize("part", ["plans/mlp.cpu", "models/mlp.onnx", "golden/x.npy"])
def test_a_bundle_reads_nothing_outside_its_folder(bundle: Path, part: str, target: str) -> None:
    """Not by a link to this process's own files, nor to a device that never ends."""
    (bundle / part).unlink()
    (bundle / part).symlink_to(target)
    with pytest.raises(UnsafePath):
        ensure_engine(bundle, MODEL, service=False)


@pytest.mark.parametrize("part", ["plans", "models", "golden"])
def test_a_folder_of_a_bundle_does_not_lead_out(bundle: Path, tmp_path: Path, part: str) -> None:
    """Although the files there are the right ones: whoever owns the other folder could exchange them."""
    (bundle / part).rename(tmp_path / "outside")
    (bundle / part).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath):
        ensure_engine(bundle, MODEL, service=False)


def test_a_bundle_cannot_spoil_what_another_bundle_gets(bundle: Path, tmp_path: Path) -> None:
    """One with the same plan and the same weights, but told to put them elsewhere, has entries of its own."""
    hostile = tmp_path / "hostile"
    subprocess.run(["cp", "-r", bundle, hostile], check=True)
    edit(bundle, lambda d: model_of(d).update(golden=[]))
    edit(hostile, lambda d: model_of(d).update(golden=[]))
    edit(hostile, lambda d: model_of(d)["engines"][0].update(weight_map={"w1": {"from": "w2"}, "w2": {"from": "w1"}}))
    with ensure_engine(bundle, MODEL, service=False) as sound:
        wanted = {p.name: p.read_bytes() for p in sound.path.parent.iterdir() if p.name != "entry.json"}
    try:
        with ensure_engine(hostile, MODEL, service=False) as engine:
            assert engine.key != sound.key
    except RefitAgentError:
        pass  # refused is as good
    with ensure_engine(bundle, MODEL, service=False) as again:
        assert again.hit
        assert {p.name: p.read_bytes() for p in again.path.parent.iterdir() if p.name != "entry.json"} == wanted


EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202eb\rc"


def _commands(bundle: Path) -> list[list[str]]:
    return [
        ["explain", str(bundle)],
        ["provision", str(bundle)],
        ["provision", str(bundle), "--progress=json"],
        ["provision", str(bundle), "--model", EVIL],
        ["path", str(bundle), EVIL],
        ["verify", str(bundle)],
        ["bundle", "inspect", str(bundle)],
        ["bundle", "size", str(bundle)],
        ["register", str(bundle)],
        ["registered"],
        ["status"],
        ["watch", "--until-idle"],
        ["cache", "list"],
        ["unregister", str(bundle)],
        ["doctor"],
    ]


def test_no_name_of_a_bundle_reaches_a_terminal_as_it_is(bundle: Path, home: Path) -> None:
    """Escape sequences would move the cursor, rename the window or turn the text round."""

    def rename(document: dict[str, object]) -> None:
        model = model_of(document)
        document["app"].update(name=EVIL, version=EVIL)  # type: ignore[attr-defined]
        model.update(name=EVIL, version=EVIL, default_profile=EVIL)
        model["engines"][0].update(profile=EVIL, precision=EVIL, gpu=EVIL)
        model["golden"][0]["profile"] = EVIL

    edit(bundle, rename)
    shown: set[str] = set()
    with Running(home).start() as running:
        for command in _commands(bundle):
            done = subprocess.run(
                [sys.executable, "-m", "refit_agent", *command],
                env=running.env,
                cwd="/",
                capture_output=True,
                timeout=60,
            )
            said = (done.stdout + done.stderr).decode()
            assert not set(said) & set("\x1b\x07\x9b\u202e\r"), command
            shown |= {command[0]} if "owned" in said else set()
        assert shown >= {"explain", "provision", "bundle", "registered", "cache"}
        log = (home / "state/logs/service.log").read_text()
        assert "\x1b" not in log
        assert all(json.loads(line) for line in log.splitlines())
        until(lambda: running.status["idle"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are of POSIX systems")
@pytest.mark.parametrize("part", ["plans/mlp.cpu", "models/mlp.onnx", "golden/x.npy"])
def test_a_pipe_in_a_file_s_place_holds_up_nobody(bundle: Path, part: str) -> None:
    """Whoever opens one waits for its writer."""
    (bundle / part).unlink()
    os.mkfifo(bundle / part)
    with pytest.raises(BundleError):
        ensure_engine(bundle, MODEL, service=False, deadline_s=20)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="only Linux can be told which process to end")
def test_when_memory_runs_out_the_worker_goes_first(bundle: Path, evil_runtime: Callable[[str], Path]) -> None:
    """And no app of the user's, which may hold what is not saved."""
    evil_runtime('raise ImportError("its score is " + open("/proc/self/oom_score_adj").read())')
    with pytest.raises(RefitAgentError) as caught:
        ensure_engine(bundle, MODEL, service=False)
    assert "its score is 1000" in f"{caught.value} {caught.value.hint}"
