"""OnnxWeights: what is listed, under which key, and how long arrays live."""

from __future__ import annotations

import gc
import threading
import warnings

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from refit_agent.errors import BundleFileMissing, OnnxMalformed, RefitAgentError, WeightUnsupported
from refit_agent.weights import OnnxWeights
from refit_agent.weights.batch_norms import DEFAULT_EPSILON

from .onnx_bytes import graph, model, node, num, sub, tensor, varint


def value(number: float, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.array([number], np.float32), name)


def save(path, made: onnx.GraphProto, **kwargs):
    path.write_bytes(helper.make_model(made, **kwargs).SerializeToString())
    return path


def constant(output: str, number: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=value(number, "inner"))


def body(name: str, *initializers: TensorProto, nodes=()) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [1])
    return helper.make_graph(list(nodes), name, [], [out], list(initializers))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.onnx"


def test_it_is_a_mapping_with_plain_top_level_keys(path):
    save(path, body("g", value(1, "b"), value(2, "a"), nodes=[constant("c", 3)]))
    with OnnxWeights(str(path)) as weights:
        assert list(weights) == ["b", "a", "c"]
        assert len(weights) == 3 and "a" in weights and "inner" not in weights
        assert weights.path == path
        ref = weights["a"]
        assert weights["a"] is ref
        assert (ref.name, ref.key, ref.scope, ref.kind, ref.file) == ("a", "a", "", "initializer", path)
        assert (weights["c"].name, weights["c"].kind) == ("c", "constant")
        assert weights["c"].array() == [3]
        with pytest.raises(KeyError):
            weights["x"]
        with pytest.raises(AttributeError):
            ref.name = "z"


def test_all_forms_of_constant(path):
    forms = {
        "value": value(1.5),
        "value_float": 2.5,
        "value_floats": [1.0, -2.0],
        "value_int": -7,
        "value_ints": [3, -4, 2**40],
        "value_string": "text",
        "value_strings": ["a", "bcd"],
        "sparse_value": helper.make_sparse_tensor(value(5, "v"), numpy_helper.from_array(np.array([2], np.int64)), [4]),
    }
    save(path, body("g", nodes=[helper.make_node("Constant", [], [k], **{k: v}) for k, v in forms.items()]))
    with OnnxWeights(path) as weights:
        assert list(weights) == list(forms)
        arrays = {k: weights[k].array() for k in list(forms)[:5]}
        assert {k: (a.dtype.str, a.tolist()) for k, a in arrays.items()} == {
            "value": ("<f4", [1.5]),
            "value_float": ("<f4", 2.5),
            "value_floats": ("<f4", [1, -2]),
            "value_int": ("<i8", -7),
            "value_ints": ("<i8", [3, -4, 2**40]),
        }
        assert arrays["value_int"].shape == arrays["value_float"].shape == ()
        assert weights["value_float"].is_view and not weights["value_int"].is_view
        assert [weights[k].dtype for k in ("value_string", "value_strings")] == ["string"] * 2
        assert (weights["value_string"].nbytes, weights["value_strings"].nbytes) == (4, 4)
        assert (weights["sparse_value"].kind, weights["sparse_value"].shape) == ("sparse", (4,))
        for key in ("value_string", "value_strings", "sparse_value"):
            with pytest.raises(WeightUnsupported) as caught:
                weights[key].array()
            assert caught.value.facts["name"] == key
        # the graph gives the plain values, and the same tensor
        nodes = weights.model.graph.nodes
        assert [n.attributes[k].value for n, k in zip(nodes, forms, strict=True)][1:5] == [
            2.5, (1.0, -2.0), -7, (3, -4, 2**40),
        ]  # fmt: skip
        assert all(n.constant is weights[k] for n, k in zip(nodes, forms, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_lists_of_constants_packed_or_not(path, packed):
    floats = (
        sub(7, np.array([1, 2, 3], "<f4").tobytes())
        if packed
        else b"".join(varint(7 << 3 | 5) + np.float32(x).tobytes() for x in (1, 2, 3))
    )
    ints = sub(8, varint(5) + varint(-1)) if packed else num(8, 5) + num(8, -1)
    nodes = (
        node("Constant", sub(1, "value_floats") + floats, outputs=("f",)),
        node("Constant", sub(1, "value_ints") + ints, outputs=("i",)),
    )
    path.write_bytes(model(graph(nodes=nodes)))
    with OnnxWeights(path) as weights:
        assert weights["f"].array().tolist() == [1, 2, 3] and weights["f"].is_view == packed
        assert weights["i"].array().tolist() == [5, -1]
        assert [n.attributes.popitem()[1].type for n in weights.model.graph.nodes] == [6, 7]  # inferred


def test_sparse_and_string_initializers_are_listed_and_refused(path):
    made = body("g", helper.make_tensor("s", TensorProto.STRING, [2], [b"ab", b""]))
    made.sparse_initializer.append(
        helper.make_sparse_tensor(value(5, "sp"), numpy_helper.from_array(np.array([2], np.int64)), [2**40, 2**20])
    )
    save(path, made)
    with OnnxWeights(path) as weights:
        assert list(weights) == ["s", "sp"] == list(weights.model.graph.initializers)
        assert (weights["s"].dtype, weights["s"].shape, weights["s"].nbytes) == ("string", (2,), 2)
        assert (weights["sp"].kind, weights["sp"].count, weights["sp"].dtype) == ("sparse", 2**60, "float32")
        for ref in weights.values():
            with pytest.raises(WeightUnsupported):
                ref.array()


def nested_model() -> onnx.GraphProto:
    deep = helper.make_node("Loop", ["n", "c"], [], name="lp", body=body("deep", value(5), nodes=[constant("k", 6)]))
    branches = helper.make_node(
        "If",
        ["c"],
        ["o"],
        name="branch",
        then_branch=body("then", value(2), nodes=[constant("t", 3)]),
        else_branch=body("else", value(4), nodes=[deep]),
    )
    return body("g", value(1, "top"), nodes=[branches, constant("k", 7)])


def test_nested_definitions(path):
    save(path, nested_model())
    with OnnxWeights(path) as weights:
        found = {key: float(ref.array()[0]) for key, ref in weights.items()}
        loop = "branch[0].else_branch/lp[0].body"
        assert found == {
            "top": 1,
            "w": 2,
            "t": 3,
            "branch[0].else_branch::w": 4,
            f"{loop}::w": 5,
            f"{loop}::k": 6,  # the top-level Constant further down keeps its plain name
            "k": 7,
        }
        assert [float(r.array()[0]) for r in weights.definitions("w")] == [2, 4, 5]
        assert [float(r.array()[0]) for r in weights.definitions("k")] == [6, 7]
        assert [r.key for r in weights.definitions("top")] == ["top"]
        assert weights.definitions("none") == () == weights.definitions(f"{loop}::k")
        assert weights["w"].scope == "branch[0].then_branch"
        assert all(weights[key].key == key for key in weights)


def test_definitions_begin_with_the_top_level_initializer(path):
    made = nested_model()
    made.initializer.append(value(9, "w"))
    save(path, made)
    with OnnxWeights(path) as weights:
        assert [float(r.array()[0]) for r in weights.definitions("w")] == [9, 2, 4, 5]
        assert weights["w"].array() == 9


def test_graph_lists_and_attributes_without_a_type(path):
    """Old files lack AttributeProto.type; the fast walk must not need it."""
    inner = graph(tensor("hidden", (1,), 1, b"\0\0\x80?"))
    plain = node("Relu", outputs=("r",))
    holder = node("Custom", sub(1, "bodies") + sub(11, inner) + sub(11, graph(tensor("h2", (), 3, b"\x05"))))
    single = node(
        "Scan", sub(6, graph(nodes=(node("Constant", sub(1, "value_float") + b"\x15\0\0\0@"),))) + sub(1, "b")
    )
    path.write_bytes(model(graph(nodes=(plain, holder, plain, single))))
    with OnnxWeights(path) as weights:
        assert {k: r.array().tolist() for k, r in weights.items()} == {"hidden": [1.0], "h2": 5, "y": 2.0}
        assert weights["h2"].scope == "Custom[1].bodies[1]"
        assert weights.model.graph.nodes[1].attributes["bodies"].type == 10


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_padded_tags_and_codes_hide_no_tensor(path, pad):
    """Protobuf allows longer encodings of a tag or a value than needed."""

    def long(value: int) -> bytes:
        return varint(value) if not pad else bytes([value | 0x80]) + b"\x80" * (pad - 1) + b"\x00"

    hidden = num(1, 1) + long(0x10) + long(1) + sub(8, "w") + sub(9, b"\0\0\x80?")
    inner = long(5 << 3 | 2) + varint(len(hidden)) + hidden
    attribute = sub(1, "b") + long(6 << 3 | 2) + varint(len(inner)) + inner
    holder = sub(2, "y") + sub(4, "If") + long(5 << 3 | 2) + varint(len(attribute)) + attribute
    top = num(1, 1) + long(0x10) + long(1) + long(8 << 3 | 2) + b"\x01v" + sub(9, b"\0\0\0@")
    body_bytes = long(1 << 3 | 2) + varint(len(holder)) + holder + long(5 << 3 | 2) + varint(len(top)) + top
    path.write_bytes(model(body_bytes))
    with OnnxWeights(path) as weights:
        assert {k: r.array().tolist() for k, r in weights.items()} == {"v": [2.0], "w": [1.0]}


def _random_graph(random: np.random.Generator, depth: int, counter: list[int]) -> onnx.GraphProto:
    def fresh() -> TensorProto:
        counter[0] += 1
        shape = tuple(int(d) for d in random.integers(0, 60, int(random.integers(0, 3))))
        kind = [np.float32, np.float16, np.int64, np.int8][int(random.integers(4))]
        return numpy_helper.from_array(
            random.integers(-99, 99, shape).astype(kind), f"n{counter[0]}" + "é2Z*" * int(random.integers(9))
        )

    nodes = []
    for _ in range(int(random.integers(0, 7))):
        attributes = {"ints": [int(i) for i in random.integers(0, 300, 3)], "text": "x" * int(random.integers(0, 200))}
        pick = int(random.integers(6))
        if pick == 0:
            inner = fresh()
            nodes.append(helper.make_node("Constant", [], [inner.name + "c"], value=inner))
            continue
        if pick in (1, 2) and depth < 4:
            attributes["g"] = _random_graph(random, depth + 1, counter)
        elif pick == 3 and depth < 4:
            attributes["gs"] = [_random_graph(random, depth + 1, counter) for _ in range(2)]
        elif pick == 4:
            attributes["t"] = fresh()
        made = helper.make_node(
            "Op" + "p" * int(random.integers(30)), ["a" * int(random.integers(1, 20))], ["b"], **attributes
        )
        for attribute in made.attribute:
            if random.integers(2):
                attribute.ClearField("type")
        nodes.append(made)
    return helper.make_graph(nodes, "g", [], [], [fresh() for _ in range(int(random.integers(0, 3)))])


@pytest.mark.parametrize("seed", range(40))
def test_the_fast_walk_misses_nothing(path, seed):
    random = np.random.default_rng(seed)
    data = save(path, _random_graph(random, 1, [0])).read_bytes()
    with OnnxWeights(path) as weights:
        _compare(weights, data, str(path.parent))
        for array in [ref.array() for ref in weights.values()]:
            assert array is not None


def test_functions(path):
    make = helper.make_function
    opsets = [helper.make_opsetid("", 20)]
    relu = make("my", "Plain", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    first = make("my", "First", ["x"], ["y"], [constant("k", 1), helper.make_node("Add", ["x", "k"], ["y"])], opsets)
    inner = helper.make_node("If", ["c"], ["y"], then_branch=body("t", value(3)), else_branch=body("e", value(4)))
    by_call = helper.make_node("Constant", [], ["given"])
    by_call.attribute.append(onnx.AttributeProto(name="value", ref_attr_name="v", type=4))
    second = make("my", "Second", ["x"], ["y"], [constant("k", 2), inner, by_call], opsets, ["v"])
    save(path, body("g", value(0, "top")), functions=[relu, first, second])
    with OnnxWeights(path) as weights:
        assert list(weights) == [
            "top", "k", "function my.Second::k", "w", "function my.Second/If[1].else_branch::w",
        ]  # fmt: skip
        assert [float(r.array()[0]) for r in weights.definitions("k")] == [1, 2]
        functions = weights.model.functions
        assert list(functions) == [("my", "Plain", ""), ("my", "First", ""), ("my", "Second", "")]
        found = functions["my", "Second", ""]
        assert (found.inputs, found.outputs, found.attributes, found.opsets) == (("x",), ("y",), ("v",), {"": 20})
        assert found.nodes[0].constant is weights["function my.Second::k"]
        assert (found.nodes[2].constant, found.nodes[2].attributes["value"].ref) == (None, "v")


def test_keys_stay_unique_when_paths_read_alike(path):
    """Names may contain '/', '[' and '::', so a path can be forged."""
    made = nested_model()
    made.initializer.append(value(8, "branch[0].else_branch::w"))
    save(path, made)
    with OnnxWeights(path) as weights:
        refs = weights.definitions("w")
        assert [float(r.array()[0]) for r in refs] == [2, 4, 5]
        assert len({r.key for r in refs} | {"branch[0].else_branch::w"}) == 4
        assert weights["branch[0].else_branch::w"].array() == 8


def test_model_is_what_onnx_reads(path):
    bn = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn", epsilon=0.5, domain="")
    fill = helper.make_node("ConstantOfShape", ["n"], ["z"], value=value(3))
    made = body("g", *(value(i, n) for i, n in enumerate("sbmv")), nodes=[bn, fill])
    made.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    save(path, made, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("my", 2)], ir_version=9)
    with OnnxWeights(path) as weights:
        read = weights.model
        assert weights.model is read
        assert (read.ir_version, read.opsets, read.functions) == (9, {"": 21, "my": 2}, {})
        assert (read.graph.name, read.graph.inputs, read.graph.outputs) == ("g", ("x",), ("o",))
        assert list(read.graph.initializers) == list("sbmv") == list(weights)
        assert all(read.graph.initializers[k] is weights[k] for k in weights)
        first, second = read.graph.nodes
        assert (first.op_type, first.domain, first.name, first.inputs, first.outputs) == (
            "BatchNormalization", "", "bn", ("x", "s", "b", "m", "v"), ("y",),
        )  # fmt: skip
        assert (first.attributes["epsilon"].type, first.attributes["epsilon"].value) == (1, 0.5)
        filled = second.attributes["value"].value
        assert (filled.kind, filled.key, filled.array().tolist()) == ("attribute", "", [3.0])


@pytest.mark.parametrize("name", ["tiny", "resnet50"])
def test_sample_models_equal_onnx(name):
    path = f"/tmp/models/{name}.onnx"
    try:
        proto = onnx.load(path)
    except FileNotFoundError:
        pytest.skip("the sample models are not there")
    with OnnxWeights(path) as weights:
        assert list(weights) == [t.name for t in proto.graph.initializer]
        for t in proto.graph.initializer:
            assert weights[t.name].array().tobytes() == t.raw_data
        assert [n.outputs for n in weights.model.graph.nodes] == [tuple(n.output) for n in proto.graph.node]
        assert len(weights.batch_norms) == sum(n.op_type == "BatchNormalization" for n in proto.graph.node)


def norm(name: str, *inputs: str, **kwargs) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", list(inputs), [f"{name}_out"], name=name, **kwargs)


def test_batch_norms(path):
    weights4 = [value(i, n) for i, n in enumerate(("s", "b", "m", "v"))]
    inside = body("t", value(9, "v2"), nodes=[norm("nested", "x", "s", "b", "m", "v2")])
    shadow = body("e", nodes=[helper.make_node("Relu", ["x"], ["s"]), norm("hidden", "x", "s", "b", "m", "v")])
    nodes = [
        norm("late", "x", "s", "b", "m", "vc", epsilon=1e-3),
        constant("vc", 1),
        norm("computed", "x", "s", "b", "m", "r"),
        helper.make_node("Relu", ["x"], ["r"]),
        norm("other", "x", "s", "b", "m", "v", domain="my"),
        norm("short", "x", "s", "b", "m"),
        helper.make_node("If", ["c"], ["i"], then_branch=inside, else_branch=shadow),
        norm("last", "x", "s", "b", "m", "v", domain="ai.onnx"),
    ]
    consts = [constant(n, 1) for n in "sbmv"]
    function = helper.make_function(
        "my", "F", ["x"], ["y"], [*consts, norm("fn", "x", *"sbmv")], [helper.make_opsetid("", 20)]
    )
    outside = helper.make_function("my", "G", ["x"], ["y"], [norm("gn", "x", *"sbmv")], [helper.make_opsetid("", 20)])
    save(path, body("g", *weights4, nodes=nodes), functions=[function, outside])
    with OnnxWeights(path) as weights:
        found = weights.batch_norms
        assert [n.node for n in found] == ["late", "nested", "last", "fn"]
        assert found[0].epsilon == float(np.float32(1e-3)) and found[1].epsilon == float(np.float32(1e-5))
        late = found[0]
        assert (late.scale, late.bias, late.mean, late.var, late.output) == ("s", "b", "m", "vc", "late_out")
        assert (found[1].scope, found[3].scope) == ("If[6].then_branch", "function my.F")


def test_arrays_outlive_close_and_later_reads_are_refused(path):
    save(path, body("g", value(1, "a"), value(2, "b"), nodes=[constant("c", 3)]))
    weights = OnnxWeights(path)
    array = weights["a"].array()
    ref = weights["a"]
    weights.close()
    weights.close()
    assert array.tolist() == [1.0]
    assert list(weights) == ["a", "b", "c"] and weights["a"] is ref
    for action in (ref.array, lambda: weights["b"], lambda: weights.model, lambda: weights.batch_norms):
        with pytest.raises(ValueError, match="closed"):
            action()
    del ref
    weights.__dict__.clear()
    gc.collect()
    assert array.tolist() == [1.0]


def test_close_without_arrays_unmaps(path):
    save(path, body("g", value(1, "a")))
    weights = OnnxWeights(path)
    mapped = weights._map
    weights.close()
    assert mapped is not None and mapped.closed


def test_views_point_into_the_map(path):
    save(path, body("g", value(1, "a")))
    with OnnxWeights(path) as weights:
        base = np.frombuffer(weights._map, np.uint8).ctypes.data
        assert weights["a"].array().ctypes.data == base + weights["a"].offset


def test_threads_get_the_same_references(path):
    save(path, body("g", *(value(i, f"t{i}") for i in range(300))))
    with OnnxWeights(path) as weights:
        seen: list[list[object]] = []
        threads = [threading.Thread(target=lambda: seen.append(list(weights.values()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 8 and all(refs == seen[0] for refs in seen)


def test_not_a_file(tmp_path):
    with pytest.raises(BundleFileMissing) as missing:
        OnnxWeights(tmp_path / "none.onnx")
    assert missing.value.facts["path"] == str(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    import os

    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path, tmp_path / "empty.onnx", tmp_path / "fifo"):
        with pytest.raises(OnnxMalformed) as caught:
            OnnxWeights(bad)
        assert caught.value.facts["offset"] == 0


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_raise_only_our_errors(path, seed):
    """Flip, cut, insert: 8 x 250 variants of a model that has everything.

    What is still read must be what onnx reads: the same tensors, in the same order, bit for bit.
    """
    made = nested_model()
    made.initializer.extend(
        [
            helper.make_tensor("i", TensorProto.INT64, [3], [1, -2, 300]),
            helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.0, 2.0]),
            helper.make_tensor("s", TensorProto.STRING, [1], [b"s"]),
        ]
    )
    made.node.append(norm("bn", "x", "top", "top", "top", "top"))
    ext = made.initializer.add(name="e", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, text in {"location": "m.onnx", "offset": "3", "length": "4"}.items():
        ext.external_data.add(key=key, value=text)
    function = helper.make_function("my", "F", ["x"], ["y"], [constant("k", 1)], [helper.make_opsetid("", 20)])
    good = helper.make_model(made, functions=[function]).SerializeToString()
    random = np.random.default_rng(seed)
    outcomes = {"read": 0, "refused": 0}
    for round_ in range(250):
        data = bytearray(good)
        same_length = round_ % 2
        for _ in range(1 if same_length else int(random.integers(1, 4))):
            place = int(random.integers(len(data)))
            action = random.integers(2 if same_length else 4)
            if action == 0:
                data[place] ^= 1 << int(random.integers(8))
            elif action == 1:
                data[place] = int(random.integers(256))
            elif action == 2:
                del data[place : place + int(random.integers(1, 5))]
            else:
                data[place:place] = bytes([int(random.choice([0, 0x0A, 0x2A, 0x80, 0xFF]))])
        if not same_length and random.integers(5) == 0:
            del data[int(random.integers(len(data))) :]
        path.write_bytes(data)
        try:
            with OnnxWeights(path) as weights:
                _read_all(weights)
                _compare(weights, bytes(data), str(path.parent))
            outcomes["read"] += 1
        except RefitAgentError as error:
            assert str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def _oracle(graph_or_function, is_function=False):
    """(name, TensorProto or None) of every definition as onnx sees it, in traversal order."""
    if not is_function:
        yield from ((t.name, t) for t in graph_or_function.initializer)
        yield from ((t.values.name, None) for t in graph_or_function.sparse_initializer)
    for n in graph_or_function.node:
        if n.op_type == "Constant" and n.domain in ("", "ai.onnx"):
            yield n.output[0], next((a.t for a in n.attribute if a.HasField("t")), None)
            continue
        for a in sorted(
            n.attribute, key=lambda a: n.op_type == "If" and n.domain in ("", "ai.onnx") and a.name != "then_branch"
        ):
            for g in [a.g] if a.HasField("g") else a.graphs:
                yield from _oracle(g)


def _compare(weights: OnnxWeights, data: bytes, folder: str) -> None:
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError:
        return  # strings that we do not look at, like doc_string
    wanted = list(_oracle(proto.graph))
    for function in proto.functions:
        wanted.extend(_oracle(function, True))
    assert [ref.name for ref in weights.values()] == [name for name, _ in wanted]
    for ref, (_, tensor_proto) in zip(weights.values(), wanted, strict=True):
        if tensor_proto is None:
            continue
        is_external = tensor_proto.data_location == TensorProto.EXTERNAL
        if is_external and "length" not in {entry.key for entry in tensor_proto.external_data}:
            continue  # onnx then takes the rest of the file; we take what the shape needs
        if ref.dtype in ("float32", "int64", "float16", "int32", "float64"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # onnx tells of external data keys that it does not know
                assert ref.array().tobytes() == numpy_helper.to_array(tensor_proto, folder).tobytes()


def _read_all(weights: OnnxWeights) -> None:
    assert weights.model.graph
    assert weights.batch_norms is not None
    for ref in weights.values():
        try:
            assert ref.array().nbytes == ref.nbytes
        except WeightUnsupported:
            assert ref.kind == "sparse" or ref.dtype == "string"


def test_the_default_epsilon_is_a_float32():
    assert float(np.float32(1e-5)) == DEFAULT_EPSILON
