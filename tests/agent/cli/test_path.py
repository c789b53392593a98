"""`refit-agent path`: the path and nothing else, and nothing imported that a hit does not need."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .command import Cli

_HEAVY = ("rich", "numpy", "structlog", "onnxruntime", "tensorrt_lean", "tensorrt", "cuda", "pynvml", "filelock", "logging")  # fmt: skip


def test_prints_the_path_alone(cli: Cli, bundle: Path) -> None:
    """Made on a miss, with the progress on standard error; on a hit there is nothing but the path."""
    made = cli("path", bundle, "classifier")
    assert made.code == 0, made.err
    assert made.out == made.out.strip() + "\n" and Path(made.out.strip()).is_file()
    assert "100% ready" in made.err
    hit = cli("path", bundle, "classifier")
    assert (hit.code, hit.out, hit.err) == (0, made.out, "")


def test_json_and_options_go_the_full_way(cli: Cli, bundle: Path) -> None:
    """With options it is the same command."""
    first = cli("path", bundle, "classifier", "--json", "--target", "cpu", "--deadline", "30")
    assert first.document["hit"] is False and first.document["runtime"] == "onnxruntime"
    second = cli("path", "--json", bundle, "classifier")
    assert second.document["hit"] is True and second.document["path"] == first.document["path"]


@pytest.mark.parametrize("options", [(), ("--target", "cpu")])
def test_a_hit_imports_nothing_heavy(cli: Cli, bundle: Path, options: tuple[str, ...]) -> None:
    """Neither the fast lane nor the one through click imports what only the making of engines needs."""
    path = cli("path", bundle, "classifier").out
    code = textwrap.dedent("""
        import sys
        from refit_agent.cli.main import main
        code = main(sys.argv[1:])
        print(*sys.modules, file=sys.stderr)
        sys.exit(code)
    """)
    command = [sys.executable, "-c", code, "path", str(bundle), "classifier", *options]
    for _ in range(2):  # the first asks the driver, since `-c` has another module search path than `-m`
        ran = subprocess.run(command, env=cli.env, capture_output=True, text=True, check=True, cwd="/")
        assert ran.stdout == path
    modules = ran.stderr.split()
    assert "refit_agent.provision" in modules
    assert [m for m in modules if m.split(".")[0] in _HEAVY or m == "refit_agent.make"] == []
    assert options or "click" not in modules


def test_errors(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """Errors leave standard output empty, or put one document there with --json."""
    missing = cli("path", tmp_path / "nowhere", "classifier")
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith("error [bundle-missing]: ") and "\n  hint: " in missing.err
    assert cli("path", bundle, "nope").code == 3
    document = cli("path", bundle, "nope", "--json").document
    assert document["error"]["code"] == "unknown-model" and document["error"]["facts"]["known"] == "'classifier'"


def test_a_library_that_prints_does_not_get_into_the_answer(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    """Standard output belongs to the path."""
    (tmp_path / "pynvml.py").write_text("print('noise')\nraise ImportError")
    ran = cli("path", bundle, "classifier", PYTHONPATH=str(tmp_path))
    assert Path(ran.out.strip()).is_file() and "noise" not in ran.out
    assert "noise" in ran.err


def test_unsafe_cache_is_refused(cli: Cli, bundle: Path) -> None:
    """A cache that others may write to is an error of the cache's family."""
    cli("path", bundle, "classifier")
    cli.cache.chmod(0o777)
    ran = cli("path", bundle, "classifier")
    assert (ran.code, ran.out) == (7, "") and "cache-insecure" in ran.err


def test_damaged_engine_is_made_anew_and_logged(cli: Cli, bundle: Path) -> None:
    """A damaged entry is set aside; the warning goes to standard error, the path alone to standard output."""
    path = Path(cli("path", bundle, "classifier").out.strip())
    path.write_bytes(b"garbage")
    again = cli("path", bundle, "classifier")
    assert again.out.strip() == str(path) and path.stat().st_size > 100
    assert "damaged" in again.err


@pytest.mark.skipif(sys.platform == "win32", reason="file names are text there")
def test_standard_output_that_cannot_be_written(cli: Cli, bundle: Path) -> None:
    """A full disk behind standard output is one clear line; a closed pipe is silence."""
    cli("path", bundle, "classifier")
    with open("/dev/full", "w") as full:
        ran = subprocess.run(cli.command("path", bundle, "classifier"), env=cli.env, stdout=full, stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == "error [output-failed]: Standard output cannot be written: No space left on device.\n"

    process = cli.start("cache", "list", "--json")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)
    process.stderr.close()
