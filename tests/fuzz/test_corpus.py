"""The corpus: everything in it is tried in every run of the tests, and it stays small."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import corpus, harness, nightly

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.fuzz"]

if sys.platform != "linux":
    pytest.skip("the harnesses need Unix sockets, FIFOs and /proc", allow_module_level=True)


def ran(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own, as it is run by hand."""
    env = {**os.environ, **more}
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("name", harness.NAMES)
def test_nothing_in_the_corpus_breaks_its_reader(name: str) -> None:
    """Seeds, what atheris added to them, and what once broke something. Some of it is meant to be taken: a harness
    that refuses everything would find nothing."""
    done = ran("--replay", name)
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    assert int(words[1]) > int(words[3]) > 0, done.stdout


def test_every_harness_has_a_corpus_and_no_corpus_is_without_a_harness() -> None:
    """Of seeds in any case."""
    assert sorted(harness.NAMES) == list(corpus.names())
    assert all(any(path.name.startswith("seed-") for path in corpus.inputs(name)) for name in harness.NAMES)


def test_the_corpus_stays_small() -> None:
    """A few hundred kilobytes in all."""
    sizes = [path.stat().st_size for name in harness.NAMES for path in corpus.inputs(name)]
    assert max(sizes) <= corpus.MOST_FILE_BYTES
    assert sum(sizes) <= corpus.MOST_BYTES


def test_a_defect_is_told_and_all_inputs_are_tried(tmp_path: Path) -> None:
    """Whatever is raised counts, and the next input is tried all the same."""
    for label, data in {"a": b"good", "b": b"bad", "c": b"worse", "d": b"refused"}.items():
        (tmp_path / label).write_bytes(data)

    def check(data: bytes) -> bool:
        if data == b"bad":
            raise KeyError("defect")
        assert data != b"worse"
        return data == b"good"

    outcome = corpus.replay(check, sorted(tmp_path.iterdir()))
    assert (outcome.inputs, outcome.sound, list(outcome.broken)) == (4, 1, ["b", "c"])


def test_what_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a defect like any other."""
    monkeypatch.setattr(corpus, "LONGEST_S", 1)
    (tmp_path / "a").write_bytes(b"")

    def check(data: bytes) -> bool:
        while True:
            pass

    (broken,) = corpus.replay(check, [tmp_path / "a"]).broken.values()
    assert isinstance(broken, TimeoutError)


def test_without_atheris_it_says_what_to_do() -> None:
    """And that the corpus can be tried without it."""
    if importlib.util.find_spec("atheris") is not None:
        pytest.skip("atheris is installed here")
    done = ran("--seconds", "1", "plan_header")
    assert done.returncode == 2
    assert "atheris is not installed" in done.stderr and "--replay" in done.stderr


def test_a_stranger_among_the_names_is_refused() -> None:
    """Instead of nothing being tried."""
    done = ran("--replay", "no_such_harness")
    assert done.returncode == 2 and "no_such_harness" in done.stderr


def test_a_crash_fails_the_night_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """With the input's place and the exception; so does a process that ends without any."""
    night = nightly.Night("n", 100, 9, 20, 10, 3, (), "", "")
    assert nightly.report([night], 10)
    kept = ROOT / "tests" / "fuzz" / "corpus" / "n" / "found-1"
    log = "before\n === Uncaught Python exception: ===\nKeyError: 'x'\n"
    assert not nightly.report([night._replace(crashes=(kept,), log=log)], 10)
    said = capsys.readouterr().out
    assert "1 crash(es)" in said and "corpus/n/found-1" in said and "KeyError: 'x'" in said and "before" not in said
    assert not nightly.report([night._replace(fault="it ended with -9 and left no input")], 10)


def test_atheris_finds_its_way(tmp_path: Path) -> None:
    """One second of the smallest harness, where atheris is installed."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed here")
    done = ran("--seconds", "1", "--keep", str(tmp_path), "plan_header")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[1].split()[1]) > 1000
