"""Engines from what `trt-cloud build` gives."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL
from foreign_plans import build_result, ordinary, require_sound, selected, trtexec_log
from plan_files import plan_bytes, tree
from refit_agent.authoring import notes as notes_module
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import (
    EngineRefused,
    FactsMissing,
    ImportRefused,
    OutputUnwritable,
    SourceUnreadable,
)
from refit_agent.authoring.foreign_entries import FolderEntries
from refit_agent.authoring.import_trt_cloud import import_build_result, know_build_result
from refit_agent.errors import PlanInvalid, RefitAgentError, UnknownModel
from refit_agent.progress import Progress

LINUX = EngineFacts(os=("linux",))


@pytest.fixture
def files() -> dict[str, bytes | str]:
    return ordinary()


def test_a_build_of_trt_cloud_is_chosen_on_its_gpu(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """From the zip to the selection; only the operating system has to be said."""
    source = build_result(tmp_path / "build_result.zip", files)
    assert know_build_result(source).missing == ("os",)
    made = import_build_result(bundle, MODEL, source, LINUX)
    (chosen, *_) = selected(bundle, MODEL).candidates
    assert chosen.engine == made.added.engine and chosen.tier == "this-gpu"
    engine = made.added.engine
    assert (engine.built_with, engine.compute_capabilities, engine.precision) == ("10.16.1.11", ("8.9",), "fp16")
    assert (engine.strip, engine.refit, engine.version_compatible) == ("plan", "identical", False)
    assert engine.weights_sha256 == require_sound(bundle).model(MODEL).weights_digest()
    assert made.plan == f"{source}:build_result/engine.trt" and made.remarks == ()
    assert not selected(bundle, MODEL, "8.6").candidates


def test_everything_else_is_kept_beside_the_bundle(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """In a folder named after the engine, nothing of it in what ships; a second import gets a folder of its own."""
    source = build_result(tmp_path / "b.zip", files)
    made = import_build_result(bundle, MODEL, source, LINUX)
    folder = tmp_path / "bundle.notes" / MODEL / "sm89-fp16-linux"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "002-metrics.json": files["metrics.json"].encode(),
        "003-build.log": files["build.log"].encode(),
        "004-trt_cloud.log": b"done\n",
        "005-timing.cache": bytes(1000),
    }
    assert {note.name: note.path for note in made.notes}["build_result/metrics.json"] == str(
        folder / "002-metrics.json"
    )
    assert not [name for name in tree(bundle) if "log" in name or "staging" in name]
    again = import_build_result(bundle, MODEL, source, LINUX, replace=True)
    assert Path(again.notes[0].path).parent == folder.with_name("sm89-fp16-linux-2")
    assert sorted(p.name for p in folder.parent.iterdir()) == ["sm89-fp16-linux", "sm89-fp16-linux-2"]


def test_notes_where_one_wants_them_or_not_at_all(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """Another folder, or none."""
    source = build_result(tmp_path / "b.zip", files)
    made = import_build_result(bundle, MODEL, source, LINUX, notes=tmp_path / "kept" / "here")
    assert len(list((tmp_path / "kept" / "here" / "sm89-fp16-linux").iterdir())) == 4
    made = import_build_result(bundle, MODEL, source, LINUX, notes=False, replace=True)
    assert {note.reason for note in made.notes} == {"notes are not wanted"}
    assert not (tmp_path / "bundle.notes").exists()


def test_notes_are_bounded(
    bundle: Path, tmp_path: Path, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In size each, in size together and in number; what is left out is told with its reason."""
    monkeypatch.setattr(notes_module, "_MOST_BYTES", 900)
    monkeypatch.setattr(notes_module, "_MOST_BYTES_IN_ALL", 1000)
    monkeypatch.setattr(notes_module, "_MOST_NOTES", 3)
    files = {
        "engine.trt": plan_bytes(),
        "build.log": trtexec_log() + "x" * 1000,
        "a": "x" * 600,
        "b": "x" * 600,
        "c": "x",
        "d": "x",
        "e": "x",
    }
    made = import_build_result(bundle, MODEL, build_result(tmp_path / "b.zip", files), LINUX)
    told = {note.name.rpartition("/")[2]: note.reason for note in made.notes}
    assert told["build.log"] == "it is larger than 900 bytes" and told["a"] == told["c"] == told["d"] == ""
    assert "all notes together" in told["b"] and "there are 3 already" in told["e"]


def test_the_unpacked_folder_is_as_good_as_the_zip(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """Which is what newer clients download."""
    source = build_result(tmp_path / "b.zip", files)
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "unpacked")
    made = import_build_result(bundle, MODEL, tmp_path / "unpacked", LINUX)
    assert selected(bundle, MODEL).candidates[0].engine == made.added.engine
    assert made.plan == str(tmp_path / "unpacked" / "build_result" / "engine.trt")
    assert len([note for note in made.notes if note.path]) == 4
    assert (tmp_path / "unpacked" / "build_result" / "engine.trt").read_bytes() == plan_bytes()


@pytest.mark.parametrize("name", ["model.plan", "deep/er/ENGINE", "notes.txt"])
def test_a_plan_is_known_by_what_it_is(bundle: Path, tmp_path: Path, name: str) -> None:
    """Whatever its name, with the log in any file, and the rest said by the caller where there is no log."""
    source = build_result(tmp_path / "b.zip", {name: plan_bytes(), "engine.trt": "no plan at all"})
    known = know_build_result(source)
    assert known.missing == ("os", "compute_capabilities", "version_compatible", "precision", "strip", "refit")
    said = EngineFacts(
        os=("windows",),
        compute_capabilities=("8.6",),
        version_compatible=True,
        precision="fp16",
        strip="plan",
        refit="any",
    )
    made = import_build_result(bundle, MODEL, source, said)
    assert made.remarks == ("no log of trtexec tells how it was built, so what is said of it was not checked",)
    chosen = selected(bundle, MODEL, "8.6", system="windows", runtime=("tensorrt_lean", "11.4.0.106")).candidates[0]
    assert chosen.engine == made.added.engine


def test_a_plan_of_tensorrt_rtx(bundle: Path, tmp_path: Path) -> None:
    """Known by its other magic."""
    source = build_result(
        tmp_path / "b.zip", {"engine.trt": plan_bytes(version=(1, 7, 1, 116), runtime="tensorrt-rtx")}
    )
    said = EngineFacts(os=("windows",), min_compute_capability="8.0", precision="fp16", strip="plan", refit="any")
    made = import_build_result(bundle, MODEL, source, said)
    assert made.added.engine.runtime == "tensorrt-rtx"


# ---------------------------------------------------------------- which plan


def test_several_plans(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """All are named; one is chosen by its name, or its path, and has only its own log."""
    files |= {"other.trt": plan_bytes(version=(10, 9, 0, 34)), "other.log": trtexec_log("--stripWeights", version="100900", build="", save="/x/other.trt", gpu="NVIDIA L4")}  # fmt: skip
    source = build_result(tmp_path / "b.zip", files)
    with pytest.raises(ImportRefused, match=r"2 plans: build_result/engine\.trt, build_result/other\.trt") as caught:
        know_build_result(source)
    assert "--entry" in caught.value.hint
    assert know_build_result(source, entry="other.trt").facts.gpu == "NVIDIA L4"
    assert know_build_result(source, entry="build_result/engine.trt").facts.gpu == "NVIDIA GeForce RTX 4090"
    with pytest.raises(ImportRefused, match=r"no plan 'none'; it has build_result/engine\.trt"):
        know_build_result(source, entry="none")
    made = import_build_result(bundle, MODEL, source, LINUX, entry="other.trt")
    assert made.added.engine.built_with == "10.9.0.34"
    assert "build_result/engine.trt" in {note.name for note in made.notes if note.path}


def test_a_name_in_two_folders(tmp_path: Path) -> None:
    """Only the whole path tells them apart."""
    source = build_result(tmp_path / "b.zip", {"a/engine.trt": plan_bytes(), "b/engine.trt": plan_bytes()})
    with pytest.raises(ImportRefused, match="2 plans"):
        know_build_result(source, entry="engine.trt")
    know_build_result(source, entry="build_result/b/engine.trt")


def test_with_several_plans_a_log_of_neither_counts_for_none(tmp_path: Path, files: dict[str, Any]) -> None:
    """It could be the log of the other."""
    source = build_result(
        tmp_path / "b.zip", files | {"engine.trt": plan_bytes(), "x.trt": plan_bytes(), "y.trt": plan_bytes()}
    )
    assert know_build_result(source, entry="x.trt").facts.gpu is None


def test_the_ranks_of_a_tensorrt_llm_engine(tmp_path: Path) -> None:
    """Are one engine, and another importer's."""
    source = build_result(
        tmp_path / "b.zip", {"rank0.engine": plan_bytes(), "rank1.engine": plan_bytes(), "config.json": "{}"}
    )
    with pytest.raises(ImportRefused) as caught:
        know_build_result(source)
    assert "TensorRT-LLM" in caught.value.hint


def test_no_plan(tmp_path: Path) -> None:
    """A failed build; a zip in a zip, which is never opened."""
    source = build_result(tmp_path / "b.zip", {"build.log": trtexec_log()})
    with pytest.raises(ImportRefused, match="no plan") as caught:
        know_build_result(source)
    assert "failed" in caught.value.hint
    outer = tmp_path / "outer.zip"
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(build_result(tmp_path / "b.zip", ordinary()), "4711.response")
    with pytest.raises(ImportRefused, match="no plan") as caught:
        know_build_result(outer)
    assert "another zip, 4711.response" in caught.value.hint


def test_a_plan_that_is_cut_short(tmp_path: Path) -> None:
    """Its header and its size in the zip differ."""
    source = build_result(tmp_path / "b.zip", {"engine.trt": plan_bytes()[:-1]})
    with pytest.raises(PlanInvalid, match="gives 40000 bytes and it has 39999"):
        know_build_result(source)


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("log", "said", "says"),
    [
        (trtexec_log(version="100900", build=""), {}, "says that version 10.9.0 built it, and its header says 10.16.1.11"),
        (trtexec_log(build=" [b12]"), {}, "version 10.16.1.12"),
        (trtexec_log(), {"gpu": "NVIDIA L4"}, "gpu is said to be NVIDIA L4, and the log of trtexec says NVIDIA GeForce RTX 4090"),
        (trtexec_log(), {"compute_capabilities": ("8.6",)}, "compute_capabilities is said to be 8.6"),
        (trtexec_log(), {"refit": "any"}, "refit is said to be any, and the log of trtexec says identical"),
        (trtexec_log(), {"version_compatible": True}, "version_compatible is said to be True"),
        (trtexec_log("--fp16"), {}, "has no --stripWeights"),
        (trtexec_log("--fp16"), {"strip": "plan"}, "has no --stripWeights"),
        (trtexec_log(), {"strip": "none"}, "strip is said to be none, and the log of trtexec says plan"),
        (trtexec_log(program="trtexec.exe"), {"os": ("linux",)}, "os is said to be linux, and the log of trtexec says windows"),
    ],
)  # fmt: skip
def test_log_header_and_caller_must_agree(tmp_path: Path, log: str, said: dict[str, Any], says: str) -> None:
    """Each contradiction in words; precision alone is a matter of words."""
    source = build_result(tmp_path / "b.zip", {"engine.trt": plan_bytes(), "build.log": log})
    with pytest.raises(EngineRefused) as caught:
        know_build_result(source, EngineFacts(**said))
    assert says in str(caught.value) and "engine.trt" in str(caught.value)


def test_a_plan_with_its_weights_only_if_one_says_so(bundle: Path, tmp_path: Path) -> None:
    """Neither the log nor what the bytes look like lets it pass as stripped."""
    full = {"engine.trt": plan_bytes(weights=True)}
    source = build_result(tmp_path / "b.zip", full | {"build.log": trtexec_log("--fp16")})
    before = tree(bundle)
    with pytest.raises(EngineRefused) as caught:
        import_build_result(bundle, MODEL, source, LINUX)
    assert "--strip none" in caught.value.hint
    lying = build_result(tmp_path / "c.zip", full | {"build.log": trtexec_log()})
    with pytest.raises(EngineRefused, match=r"c\.zip:build_result/engine\.trt was not added: it seems to hold weights"):
        import_build_result(bundle, MODEL, lying, LINUX)
    assert tree(bundle) == before
    made = import_build_result(bundle, MODEL, source, EngineFacts(os=("linux",), strip="none"))
    assert made.added.engine.strip == "none" and selected(bundle, MODEL).candidates[0].engine == made.added.engine


def test_logs_that_do_not_agree(tmp_path: Path) -> None:
    """What they disagree on is not believed of either."""
    files = {"engine.trt": plan_bytes(), "a.log": trtexec_log(), "b.log": trtexec_log(gpu="NVIDIA L4")}
    known = know_build_result(build_result(tmp_path / "b.zip", files))
    assert known.facts.gpu is None and known.facts.compute_capabilities == ("8.9",)


def test_precision_is_the_caller_s_word(tmp_path: Path, files: dict[str, Any]) -> None:
    """It is for people."""
    source = build_result(tmp_path / "b.zip", files)
    assert know_build_result(source, EngineFacts(precision="fp16+int8")).facts.precision == "fp16+int8"


# ---------------------------------------------------------------- nothing half-done


def _damaged_plan(tmp_path: Path) -> Path:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("engine.trt", plan_bytes())
        archive.writestr("build.log", trtexec_log())
    (tmp_path / "b.zip").write_bytes(out.getvalue().replace(bytes(50), bytes(49) + b"\1", 1))
    return tmp_path / "b.zip"


def _damaged_note(tmp_path: Path) -> Path:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("engine.trt", plan_bytes())
        archive.writestr("metrics.json", "{}" * 1000)
    (tmp_path / "b.zip").write_bytes(out.getvalue().replace(b"{}{}", b"{}[]", 1))
    return tmp_path / "b.zip"


def _linked(tmp_path: Path) -> Path:
    made = zipfile.ZipInfo("build_result/link")
    made.external_attr = (stat.S_IFLNK | 0o777) << 16
    source = build_result(tmp_path / "b.zip", ordinary())
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(made, "/etc/passwd")
    return source


def _folder_with_link(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "engine.trt").write_bytes(plan_bytes())
    (folder / "secret").symlink_to("/etc/passwd")
    return folder


def _no_zip(tmp_path: Path) -> Path:
    (tmp_path / "b.zip").write_bytes(b"PK\3\4 and no more")
    return tmp_path / "b.zip"


@pytest.mark.parametrize("make", [_damaged_plan, _damaged_note, _linked, _folder_with_link, _no_zip])
def test_a_refused_source_leaves_nothing(bundle: Path, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Neither in the bundle nor beside it."""
    source = make(tmp_path)
    before, beside = tree(bundle), sorted(os.listdir(tmp_path))
    said = EngineFacts(
        os=("linux",),
        compute_capabilities=("8.9",),
        version_compatible=False,
        precision="fp16",
        strip="plan",
        refit="identical",
    )
    with pytest.raises(ImportRefused):
        import_build_result(bundle, MODEL, source, said)
    assert tree(bundle) == before and sorted(os.listdir(tmp_path)) == beside


def test_a_folder_that_is_too_full(tmp_path: Path) -> None:
    """Somebody's home, given by mistake."""
    for number in range(1001):
        (tmp_path / f"{number}").touch()
    with pytest.raises(ImportRefused, match="more than 1000"):
        know_build_result(tmp_path)


def test_before_the_work(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """Facts that nobody gave, all in one error; a model that is not there; what cannot be true of a plan."""
    source = build_result(tmp_path / "b.zip", files)
    before = tree(bundle)
    steps: list[Progress] = []
    with pytest.raises(FactsMissing, match="os"):
        import_build_result(bundle, MODEL, source, progress=steps.append)
    with pytest.raises(UnknownModel, match=MODEL):
        import_build_result(bundle, "other", source, LINUX, progress=steps.append)
    with pytest.raises(EngineRefused, match="a lean runtime loads version-compatible plans alone"):
        know_build_result(source, EngineFacts(lean_runtime="a.so"))
    assert tree(bundle) == before and not steps and not (tmp_path / "bundle.notes").exists()


def test_a_folder_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """Longer or shorter than it was."""
    (tmp_path / "a").write_bytes(b"12345")
    source = FolderEntries(str(tmp_path))
    for content in (b"1234", b"123456"):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ImportRefused, match="changed while it was read"):
            list(source.chunks(source.entries[0]))


def test_one_place_for_the_notes_of_several_bundles(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """Nothing that was kept is written over."""
    shutil.copytree(bundle, tmp_path / "other")
    source = build_result(tmp_path / "b.zip", files)
    for root in (bundle, tmp_path / "other"):
        import_build_result(root, MODEL, source, LINUX, notes=tmp_path / "notes")
    assert sorted(p.name for p in (tmp_path / "notes").iterdir()) == ["sm89-fp16-linux", "sm89-fp16-linux-2"]


def test_stopped_in_the_middle(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """What the callback raises ends the work wherever it is, and nothing is left."""
    source = build_result(tmp_path / "b.zip", files)
    before, beside = tree(bundle), sorted(os.listdir(tmp_path))
    seen: list[float] = []

    class Stop(Exception):  # noqa: N818
        pass

    for limit in range(100):
        count = 0

        def stop(step: Progress, limit: int = limit) -> None:
            nonlocal count
            seen.append(step.fraction)
            count += 1
            if count > limit:
                raise Stop

        seen.clear()
        try:
            import_build_result(bundle, MODEL, source, LINUX, progress=stop)
        except Stop:
            assert tree(bundle) == before and sorted(os.listdir(tmp_path)) == beside
        else:
            break
    assert limit > 3 and seen == sorted(seen) and seen[-1] == 1.0


def test_notes_that_cannot_be_written(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """The bundle stays as it was."""
    (tmp_path / "bundle.notes").write_text("a file in the way")
    before = tree(bundle)
    with pytest.raises(OutputUnwritable, match="notes"):
        import_build_result(bundle, MODEL, build_result(tmp_path / "b.zip", files), LINUX)
    assert tree(bundle) == before


def test_a_full_disk(mounted: Callable[[str], Path], bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """While the plan is unpacked into the bundle's folder."""
    small = mounted("size=1m")
    shutil.copytree(bundle, small / "bundle")
    before = tree(small / "bundle")
    source = build_result(tmp_path / "b.zip", files | {"engine.trt": plan_bytes(size=8 << 20)})
    with pytest.raises(RefitAgentError, match="No space left"):
        import_build_result(small / "bundle", MODEL, source, LINUX, notes=tmp_path / "notes")
    assert tree(small / "bundle") == before and not (tmp_path / "notes").exists()


def test_what_is_not_there(tmp_path: Path) -> None:
    """In our own words."""
    with pytest.raises(SourceUnreadable):
        know_build_result(tmp_path / "none.zip")


def test_a_signature_ends_with_the_change(bundle: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    """As with every change of the manifest."""
    (bundle / "bundle.sig").write_text("a signature")
    import_build_result(bundle, MODEL, build_result(tmp_path / "b.zip", files), LINUX)
    assert not (bundle / "bundle.sig").exists()
    assert len(json.loads((bundle / "bundle.json").read_text())["models"][0]["engines"]) == 2
