"""Zips that come from elsewhere: sound ones as other tools write them, and every way to make a bad one."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refit_agent.authoring import zip_entries
from refit_agent.authoring.errors import ImportRefused, SourceUnreadable
from refit_agent.authoring.zip_entries import ZipEntries

LOG = b"a line of a log\n" * 1000
_CENTRAL, _END = b"PK\1\2", b"PK\5\6"


def zipped(
    *files: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED, streamed: bool = False
) -> bytes:
    """A zip; ``streamed`` writes sizes behind the data, as to a pipe."""
    out = io.BytesIO()
    with zipfile.ZipFile(Pipe(out) if streamed else out, "w", how) as archive:  # type: ignore[arg-type]
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


class Pipe:
    """Takes bytes, and has no position."""

    def __init__(self, out: io.BytesIO) -> None:
        self.write, self.flush = out.write, out.flush


def deflated(content: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(content) + stream.flush()


def local(name: str, packed: bytes, content: bytes) -> bytes:
    """The header before an entry's data."""
    facts = (zlib.crc32(content), len(packed), len(content), len(name), 0)
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, *facts) + name.encode()


def central(name: str, packed: bytes, content: bytes, at: int) -> bytes:
    """The entry in the directory."""
    facts = (zlib.crc32(content), len(packed), len(content), len(name), 0, 0, 0, 0, 0, at)
    return struct.pack("<4s6H3I5H2I", _CENTRAL, 20, 20, 0, 8, 0, 33, *facts) + name.encode()


def archive(body: bytes, *entries: bytes) -> bytes:
    directory = b"".join(entries)
    facts = (0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + struct.pack("<4s4H2IH", _END, *facts)


def info(name: str, **attributes: object) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.compress_type = zipfile.ZIP_DEFLATED
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def patched(data: bytes, magic: bytes, offset: int, value: bytes) -> bytes:
    """Bytes changed at ``offset`` of the last header that begins with ``magic``."""
    at = data.rindex(magic) + offset
    return data[:at] + value + data[at + len(value) :]


def contents(path: Path) -> dict[str, bytes]:
    with ZipEntries(str(path)) as source:
        return {entry.name: b"".join(source.chunks(entry)) for entry in source.entries}


def refusal(tmp_path: Path, data: bytes) -> str:
    """What is said of a zip that cannot be opened, or read to the end."""
    path = tmp_path / "bad.zip"
    path.write_bytes(data)
    with pytest.raises(ImportRefused) as caught:
        contents(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- sound ones


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_in_it_comes_out(tmp_path: Path, how: int, streamed: bool, step: int) -> None:
    """Stored and deflated, with sizes before and behind the data, empty files and folders, in pieces of any size."""
    data = random.Random(1).randbytes(5000)
    files = [("folder/", b""), ("folder/engine.trt", data), ("empty", b""), ("b.log", LOG), ("r\xe9sum\xe9.txt", b"x")]
    (tmp_path / "a.zip").write_bytes(zipped(*files, how=how, streamed=streamed))
    with ZipEntries(str(tmp_path / "a.zip")) as source:
        assert [(e.number, e.name, e.size) for e in source.entries] == [
            (number, name, len(content)) for number, (name, content) in enumerate(files[1:], 1)
        ]
        for entry, (_, content) in zip(source.entries, files[1:], strict=True):
            pieces = list(source.chunks(entry, step))
            assert b"".join(pieces) == content and max(map(len, pieces), default=0) <= step


def test_zip64_and_what_stands_before_the_zip(tmp_path: Path) -> None:
    """Sizes in the extra field, as large zips have them; a self-unpacking program in front."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("engine.trt", "w", force_zip64=True) as file:
        file.write(LOG)
    (tmp_path / "a.zip").write_bytes(b"MZ a program" + out.getvalue())
    assert contents(tmp_path / "a.zip") == {"engine.trt": LOG}


def test_an_empty_zip(tmp_path: Path) -> None:
    """Is sound, and has nothing."""
    (tmp_path / "a.zip").write_bytes(archive(b""))
    assert contents(tmp_path / "a.zip") == {}


def test_a_zip_of_info_zip(tmp_path: Path) -> None:
    """Another writer than Python's."""
    (tmp_path / "build_result").mkdir()
    (tmp_path / "build_result" / "build.log").write_bytes(LOG)
    try:
        subprocess.run(["zip", "-qr", "a.zip", "build_result"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("zip is not installed")
    assert contents(tmp_path / "a.zip") == {"build_result/build.log": LOG}


def test_a_large_entry_takes_little_memory(tmp_path: Path) -> None:
    """A quarter of a gigabyte passes through a few megabytes."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("plan", "w") as file:
        for _ in range(256):
            file.write(bytes(1 << 20))
    code = """
        import resource, sys
        from refit_agent.authoring.zip_entries import ZipEntries
        source = ZipEntries(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert sum(map(len, source.chunks(source.entries[0]))) == 256 << 20
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    if sys.platform != "linux":
        pytest.skip("ru_maxrss has other units elsewhere")
    from bundles import python

    command, env = python(code, tmp_path / "a.zip")
    grown = int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert grown < 16 << 10


# ---------------------------------------------------------------- names and kinds


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/etc/passwd", "is absolute"),
        ("../bundle.json", "leaves the folder by '..'"),
        ("a/../../b", "leaves the folder by '..'"),
        ("a//b", "has an empty or '.' part"),
        ("./a", "has an empty or '.' part"),
        ("a\\b", "holds a backslash"),
        ("C:/a", "holds a colon"),
        ("a\x1b[2Jb", "holds a control character"),
        ("nul.txt", "a device on Windows"),
        ("x" * 1001, "has a name of more than 1000 bytes"),
        ("/", "has an empty or '.' part"),
        ("", "has no name"),
    ],
)
def test_names_that_could_lead_anywhere(tmp_path: Path, name: str, says: str) -> None:
    """Although no name is ever used as a path."""
    assert says in refusal(tmp_path, zipped((info(name), b"x"), ("engine.trt", b"y")))


def test_a_name_that_is_cut_at_a_nul(tmp_path: Path) -> None:
    """Python's reader would show "good" alone."""
    data = zipped((info("good_evil"), b"x")).replace(b"good_evil", b"good\0evil")
    assert "holds a control character" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("mode", "says"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "device"), (stat.S_IFCHR, "device")]
)
def test_what_is_no_file(tmp_path: Path, mode: int, says: str) -> None:
    """Links and devices."""
    assert says in refusal(tmp_path, zipped((info("engine.trt", external_attr=(mode | 0o777) << 16), b"/etc/passwd")))


@pytest.mark.parametrize("second", ["a.log", "A.LOG", "a.log/"])
def test_a_name_twice(tmp_path: Path, second: str) -> None:
    """In the case of another operating system too, or as a file and a folder."""
    with pytest.warns(UserWarning) if second == "a.log" else pytest.MonkeyPatch.context():
        data = zipped((info("a.log"), b"x"), (info(second), b"" if second.endswith("/") else b"y"))
    assert "twice" in refusal(tmp_path, data)


def test_more_entries_than_any_build_has(tmp_path: Path) -> None:
    """Counted as the directory has them."""
    assert "1001 entries" in refusal(tmp_path, zipped(*((str(number), b"") for number in range(1001))))


def test_a_directory_that_does_not_fit_into_memory(tmp_path: Path) -> None:
    """Its claimed size is not believed: nothing of that size is read."""
    data = zipped(("a", bytes(6 << 20)), how=zipfile.ZIP_STORED)
    at = data.rindex(_CENTRAL)
    larger = patched(data, _END, 12, struct.pack("<II", at, 0))
    assert "its directory has" in refusal(tmp_path, larger)


@pytest.mark.parametrize("bit", [0, 6, 13])
def test_an_encrypted_entry(tmp_path: Path, bit: int) -> None:
    """As the directory says it, or only the entry's own header."""
    data = zipped(("a", b"x"))
    flags = struct.pack("<H", 1 << bit)
    assert "is encrypted" in refusal(tmp_path, patched(data, _CENTRAL, 8, flags))
    assert "something else in its own header" in refusal(tmp_path, patched(data, zip_entries.MAGIC, 6, flags))


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_compress(tmp_path: Path, how: int) -> None:
    """Only stored and deflated entries are read."""
    assert f"is compressed by method {how}" in refusal(tmp_path, zipped(("a", LOG), how=how))


# ---------------------------------------------------------------- sizes


def bomb(claimed: int, content: bytes) -> bytes:
    """A deflated entry whose headers claim ``claimed`` bytes, with a checksum to match the first of them."""
    data = zipped(("a", content))
    facts = struct.pack("<I", zlib.crc32(content[:claimed]))
    size = struct.pack("<I", claimed)
    for magic, crc_at, size_at in ((_CENTRAL, 16, 24), (zip_entries.MAGIC, 14, 22)):
        data = patched(patched(data, magic, crc_at, facts), magic, size_at, size)
    return data


def test_the_stream_counts_and_not_the_header(tmp_path: Path) -> None:
    """More or less than it claims; Python's own reader stops at the claim and is content."""
    path = tmp_path / "bomb.zip"
    path.write_bytes(bomb(10, bytes(1 << 20)))
    with zipfile.ZipFile(path) as archive:
        assert archive.read("a") == bytes(10)
    assert "unpacks to more than the 10 bytes" in refusal(tmp_path, path.read_bytes())
    assert "unpacks to 1000 bytes, and claims 1001" in refusal(tmp_path, bomb(1001, b"x" * 1000))


def test_a_bomb_is_stopped_at_its_claim(tmp_path: Path) -> None:
    """No more than one piece beyond it is ever unpacked."""
    path = tmp_path / "bomb.zip"
    path.write_bytes(bomb(5000, bytes(64 << 20)))
    with ZipEntries(str(path)) as source:
        taken = source.chunks(source.entries[0], 1000)
        assert [len(next(taken)) for _ in range(5)] == [1000] * 5
        with pytest.raises(ImportRefused):
            next(taken)


def test_claims_beyond_what_deflate_can_do(tmp_path: Path) -> None:
    """And stored entries of another size than they have."""
    assert "which no deflate stream can be" in refusal(tmp_path, bomb(1 << 29, b"x"))
    stored = patched(zipped(("a", b"xyz"), how=zipfile.ZIP_STORED), _CENTRAL, 24, struct.pack("<I", 4))
    assert "claims to be 4 bytes in 3" in refusal(tmp_path, stored)


def test_all_entries_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratio and sum count, not the single entry."""
    monkeypatch.setattr(zip_entries, "_UNPACKED_BYTES", 1 << 20)
    data = zipped(*((str(number), bytes(1 << 19)) for number in range(3)))
    assert "would unpack to 1572864" in refusal(tmp_path, data)
    (tmp_path / "a.zip").write_bytes(zipped(*((str(number), bytes(1 << 19)) for number in range(2))))
    assert len(contents(tmp_path / "a.zip")) == 2


def test_zip64_that_lies(tmp_path: Path) -> None:
    """A size of exabytes in the extra field."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        extra = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
        archive.writestr(info("a", extra=extra, compress_type=zipfile.ZIP_STORED), b"xyz")
    data = out.getvalue()
    lying = patched(data, _CENTRAL, 20, b"\xff" * 8)
    assert "would unpack to 1152921504606846976" in refusal(tmp_path, lying)
    short = patched(lying, _CENTRAL, 46 + 1 + 2, struct.pack("<H", 4))
    assert "no sound zip" in refusal(tmp_path, short)


# ---------------------------------------------------------------- overlaps and damage


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """The second entry, header and all, quoted by the first: by this a small zip unpacks to petabytes."""
    kernel = bytes(1 << 16)
    quoted = local("b", deflated(kernel), kernel) + deflated(kernel)
    # A stored block's header makes the other entry's header a part of this stream, which goes on with its data.
    packed = struct.pack("<BHH", 0, 31, 31 ^ 0xFFFF) + quoted
    content = zlib.decompress(packed, -15)
    assert content == quoted[:31] + kernel
    data = local("a", packed, content) + packed
    zip_file = archive(data, central("a", packed, content, 0), central("b", deflated(kernel), kernel, 31 + 5))
    with zipfile.ZipFile(io.BytesIO(zip_file)) as known:
        assert known.namelist() == ["a", "b"]
    assert "overlap each other" in refusal(tmp_path, zip_file)
    twice = local("a", deflated(kernel), kernel) + deflated(kernel)
    entries = [central(name, deflated(kernel), kernel, 0) for name in ("a", "a2")]
    assert "another name" in refusal(tmp_path, archive(twice, *entries))


def test_an_entry_that_reaches_into_the_directory(tmp_path: Path) -> None:
    """Or lies outside of the file."""
    data = zipped(("a", b"xyz" * 50), how=zipfile.ZIP_STORED)
    longer = struct.pack("<II", 170, 170)
    reaching = patched(patched(data, _CENTRAL, 20, longer), zip_entries.MAGIC, 18, longer)
    assert "overlap" in refusal(tmp_path, reaching)
    assert "lies outside of it" in refusal(tmp_path, patched(data, _CENTRAL, 42, struct.pack("<I", 1 << 31)))


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (0, b"PK\3\5", "the header of its entry 'a.log' is none"),
        (30, b"b.log", "another name in its own header"),
        (8, b"\0\0", "something else in its own header"),
        (14, b"\0\0\0\0", "another size or checksum in its own header"),
        (22, b"\1\0\0\0", "another size or checksum in its own header"),
    ],
)
def test_headers_that_contradict_the_directory(tmp_path: Path, offset: int, value: bytes, says: str) -> None:
    """Two tools would unpack two different files."""
    data = zipped(("a.log", LOG))
    assert says in refusal(tmp_path, data[:offset] + value + data[offset + len(value) :])


def test_a_damaged_checksum(tmp_path: Path) -> None:
    """Bytes that changed in a stored entry, and a stream that is no deflate any more."""
    stored = zipped(("a", LOG), how=zipfile.ZIP_STORED)
    assert "its checksum is not" in refusal(tmp_path, stored.replace(b"a line", b"a liar", 1))
    deflated = bytearray(zipped(("a", random.Random(2).randbytes(4000))))
    deflated[31] = 0xFF
    assert "is damaged" in refusal(tmp_path, bytes(deflated))


@pytest.mark.parametrize("cut", [1, 5, 22, 100, 1000])
def test_a_zip_that_is_cut_short(tmp_path: Path, cut: int) -> None:
    """A download that broke off."""
    assert "no sound zip" in refusal(tmp_path, zipped(("a", random.Random(3).randbytes(2000)))[:-cut])


def test_a_stream_with_something_behind_its_end(tmp_path: Path) -> None:
    """Bytes that no tool would show."""
    packed = deflated(LOG) + b"hidden"
    data = archive(local("a", packed, LOG) + packed, central("a", packed, LOG, 0))
    assert "ends before the" in refusal(tmp_path, data)


def test_a_stream_that_never_ends(tmp_path: Path) -> None:
    """Its last block is missing, and everything else agrees."""
    packed = deflated(LOG)[:-3]
    data = archive(local("a", packed, LOG) + packed, central("a", packed, LOG, 0))
    assert "'a' is cut off" in refusal(tmp_path, data)


def test_a_folder_with_content(tmp_path: Path) -> None:
    """Nobody would look for it there."""
    assert "is a folder with content" in refusal(tmp_path, zipped(("folder/", b"hidden")))


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    """As a download that is begun anew."""
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(("a", random.Random(5).randbytes(5000))))
    with ZipEntries(str(path)) as source:
        os.truncate(path, 100)
        with pytest.raises(ImportRefused, match="cut off"):
            list(source.chunks(source.entries[0]))


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None, lambda p: p.symlink_to(p)], ids=["folder", "none", "loop"])  # fmt: skip
def test_what_cannot_be_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A folder, nothing, a link to itself."""
    make(tmp_path / "a.zip")
    with pytest.raises(SourceUnreadable):
        ZipEntries(str(tmp_path / "a.zip"))


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 2),
)
@settings(max_examples=400, deadline=None)
def test_whatever_is_changed_it_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], sample: int
) -> None:
    """Never another error, and never other content under an entry's name."""
    files = [("build_result/engine.trt", random.Random(4).randbytes(300)), ("b.log", LOG)]
    data = bytearray(zipped(*files, how=zipfile.ZIP_DEFLATED if sample else zipfile.ZIP_STORED, streamed=sample == 2))
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.mktemp("fuzz") / "a.zip"
    path.write_bytes(data)
    try:
        found = contents(path)
    except ImportRefused:
        return
    for content in found.values():
        assert content in (files[0][1], files[1][1])
