"""What excludes what, and what each builder can do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from refit_agent.authoring.build.options import BuilderKind, BuilderVersion, BuildOptions, check_options, settle
from refit_agent.authoring.build.pools import parse_pools
from refit_agent.authoring.build.shapes import Profile
from refit_agent.authoring.errors import BuilderLacks, BuildOptionsInvalid

OLD = BuilderVersion("tensorrt", "8.6.0")
TEN = BuilderVersion("tensorrt", "10.16.1.11")
ELEVEN = BuilderVersion("tensorrt", "11.4.0.106")
RTX = BuilderVersion("tensorrt-rtx", "1.7.1")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"refittable": ("a",), "refit": "any"}, "--refittable"),
        ({"refit": "individual"}, "needs --refittable"),
        ({"strip": "zeros", "refit": "identical"}, "built from"),
        ({"strip": "zeros", "refit": "individual", "refittable": ("a",)}, "as zeros"),
        ({"strip": "zeros", "refittable": ("a",)}, "as zeros"),
        ({"exclude_lean_runtime": True}, "--version-compatible"),
        ({"strongly_typed": True, "fp16": True}, "excludes --fp16"),
        ({"int8": True, "fp8": True}, "--int8 and --fp8"),
        ({"strip": "none", "include_refit": True}, "--include-refit needs --refit"),
        ({"memory_pools": {"workspace": -1}}, "workspace"),
        ({"profiles": (Profile(name="a"), Profile(name="A"))}, "twice"),
    ],
)
def test_contradictions(given: dict[str, Any], words: str) -> None:
    """Refused whatever the builder, and before one is looked for."""
    with pytest.raises(BuildOptionsInvalid, match=words) as caught:
        check_options(BuildOptions(**given))
    assert (caught.value.code, caught.value.exit_code) == ("build-options-invalid", 2)


@pytest.mark.parametrize(
    ("builder", "given", "strip", "refit"),
    [
        (OLD, {}, "zeros", "any"),
        (TEN, {}, "plan", "identical"),
        (ELEVEN, {}, "plan", "identical"),
        (RTX, {}, "plan", "identical"),
        (TEN, {"refit": "any"}, "plan", "any"),
        (TEN, {"strip": "zeros"}, "zeros", "any"),
        (TEN, {"refittable": ("a",)}, "plan", "individual"),
        (TEN, {"strip": "none"}, "none", None),
        (TEN, {"strip": "none", "refit": "any"}, "none", "any"),
        (OLD, {"strip": "none", "version_compatible": True}, "none", None),
    ],
)
def test_what_is_left_open_is_decided_by_the_builder(
    builder: BuilderVersion, given: dict[str, Any], strip: str, refit: str | None
) -> None:
    """STRIP_PLAN from 10 on with its own default, identical weights; zeros before, which take any."""
    settled = settle(BuildOptions(**given), builder)
    assert (settled.strip, settled.refit) == (strip, refit)
    rest = msgspec.structs.asdict(settled)
    assert {k: v for k, v in rest.items() if k not in ("strip", "refit")} == {
        k: v for k, v in msgspec.structs.asdict(BuildOptions(**given)).items() if k not in ("strip", "refit")
    }


@pytest.mark.parametrize(
    ("builder", "given", "words"),
    [
        (OLD, {"strip": "plan"}, "--strip zeros"),
        (OLD, {"strip": "none", "refit": "identical"}, "--refit any"),
        (OLD, {"version_compatible": True}, "either version-compatible or refittable"),
        (OLD, {"hardware_compatibility": "same-compute-capability"}, "ampere-plus"),
        (OLD, {"bf16": True}, "9.0"),
        (OLD, {"strongly_typed": True}, "9.0"),
        (BuilderVersion("tensorrt", "8.5.3"), {}, "8.6"),
        (ELEVEN, {"fp16": True}, "no --fp16"),
        (RTX, {"bf16": True}, "no --bf16"),
        (RTX, {"version_compatible": True}, "version-compatible"),
        (RTX, {"hardware_compatibility": "ampere-plus"}, "every GPU"),
    ],
)
def test_what_a_builder_lacks(builder: BuilderVersion, given: dict[str, Any], words: str) -> None:
    """Refused before the build, in words that say what does instead."""
    with pytest.raises(BuilderLacks, match=words) as caught:
        settle(BuildOptions(**given), builder)
    assert builder.version in str(caught.value) and caught.value.code == "builder-lacks"


@pytest.mark.parametrize("builder", [TEN, BuilderVersion("tensorrt", "10.0.1")])
def test_what_was_left_open_must_not_contradict_the_rest(builder: BuilderVersion) -> None:
    """On 8.6 a bare --refittable would end in zeros for the weights that stay."""
    settle(BuildOptions(refittable=("a",)), builder)
    with pytest.raises(BuildOptionsInvalid, match="as zeros"):
        settle(BuildOptions(refittable=("a",)), OLD)


def test_everything_that_10_can() -> None:
    """No check stands in the way of the whole set."""
    options = BuildOptions(
        version_compatible=True,
        exclude_lean_runtime=True,
        hardware_compatibility="ampere-plus",
        fp16=True,
        bf16=True,
        optimization_level=5,
        memory_pools={"workspace": 1 << 30, "tactic-shared-memory": 48 << 10},
        include_refit=True,
        profiles=(Profile(name="a"), Profile(name="b")),
    )
    assert settle(options, TEN).refit == "identical"
    assert msgspec.json.decode(msgspec.json.encode(options), type=BuildOptions) == options


@pytest.mark.parametrize(("kind", "version", "typed"), [("tensorrt", "10.16.1", False), ("tensorrt", "11.0.0", True), ("tensorrt-rtx", "1.2.0", True)])  # fmt: skip
def test_who_takes_all_types_from_the_model(kind: BuilderKind, version: str, typed: bool) -> None:
    """From 11 on there is no other way."""
    assert BuilderVersion(kind, version).always_typed is typed


@pytest.mark.parametrize(
    ("text", "pools"),
    [
        ("workspace:1024", {"workspace": 1 << 30}),
        ("workspace:0.25", {"workspace": 1 << 18}),
        ("workspace:1G,tacticSharedMem:48K", {"workspace": 1 << 30, "tactic-shared-memory": 48 << 10}),
        ("workspace:1024B", {"workspace": 1024}),
        ("workspace:0.0000001K", {"workspace": 0}),
    ],
)
def test_pools(text: str, pools: dict[str, int]) -> None:
    """MiB where there is no letter, as trtexec has it."""
    assert parse_pools(text) == pools


@pytest.mark.parametrize("text", ["", "workspace", "workspace:", "workspace:x", "workspace:-1", "dlaSRAM:1", "workspace:1,workspace:2", "workspace:1,", "workspace:" + "9" * 400])  # fmt: skip
def test_what_is_no_pool(text: str) -> None:
    """Also sizes of hundreds of digits."""
    with pytest.raises(BuildOptionsInvalid, match="--mem-pool-size"):
        parse_pools(text)
