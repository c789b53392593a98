"""`refit-agent demo`: the whole way, and its folder."""

from __future__ import annotations

from pathlib import Path

from .command import Cli


def test_twice(cli: Cli) -> None:
    """Every run shows the making of the engine, the comparison and the hit."""
    for _ in range(2):
        ran = cli("demo", "--json")
        found = ran.document
        assert ran.code == 0 and found["ok"] is True, ran
        assert found["first_hit"] is False and found["second_hit"] is True
        assert found["agree"] is True and found["relative_error"] <= found["tolerance"]
        assert 0 < found["second_seconds"] < found["first_seconds"]
        assert Path(found["engine"]).is_file() and Path(found["bundle"], "bundle.json").is_file()
        assert found["candidates"][0]["reason"]


def test_for_people(cli: Cli) -> None:
    """Six steps, with the places at the end and the progress apart."""
    ran = cli("demo")
    assert ran.code == 0
    assert [line[:2] for line in ran.out.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3.", "4.", "5.", "6."]
    assert "the results agree" in ran.out and "a hit, answered in" in ran.out
    assert f"   cache   {cli.cache}" in ran.out and "classifier: 100% ready" in ran.err
    assert sorted(p.name for p in (cli.home / "state" / "demo").iterdir()) == ["bundle"]


def test_a_folder_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    """--dir takes a new or empty folder or an earlier demo's, a damaged one too, and nobody else's."""
    mine = tmp_path / "mine"
    mine.mkdir()
    assert cli("demo", "--dir", mine).code == 0
    (mine / "classifier" / "classifier.onnx").write_bytes(b"damaged")
    assert cli("demo", "--dir", mine).code == 0
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("precious")
    refused = cli("demo", "--dir", theirs, "--no-keep", "--json")
    assert refused.code == 2 and refused.document["error"]["code"] == "setting-invalid"
    assert (theirs / "thesis.txt").read_text() == "precious"


def test_no_keep(cli: Cli, tmp_path: Path) -> None:
    """Nothing of the demo stays."""
    ran = cli("demo", "--dir", tmp_path / "mine", "--no-keep")
    assert ran.code == 0 and "deleted" in ran.out
    assert not (tmp_path / "mine").exists()
    assert cli("cache", "list", "--json").document["entries"] == []


def test_two_at_once(cli: Cli) -> None:
    """Two demos in the same folder do not get into each other's way."""
    running = [cli.start("demo", "--json") for _ in range(2)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


def test_without_onnx_runtime(cli: Cli, tmp_path: Path) -> None:
    """What is missing is named, with the command that installs it."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    ran = cli("demo", PYTHONPATH=str(tmp_path))
    assert ran.code == 5 and "pip install 'refit-agent[cpu]'" in ran.err


def test_unwritable_place(cli: Cli) -> None:
    """A place where nothing can be written is said to be one."""
    ran = cli("demo", "--dir", "/proc/refit-agent-demo/bundle")
    assert ran.code == 2 and "cannot be written" not in ran.out and "can be written" in ran.err
