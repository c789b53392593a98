"""Shapes as trtexec takes them, and the profiles made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.authoring.build.shapes import (
    Kind,
    Profile,
    Range,
    make_profile,
    parse_shapes,
    require_distinct,
    split_shapes,
)
from refit_agent.authoring.errors import BuildOptionsInvalid

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="'\\"), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)


@given(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=4))
def test_every_list_of_shapes_is_read_back(shapes: dict[str, tuple[int, ...]]) -> None:
    """Quoted, a name may hold whatever a shape could be made of: commas, colons, digits."""
    text = ",".join(f"'{name}':{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())
    assert parse_shapes(text, "--opt-shapes") == shapes


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("input:1x3x224x224", {"input": (1, 3, 224, 224)}),
        ("a:1,b:2x3", {"a": (1,), "b": (2, 3)}),
        ("Input:0:1x3", {"Input:0": (1, 3)}),
        (r"\'Input:0\':1x3", {"Input:0": (1, 3)}),
        ("s:scalar,t:", {"s": (), "t": ()}),
        ("input=1x3x224x224", {"input": (1, 3, 224, 224)}),
        ("a=1,b:2x3,s=scalar", {"a": (1,), "b": (2, 3), "s": ()}),
        ("'Input:0=1'=1x3,Input:0=2", {"Input:0=1": (1, 3), "Input:0": (2,)}),
    ],
)
def test_the_spellings_of_trtexec(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """A name with a colon in it needs no quotes; a scalar has a word of its own, or nothing. An equals sign does too."""
    assert parse_shapes(text, "--opt-shapes") == shapes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "input",
        "input:1x",
        "input:1x3,",
        ",input:1",
        "input:-1",
        "input:1xa",
        "input:1 x3",
        "'a:1",
        "a:1,a:2",
        "a:1..8",
    ],
)
def test_what_is_no_list_of_shapes(text: str) -> None:
    """A part that cannot be read stands in the error, with the option that it came from."""
    with pytest.raises(BuildOptionsInvalid, match="--min-shapes"):
        parse_shapes(text, "--min-shapes")


def test_ranges_are_for_those_who_take_them() -> None:
    """As they are written."""
    assert split_shapes("a:1..8x3,b=2", "--shape") == {"a": "1..8x3", "b": "2"}


@pytest.mark.parametrize("text", ["a:" + "9" * 5000, "a:2147483648", "a:" + "x".join("1" * 9)])
def test_absurd_sizes(text: str) -> None:
    """Numbers of any length and shapes of any rank end in our words."""
    with pytest.raises(BuildOptionsInvalid, match="limits"):
        parse_shapes(text, "--opt-shapes")


def test_the_best_shapes_alone_are_all_three() -> None:
    """As with trtexec."""
    profile = make_profile("small", {"opt": "a:2x3,b:4"})
    assert profile == Profile(
        name="small",
        shapes={"a": Range(min=(2, 3), opt=(2, 3), max=(2, 3)), "b": Range(min=(4,), opt=(4,), max=(4,))},
    )
    three: dict[Kind, str] = {"min": "a:1", "opt": "a:2", "max": "a:2"}
    assert make_profile(None, three).shapes == {"a": Range(min=(1,), opt=(2,), max=(2,))}
    assert make_profile("static", {}) == Profile(name="static")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"min": "a:1"}, "--opt-shapes alone or all of"),
        ({"min": "a:1", "max": "a:2"}, "not --min-shapes and --max-shapes"),
        ({"min": "a:1", "opt": "b:1", "max": "a:1"}, "same inputs: a, b"),
        ({"min": "a:1", "opt": "a:1x1", "max": "a:1"}, "different numbers of dimensions"),
        ({"min": "a:2", "opt": "a:1", "max": "a:3"}, "do not ascend: 2, 1, 3"),
        ({"min": "a:1x9", "opt": "a:1x9", "max": "a:3x8"}, "do not ascend: 1x9, 1x9, 3x8"),
    ],
)
def test_profiles_that_contradict_themselves(texts: dict[Kind, str], words: str) -> None:
    """Each fault in its own words."""
    with pytest.raises(BuildOptionsInvalid, match=words):
        make_profile(None, texts)


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "x" * 101, "a\n"])
def test_a_profile_name_becomes_part_of_a_file_name(name: str) -> None:
    """So it must be one."""
    with pytest.raises(BuildOptionsInvalid, match="no name for a profile"):
        make_profile(name, {})


def test_several_profiles_have_names_of_their_own() -> None:
    """Also where file names do not tell capitals from small letters."""
    require_distinct((Profile(),))
    require_distinct((Profile(name="a"), Profile(name="b")))
    with pytest.raises(BuildOptionsInvalid, match="each needs a name"):
        require_distinct((Profile(name="a"), Profile()))
    with pytest.raises(BuildOptionsInvalid, match="twice"):
        require_distinct((Profile(name="Big"), Profile(name="big")))
