"""Generated ONNX files: every place that can hold a tensor, every type, every way to store one, fields in any order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from refit_agent.weights.dtypes import FIXED_ENTRY_BYTES, STRING, TYPES, DataType
from refit_agent.weights.wire_writer import integer, text, varint

EXTERNAL_FILES = ("w.bin", "data/more.bin", "./w.bin")


@dataclass
class Wild:
    """One model: its bytes, and its files of external data by real name."""

    model: bytes
    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        """The model in a folder, which is made."""
        folder.mkdir()
        for name, data in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / "m.onnx").write_bytes(self.model)
        return folder / "m.onnx"


@dataclass
class Maker:
    """Makes messages at random; ``overlong`` writes some lengths with more bytes than they need."""

    rng: random.Random
    overlong: bool
    files: dict[str, bytearray] = field(default_factory=lambda: {"w.bin": bytearray(), "data/more.bin": bytearray()})
    names: int = 0

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def sub(self, number: int, data: bytes | str) -> bytes:
        data = data.encode() if isinstance(data, str) else data
        size = varint(len(data))
        if self.overlong and self.rng.random() < 0.3:
            size = size[:-1] + bytes([size[-1] | 0x80]) + b"\0"
        return varint(number << 3 | 2) + size + data

    def shuffled(self, *fields: bytes) -> bytes:
        """Fields of a message in another order, and now and then one that nobody knows."""
        parts = [*fields, integer(900, 7)] if self.rng.random() < 0.1 else list(fields)
        if self.rng.random() < 0.5:
            self.rng.shuffle(parts)
        return b"".join(parts)

    # ---------------------------------------------------------------- tensors

    def tensor(self, name: str | None, dtype: DataType | None = None) -> bytes:
        """A TensorProto of any type in any form."""
        dtype = dtype or self.rng.choice(list(TYPES.values()))
        shape = self.rng.choice([(), (0,), (1,), (3,), (4, 5), (2, 1, 9), (70,), (300,)])
        count = 1
        for dim in shape:
            count *= dim
        dims = [integer(1, dim) for dim in shape]
        if dims and self.rng.random() < 0.3:
            dims = [self.sub(1, b"".join(varint(dim) for dim in shape))]
        fields = [b"".join(dims), integer(2, dtype.code), *self._payload(dtype, count)]
        if name is not None:
            fields.append(self.sub(8, name))
        if self.rng.random() < 0.1:
            fields.append(self.sub(12, "a doc string"))
        return self.shuffled(*fields)

    def _payload(self, dtype: DataType, count: int) -> list[bytes]:
        if dtype is STRING:
            return [b"".join(self.sub(6, self.rng.randbytes(3)) for _ in range(count))]
        form = self.rng.choice(["raw", "raw", "typed", "external"])
        if form == "raw":
            return [self.sub(9, self._values(dtype, count))]
        if form == "external":
            return self._external(self._values(dtype, count))
        entries = dtype.entry_count(count)
        packed = self.rng.random() < 0.5
        if dtype.field in FIXED_ENTRY_BYTES:
            width = FIXED_ENTRY_BYTES[dtype.field]
            data = [self.rng.randbytes(width) for _ in range(entries)]
            tag = varint(dtype.field << 3 | (5 if width == 4 else 1))
        else:
            limit = {"bool": 1, "float6e2m3": 63, "float6e3m2": 63}.get(dtype.name, (1 << max(dtype.bits, 8)) - 1)
            data = [varint(self.rng.randint(0, limit)) for _ in range(entries)]
            tag = varint(dtype.field << 3)
        if packed:
            cut = self.rng.randint(0, entries)
            return [self.sub(dtype.field, b"".join(part)) for part in (data[:cut], data[cut:]) if part]
        return [b"".join(tag + entry for entry in data)]

    def _values(self, dtype: DataType, count: int) -> bytes:
        if dtype.name == "bool":
            return bytes(self.rng.randint(0, 1) for _ in range(count))
        return self.rng.randbytes(dtype.byte_count(count))

    def _external(self, data: bytes) -> list[bytes]:
        location = self.rng.choice(EXTERNAL_FILES)
        file = self.files[location.removeprefix("./")]
        offset = self.rng.randint(0, len(file)) if self.rng.random() < 0.2 else len(file)  # some overlap
        if len(file) < offset + len(data):
            file.extend(data[len(file) - offset :])
        entries = {"location": location, "offset": str(offset), "length": str(len(data)), "checksum": "0"}
        for key in ("offset", "length", "checksum"):
            if self.rng.random() < 0.3 and (key != "offset" or offset == 0):
                del entries[key]
        return [b"".join(self.sub(13, text(1, k) + text(2, v)) for k, v in entries.items()), integer(14, 1)]

    def sparse(self, name: str | None) -> bytes:
        values = self.tensor(name, self.rng.choice([TYPES[1], TYPES[10]]))
        return self.shuffled(self.sub(1, values), self.sub(2, self.tensor(None, TYPES[7])), integer(3, 5000))

    # ---------------------------------------------------------------- what holds them

    def attribute(self, name: str, number: int, *values: bytes) -> bytes:
        return self.sub(5, self.shuffled(self.sub(1, name), b"".join(self.sub(number, value) for value in values)))

    def constant(self) -> bytes:
        kind = self.rng.choice(["value", "value", "value_floats", "value_ints", "sparse_value", "value_strings"])
        count = self.rng.choice([0, 2, 40, 300])
        if kind == "value":
            body = self.attribute(kind, 5, self.tensor(self.rng.choice([None, "inner"])))
        elif kind == "sparse_value":
            body = self.attribute(kind, 22, self.sparse(None))
        elif kind == "value_strings":
            body = self.attribute(kind, 9, b"one", b"two")
        else:
            floats = kind == "value_floats"
            data = [self.rng.randbytes(4) if floats else varint(self.rng.randint(0, 1 << 40)) for _ in range(count)]
            number = 7 if floats else 8
            if self.rng.random() < 0.5:
                values = self.sub(number, b"".join(data))
            else:
                values = b"".join(varint(number << 3 | (5 if floats else 0)) + entry for entry in data)
            type_ = integer(20, 6 if floats else 7)
            body = self.sub(5, self.shuffled(self.sub(1, kind), values, type_))
        return self.shuffled(self.sub(2, self.name("c")), self.sub(4, "Constant"), body)

    def node(self, depth: int) -> bytes:
        kind = self.rng.choice(["Constant", "Constant", "If", "Custom", "Quantize", "Relu"])
        outputs = [self.sub(2, self.name("o"))] if self.rng.random() < 0.9 else []
        if kind == "Constant":
            return self.constant()
        if kind == "If" and depth < 3:
            branches = [self.attribute(f"{which}_branch", 6, self.graph(depth + 1)) for which in ("then", "else")]
            return self.shuffled(*outputs, self.sub(4, "If"), *branches)
        if kind == "Custom":
            one = self.attribute("table", 5, self.tensor(None))
            more = self.attribute("tables", 10, self.tensor(None), self.tensor(None))
            graphs = self.attribute("graphs", 11, *([self.graph(depth + 1)] if depth < 3 else []))
            sparse = self.attribute("sparse", 22, self.sparse(None))
            return self.shuffled(*outputs, self.sub(4, "Custom"), self.sub(7, "org.example"), one, more, graphs, sparse)
        if kind == "Quantize":
            inputs = self.sub(1, "x") + self.sub(1, f"w{self.rng.randint(1, 9)}")
            return self.shuffled(inputs, *outputs, self.sub(4, "DequantizeLinear"))
        return self.shuffled(self.sub(1, "x"), *outputs, self.sub(4, "Relu"))

    def graph(self, depth: int) -> bytes:
        fields = [self.sub(2, "g")]
        fields += [self.sub(1, self.node(depth)) for _ in range(self.rng.randint(0, 3))]
        fields += [self.sub(5, self.tensor(self.name("w"))) for _ in range(self.rng.randint(0, 4))]
        if self.rng.random() < 0.2:
            fields.append(self.sub(15, self.sparse(self.name("s"))))
        return self.shuffled(*fields)

    def function(self) -> bytes:
        body = [self.sub(7, self.node(1)) for _ in range(self.rng.randint(0, 3))]
        default = self.sub(11, self.shuffled(self.sub(1, "alpha"), self.sub(5, self.tensor(None))))
        return self.shuffled(self.sub(1, self.name("F")), self.sub(10, "local"), *body, default)

    def model(self) -> Wild:
        fields = [integer(1, 8), self.sub(7, self.graph(1)), self.sub(8, self.sub(1, "") + integer(2, 21))]
        fields += [self.sub(25, self.function()) for _ in range(self.rng.randint(0, 2))]
        if self.rng.random() < 0.2:
            fields.append(self.sub(20, self.shuffled(self.sub(1, self.graph(2)), self.sub(2, self.graph(2)))))
        if self.rng.random() < 0.5:
            fields.append(self.sub(14, self.sub(1, "author") + self.sub(2, "me")))
        data = self.shuffled(*fields)
        return Wild(data, {name: bytes(content) for name, content in self.files.items()})


@st.composite
def wild_models(draw: Any, overlong: bool = True) -> Wild:
    """A model; ``overlong`` lets some lengths take more bytes than they need, which no known tool writes."""
    maker = Maker(draw(st.randoms(use_true_random=False, note_method_calls=False)), overlong and draw(st.booleans()))
    return maker.model()
