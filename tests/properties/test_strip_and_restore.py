"""strip, then restore: the original, bit for bit; for generated models and for all that the fuzzer has collected."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fuzz import corpus
from refit_agent.authoring import restore_onnx, strip_onnx
from refit_agent.errors import RefitAgentError
from wild_onnx import Wild, wild_models

from . import thorough

#: As the harness of the ONNX reader has them, see there.
_EXTERNAL = {name: random.Random(name).randbytes(4096) for name in ("w.bin", "data/more.bin")}


def restored(wild: Wild, *, zeros: bool, integers: bool, keep_below: int) -> bool:
    """Strip and restore; False if it is no model that can be stripped. Raises AssertionError for a difference."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = wild.write(folder / "in")
        (folder / "sent").mkdir()
        (folder / "out").mkdir()
        try:
            made = strip_onnx(model, folder / "sent" / "s.onnx", zeros=zeros, integers=integers, keep_below=keep_below)
        except RefitAgentError:
            assert not list((folder / "sent").iterdir()), "a refusal that left something behind"
            return False
        back = restore_onnx(folder / "sent" / "s.onnx", model, folder / "out" / "m.onnx")
        assert back.identical and back.restored == len(made.stripped) and not back.missing
        assert (folder / "out" / "m.onnx").read_bytes() == wild.model
        for location in back.external:
            assert (folder / "out" / location).read_bytes() == wild.files[os.path.normpath(location)]
        assert model.read_bytes() == wild.model
        return True


@thorough(80)
@given(wild=wild_models(), zeros=st.booleans(), integers=st.booleans(), keep_below=st.sampled_from([0, 1, 64, 1000]))
def test_a_generated_model_comes_back_as_it_was(wild: Wild, zeros: bool, integers: bool, keep_below: int) -> None:
    """With its external data, whatever its tensors are and wherever they are."""
    assert restored(wild, zeros=zeros, integers=integers, keep_below=keep_below)


def test_what_the_fuzzer_collected_comes_back_or_is_refused() -> None:
    """Most of it is what no tool would write."""
    outcomes = [
        restored(Wild(path.read_bytes(), _EXTERNAL), zeros=zeros, integers=zeros, keep_below=0)
        for path in corpus.inputs("onnx_walker")
        for zeros in (True, False)
    ]
    assert outcomes.count(True) > 50
