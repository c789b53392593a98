"""Engines from EPContext models of ONNX Runtime: made with the onnx package, and by our own exporter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from bundles import MODEL, SIZE, make_bundle, make_onnx, python
from foreign_plans import require_sound, selected
from plan_files import located, plan_bytes, tree
from refit_agent.authoring.engine_facts import EngineFacts
from refit_agent.authoring.errors import EngineRefused, FactsMissing, ImportRefused, SourceUnreadable
from refit_agent.authoring.import_ep_context import import_context_model, know_context_model
from refit_agent.errors import OnnxMalformed, PlanInvalid, RefitAgentError, UnknownModel
from refit_agent.manifest import Engine
from refit_agent.runtimes.ep_context import context_model
from refit_agent.weights.wire_writer import blob, integer, text, varint

STRIPPED = "TensorrtExecutionProvider_TRTKernel_graph_1_sm89.stripped.engine"
#: What the node and a stripped engine's name leave open.
REST = EngineFacts(os=("linux",), version_compatible=False, precision="fp16")
WHOLE = EngineFacts(os=("linux",), version_compatible=False, precision="fp16", strip="plan", refit="any")


def value_infos() -> tuple[list[Any], list[Any]]:
    return [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZE])], [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZE])
    ]


def context_node(**attributes: Any) -> Any:
    """The node as TensorRT's provider writes it, with changes; None leaves an attribute out."""
    given = {
        "embed_mode": 0,
        "ep_cache_context": STRIPPED,
        "hardware_architecture": "89",
        "onnx_model_filename": "mlp.onnx",
        "main_context": 1,
        "partition_name": "graph_1",
        "ep_sdk_version": "101601",
        "source": "TensorrtExecutionProvider",
    } | attributes
    kept = {name: value for name, value in given.items() if value is not None}
    return helper.make_node("EPContext", ["x"], ["y"], "graph_1", domain="com.microsoft", **kept)


def write_model(path: Path, *nodes: Any) -> Path:
    inputs, outputs = value_infos()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(list(nodes), "g", inputs, outputs), opset_imports=opsets)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    """A folder as ONNX Runtime leaves it: the model, and an engine in a file."""
    made = tmp_path / "cache"
    made.mkdir()
    shutil.copy(bundle / "models" / "mlp.onnx", made)
    (made / STRIPPED).write_bytes(plan_bytes())
    return made


# ---------------------------------------------------------------- what it tells


def test_a_weight_stripped_engine_in_a_file(bundle: Path, folder: Path) -> None:
    """The node tells of GPU, provider and version, the name that it was stripped."""
    source = write_model(folder / "mlp_ctx.onnx", context_node())
    assert know_context_model(source).missing == ("os", "version_compatible", "precision")
    made = import_context_model(bundle, MODEL, source, REST)
    engine = made.added.engine
    assert (engine.runtime, engine.compute_capabilities, engine.strip, engine.refit) == ("tensorrt", ("8.9",), "plan", "identical")  # fmt: skip
    assert engine.weights_sha256 == require_sound(bundle).model(MODEL).weights_digest()
    assert selected(bundle, MODEL).candidates[0].engine == engine
    assert made.plan == str(folder / STRIPPED) and made.remarks == () and made.notes == ()
    assert (folder / STRIPPED).read_bytes() == plan_bytes()


def test_an_embedded_engine(bundle: Path, folder: Path) -> None:
    """Byte for byte, with what its node does not tell; whether it was stripped is one of these."""
    content = plan_bytes(size=3 << 20)
    source = write_model(folder / "mlp_ctx.onnx", context_node(embed_mode=1, ep_cache_context=content))
    (folder / STRIPPED).unlink()
    assert know_context_model(source).missing == ("os", "version_compatible", "precision", "strip", "refit")
    made = import_context_model(bundle, MODEL, source, WHOLE, compression="none")
    assert (bundle / made.added.engine.path).read_bytes() == content
    assert selected(bundle, MODEL).candidates[0].engine == made.added.engine


def test_embedding_is_the_default(bundle: Path, folder: Path) -> None:
    """As in ONNX Runtime's schema of the node."""
    source = write_model(folder / "c.onnx", context_node(embed_mode=None, ep_cache_context=plan_bytes()))
    assert know_context_model(source, WHOLE).missing == ()


def test_what_our_own_exporter_writes(bundle: Path, folder: Path) -> None:
    """The way back of runtimes.ep_context."""
    (folder / "engine.plan").write_bytes(plan_bytes())
    engine = Engine(path="p", size=1, sha256="0" * 64, plan_size=1, runtime="tensorrt", built_with="10.16.1")
    data = context_model(located(folder / "mlp.onnx"), engine, "engine.plan", "10.16.1.11", "8.9")
    (folder / "context.onnx").write_bytes(data)
    made = import_context_model(bundle, MODEL, folder / "context.onnx", WHOLE)
    assert selected(bundle, MODEL).candidates[0].engine == made.added.engine


@pytest.mark.parametrize(
    ("written", "capabilities", "least"),
    [
        ("89", ("8.9",), None),
        ("90", ("9.0",), None),
        ("120", ("12.0",), None),
        ("100", ("10.0",), None),
        ("80+", None, "8.0"),
        ("86+", None, "8.6"),
        (None, None, None),
        ("", None, None),
    ],
)
def test_the_gpus(folder: Path, written: str | None, capabilities: tuple[str, ...] | None, least: str | None) -> None:
    """The last digit is the minor number; a plus means Ampere and later."""
    facts = know_context_model(write_model(folder / "c.onnx", context_node(hardware_architecture=written))).facts
    assert (facts.compute_capabilities, facts.min_compute_capability) == (capabilities, least)
    assert facts.hardware_compatibility == ("none" if least is None else "ampere-plus")


def test_an_early_name_of_the_gpus(folder: Path) -> None:
    """Which may not say something else."""
    early = context_node(hardware_architecture=None, hardware_arch="86")
    assert know_context_model(write_model(folder / "c.onnx", early)).facts.compute_capabilities == ("8.6",)
    both = context_node(hardware_arch="86")
    with pytest.raises(ImportRefused, match="'89 and 86', which is no compute capability"):
        know_context_model(write_model(folder / "c.onnx", both))


@pytest.mark.parametrize("written", ["8.9", "sm89", "9", "80++", "-89", "8999", "\u0668\u0669"])
def test_what_is_no_compute_capability(folder: Path, written: str) -> None:
    """Is refused, not guessed."""
    source = write_model(folder / "c.onnx", context_node(hardware_architecture=written))
    with pytest.raises(ImportRefused, match="which is no compute capability"):
        know_context_model(source)


@pytest.mark.parametrize("name", ["NvTensorRTRTXExecutionProvider", "NvTensorRtRtxExecutionProvider", "TensorrtRtxExecutionProvider"])  # fmt: skip
def test_tensorrt_rtx_by_all_its_names(bundle: Path, folder: Path, name: str) -> None:
    """It writes 80+ always, 1.0 for its version, and has no main context."""
    (folder / "e.engine").write_bytes(plan_bytes(version=(1, 7, 1, 116), runtime="tensorrt-rtx"))
    node = context_node(source=name, ep_sdk_version="1.0", hardware_architecture="80+", main_context=0, ep_cache_context="e.engine")  # fmt: skip
    said = EngineFacts(os=("linux",), precision="fp16", strip="plan", refit="any")
    made = import_context_model(bundle, MODEL, write_model(folder / "c.onnx", node), said)
    chosen = selected(bundle, MODEL, "12.0", runtime=("tensorrt_rtx", "1.7.1.116")).candidates[0]
    assert chosen.engine == made.added.engine and chosen.tier == "rtx"


def test_older_providers_name_neither_themselves_nor_a_version(bundle: Path, folder: Path) -> None:
    """Then the header tells both."""
    node = context_node(source=None, ep_sdk_version=None, main_context=None, partition_name=None)
    made = import_context_model(bundle, MODEL, write_model(folder / "c.onnx", node), REST)
    assert made.added.engine.built_with == "10.16.1.11"


# ---------------------------------------------------------------- which model it is of


def test_the_onnx_file_beside_it_must_be_the_bundle_s(bundle: Path, folder: Path) -> None:
    """Not another with the same inputs and outputs."""
    make_onnx(folder / "mlp.onnx", seed=7)
    before = tree(bundle)
    source = write_model(folder / "c.onnx", context_node())
    with pytest.raises(EngineRefused, match=r"built from .*mlp\.onnx, which is not the models/mlp\.onnx of the bundle"):
        import_context_model(bundle, MODEL, source, REST)
    with pytest.raises(EngineRefused):
        import_context_model(bundle, MODEL, source, REST, onnx=folder / "mlp.onnx")
    assert tree(bundle) == before
    import_context_model(bundle, MODEL, source, REST, onnx=bundle / "models" / "mlp.onnx")


def test_an_onnx_file_that_is_not_there(bundle: Path, folder: Path) -> None:
    """The caller gives it."""
    (folder / "mlp.onnx").unlink()
    source = write_model(folder / "c.onnx", context_node())
    with pytest.raises(ImportRefused, match=r"built from mlp\.onnx, which is not beside it") as caught:
        import_context_model(bundle, MODEL, source, REST)
    assert "--onnx" in caught.value.hint
    with pytest.raises(SourceUnreadable):
        import_context_model(bundle, MODEL, source, REST, onnx=folder / "mlp.onnx")
    import_context_model(bundle, MODEL, source, REST, onnx=bundle / "models" / "mlp.onnx")


def test_a_node_that_names_no_onnx_file(bundle: Path, folder: Path) -> None:
    """Names are all that can be compared, which is said."""
    source = write_model(folder / "c.onnx", context_node(onnx_model_filename=None))
    assert "only names were compared" in import_context_model(bundle, MODEL, source, REST).remarks[0]


def test_external_data_must_be_the_bundle_s_too(tmp_path: Path, folder: Path) -> None:
    """The ONNX file is the same whatever the weights are."""
    root = make_bundle(tmp_path / "external", external=True)
    for name in ("mlp.onnx", "w1.bin"):
        shutil.copy(root / "models" / name, folder)
    source = write_model(folder / "c.onnx", context_node())
    (folder / "w1.bin").write_bytes(bytes((folder / "w1.bin").stat().st_size))
    with pytest.raises(EngineRefused, match=r"w1\.bin, which is not the models/w1\.bin of the bundle"):
        import_context_model(root, MODEL, source, REST)
    shutil.copy(root / "models" / "w1.bin", folder)
    import_context_model(root, MODEL, source, REST)


def test_inputs_and_outputs_of_another_model(bundle: Path, folder: Path) -> None:
    """Said with both interfaces."""
    for changed, says in (("output", "inputs x and outputs z"), ("input", "inputs z and outputs y")):
        model = onnx.load(write_model(folder / "c.onnx", context_node()))
        getattr(model.graph, changed)[0].name = "z"
        (folder / "c.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(EngineRefused, match=rf"{says}, and models/mlp\.onnx has x and y"):
            import_context_model(bundle, MODEL, folder / "c.onnx", REST)


def test_a_model_with_an_input_that_the_engine_does_not_need(bundle: Path, folder: Path) -> None:
    """It has been left out, and that is no other model."""
    model = onnx.load(write_model(folder / "c.onnx", context_node()))
    del model.graph.input[:]
    (folder / "c.onnx").write_bytes(model.SerializeToString())
    import_context_model(bundle, MODEL, folder / "c.onnx", REST)


def test_an_unknown_model(bundle: Path, folder: Path) -> None:
    """With the names of those there are."""
    with pytest.raises(UnknownModel, match=MODEL):
        import_context_model(bundle, "other", write_model(folder / "c.onnx", context_node()), REST)


# ---------------------------------------------------------------- contradictions and what is refused


@pytest.mark.parametrize(
    ("changes", "said", "says"),
    [
        ({"ep_sdk_version": "100900"}, {}, "says that version 10.9.0 built it, and its header says 10.16.1.11"),
        ({"ep_sdk_version": "8.6"}, {}, "version 8.6"),
        ({"source": "NvTensorRTRTXExecutionProvider"}, {}, "its header that it is a plan for tensorrt"),
        (
            {},
            {"compute_capabilities": ("8.6",)},
            "compute_capabilities is said to be 8.6, and the EPContext node says 8.9",
        ),
        ({}, {"strip": "none"}, "strip is said to be none, and the EPContext node says plan"),
        ({}, {"refit": "any"}, "refit is said to be any"),
    ],
)
def test_node_header_and_caller_must_agree(
    folder: Path, changes: dict[str, Any], said: dict[str, Any], says: str
) -> None:
    """Each contradiction in words."""
    source = write_model(folder / "c.onnx", context_node(**changes))
    with pytest.raises(EngineRefused) as caught:
        know_context_model(source, EngineFacts(**said))
    assert says in str(caught.value) and STRIPPED in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"source": "QNNExecutionProvider"}, "its engine is one of QNNExecutionProvider"),
        ({"embed_mode": 2}, "embed_mode is 2"),
        ({"ep_cache_context": None}, "has no engine"),
        ({"ep_cache_context": ""}, "has no engine"),
        ({"ep_cache_context": "x" * 5000}, "should be a short text"),
        ({"ep_cache_context": "/etc/passwd"}, "is absolute"),
        ({"ep_cache_context": "../engine"}, "leaves the folder with '..'"),
        ({"ep_cache_context": "..\\engine"}, "leaves the folder with '..'"),
        ({"ep_cache_context": "C:\\engine"}, "names a drive"),
        ({"ep_cache_context": "none.engine"}, "is not there"),
        ({"ep_cache_context": "a\0b"}, "NUL"),
        ({"onnx_model_filename": "../mlp.onnx"}, "leaves the folder with '..'"),
        ({"onnx_model_filename": "/mlp.onnx"}, "is absolute"),
    ],
)
def test_what_is_refused(bundle: Path, folder: Path, changes: dict[str, Any], says: str) -> None:
    """And the bundle is as it was."""
    before = tree(bundle)
    source = write_model(folder / "c.onnx", context_node(**changes))
    with pytest.raises(ImportRefused) as caught:
        import_context_model(bundle, MODEL, source, REST)
    assert says in str(caught.value) and str(source) in str(caught.value)
    assert tree(bundle) == before


def test_an_engine_file_that_a_link_leads_to(bundle: Path, folder: Path, tmp_path: Path) -> None:
    """Inside of the folder it may, out of it it may not."""
    (tmp_path / "outside.engine").write_bytes(plan_bytes())
    (folder / "out.engine").symlink_to(tmp_path / "outside.engine")
    (folder / "in.engine").symlink_to(folder / STRIPPED)
    with pytest.raises(ImportRefused, match="leads out of its folder through a symbolic link"):
        know_context_model(write_model(folder / "c.onnx", context_node(ep_cache_context="out.engine")))
    know_context_model(write_model(folder / "c.onnx", context_node(ep_cache_context="in.engine")))


def test_an_engine_file_below_the_folder_as_windows_names_it(bundle: Path, folder: Path) -> None:
    """With backslashes."""
    (folder / "cache").mkdir()
    shutil.move(folder / STRIPPED, folder / "cache")
    source = write_model(folder / "c.onnx", context_node(ep_cache_context=f"cache\\{STRIPPED}"))
    made = import_context_model(bundle, MODEL, source, REST)
    assert made.plan == str(folder / "cache" / STRIPPED)


def test_a_full_engine_only_if_one_says_so(bundle: Path, folder: Path) -> None:
    """It has another name than a stripped one, and its bytes tell."""
    (folder / "full.engine").write_bytes(plan_bytes(weights=True))
    source = write_model(folder / "c.onnx", context_node(ep_cache_context="full.engine"))
    assert "strip" in know_context_model(source).missing
    before = tree(bundle)
    with pytest.raises(EngineRefused, match="seems to hold weights"):
        import_context_model(bundle, MODEL, source, WHOLE)
    assert tree(bundle) == before
    said = EngineFacts(os=("linux",), version_compatible=False, precision="fp16", strip="none")
    assert import_context_model(bundle, MODEL, source, said).added.engine.strip == "none"


@pytest.mark.parametrize("content", [b"OVEP_BIN" * 10, plan_bytes()[:-1], plan_bytes()[:20], b"f"])
def test_what_is_no_plan(bundle: Path, folder: Path, content: bytes) -> None:
    """Another provider's context, an engine that was cut short; the error names the model, not a temporary file."""
    before = tree(bundle)
    source = write_model(folder / "c.onnx", context_node(embed_mode=1, ep_cache_context=content))
    with pytest.raises(PlanInvalid, match=r"the engine in .*c\.onnx"):
        import_context_model(bundle, MODEL, source, WHOLE)
    assert tree(bundle) == before


def test_errors_about_an_embedded_engine_name_the_model(bundle: Path, folder: Path) -> None:
    """Also those that come when it was copied out."""
    source = write_model(folder / "c.onnx", context_node(embed_mode=1, ep_cache_context=plan_bytes(weights=True)))
    with pytest.raises(EngineRefused) as caught:
        import_context_model(bundle, MODEL, source, WHOLE)
    assert str(caught.value).startswith(f"the engine in {source} was not added: it seems to hold weights")
    assert "staging" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "no EPContext node"),
        ([helper.make_node("Relu", ["x"], ["y"])], "no EPContext node"),
        ([helper.make_node("EPContext", ["x"], ["y"], domain="com.example")], "no EPContext node"),
        ([context_node(), context_node()], "2 EPContext nodes, each with a part of the model"),
        ([context_node(), helper.make_node("Relu", ["x"], ["z"])], "1 nodes besides the EPContext node"),
    ],
)
def test_graphs_that_are_not_one_engine(folder: Path, nodes: list[Any], says: str) -> None:
    """Ordinary models, and models that were taken apart."""
    with pytest.raises(ImportRefused, match=says):
        know_context_model(write_model(folder / "c.onnx", *nodes))


@pytest.mark.parametrize(
    "make", [lambda p: p.write_bytes(b""), lambda p: p.mkdir(), lambda p: None, lambda p: os.mkfifo(p)]
)
def test_what_cannot_be_read(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    """Nothing, a folder, a pipe that nobody writes to."""
    make(tmp_path / "c.onnx")
    with pytest.raises((SourceUnreadable, ImportRefused)):
        know_context_model(tmp_path / "c.onnx")


def test_facts_that_nobody_gave(bundle: Path, folder: Path) -> None:
    """All of them in one error."""
    before = tree(bundle)
    with pytest.raises(FactsMissing, match="os, version_compatible, precision"):
        import_context_model(bundle, MODEL, write_model(folder / "c.onnx", context_node()))
    assert tree(bundle) == before


def test_an_attribute_twice(folder: Path) -> None:
    """Readers would differ about which one counts."""
    node = context_node()
    node.attribute.append(helper.make_attribute("embed_mode", 1))
    with pytest.raises(OnnxMalformed, match="'embed_mode' twice"):
        know_context_model(write_model(folder / "c.onnx", node))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_model_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever was changed or cut off."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / STRIPPED).write_bytes(plan_bytes())
    embedded = data.draw(st.booleans())
    node = context_node(embed_mode=1, ep_cache_context=plan_bytes(size=60)) if embedded else context_node()
    content = bytearray(write_model(folder / "c.onnx", node).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "c.onnx").write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        known = know_context_model(folder / "c.onnx", REST)
    except RefitAgentError:
        return
    assert known.header.size in (60, 40_000)


def _sparse_model(path: Path, size: int) -> None:
    """An EPContext model with an engine of ``size`` bytes in it, all but its header a hole in the file."""

    def around(number: int, head: bytes, length: int) -> tuple[bytes, int]:
        """The tag and length of a field whose content begins with ``head`` and has ``length`` bytes."""
        front = varint(number << 3 | 2) + varint(length) + head
        return front, len(front) + length - len(head)

    inputs, outputs = value_infos()
    front, length = around(4, plan_bytes(size=28)[:16] + size.to_bytes(8, "little") + bytes([10, 16, 1, 11]), size)
    for number, before in (
        (5, text(1, "ep_cache_context") + integer(20, 3)),
        (1, text(1, "x") + text(2, "y") + text(4, "EPContext") + text(7, "com.microsoft")),
        (7, blob(11, inputs[0].SerializeToString()) + blob(12, outputs[0].SerializeToString())),
    ):
        front, length = around(number, before + front, len(before) + length)
    with open(path, "wb") as file:
        file.write(integer(1, 8) + front)
        file.truncate(len(integer(1, 8)) + length)


def test_an_engine_of_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    """It is found without being read, and copied in pieces."""
    if sys.platform != "linux":
        pytest.skip("private memory is counted by /proc")
    _sparse_model(tmp_path / "c.onnx", 1 << 30)
    code = """
        import sys
        from refit_agent.authoring.ep_context_node import open_context
        from refit_agent.authoring.import_ep_context import _copy, know_context_model
        from refit_agent.authoring.steps import Steps

        def private():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

        most = 0
        before = private()
        def watch(step):
            global most
            most = max(most, private())
        assert know_context_model(sys.argv[1]).header.size == 1 << 30
        with open_context(sys.argv[1]) as node:
            _copy(node, node.context(), sys.argv[2], Steps(watch))
        print(most - before)
    """
    command, env = python(code, tmp_path / "c.onnx", tmp_path / "copy")
    grown = int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert grown < 16 << 10 and (tmp_path / "copy").stat().st_size == 1 << 30
