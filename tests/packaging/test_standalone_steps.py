"""The steps of the standalone build, each by itself; nothing is downloaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from standalone_folder import BUILDER, ROOT

sys.path.insert(0, str(BUILDER))

from standalone import bytecode, elf, layout, rules
from standalone.assemble import Made, make_uniform
from standalone.checks import check_libraries, check_mentions, imported_names
from standalone.commands import BuildError, run
from standalone.licences import collect
from standalone.pack import differences, pack, publish
from standalone.packages import Distribution, normalised, requirement_blocks, unpack
from standalone.sizes import check_bounds, measure

LOCKS = ("cu12.lock", "cu13.lock", "tools.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_hashes_and_no_place(name: str) -> None:
    text = (BUILDER / name).read_text()
    assert not re.search(r"://|--index|--find-links|--extra|localhost", text)
    for _, block in requirement_blocks(text):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block


@pytest.mark.parametrize("cuda", layout.CUDA_MAJORS)
def test_lock_satisfies_what_the_project_asks_for(cuda: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    version = pytest.importorskip("packaging.version")
    if sys.version_info < (3, 11):
        tomllib = pytest.importorskip("tomli")
    else:
        import tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for e in ("service", "signing", "cpu", f"cu{cuda}") for r in extras[e])]
    pinned: dict[str, list[str]] = {}
    for name, block in requirement_blocks(layout.locks(cuda).read_text()):
        match = re.match(r"[^=]+==([^\s;\\]+)", block)
        assert match
        pinned.setdefault(name, []).append(match[1])
    assert len(wanted) > 10
    for line in wanted:
        requirement = requirements.Requirement(line)
        found = pinned.get(normalised(requirement.name), [])
        assert found, f"{line}: not in the lock; run packaging/standalone/update_locks.sh"
        for number in found:
            assert version.Version(number) in requirement.specifier, f"{line}: the lock has {number}"


@pytest.mark.parametrize("cuda", layout.CUDA_MAJORS)
def test_every_distribution_of_the_lock_has_a_part_or_a_reason(cuda: str) -> None:
    locked = {name for name, _ in requirement_blocks(layout.locks(cuda).read_text())}
    assert locked <= set(rules.DISTRIBUTIONS)


def test_requirement_without_a_version_is_an_error() -> None:
    with pytest.raises(BuildError, match="pins no version"):
        requirement_blocks("click>=8 \\\n    --hash=sha256:00\n")


def test_last_rule_that_matches_decides() -> None:
    some = [rules.Rule(False, "a/*", ""), rules.Rule(True, "a/keep*", "")]
    assert [rules.kept(n, some) for n in ("a/b/c.py", "a/keep.py", "b.py")] == [False, True, True]


def test_every_drop_rule_of_the_standard_library_has_something_to_drop() -> None:
    # A name that was mistyped drops nothing, and nobody sees it; other versions of Python may lack some.
    stdlib = Path(os.__file__).parent
    top = {p.name.removesuffix(".py") for p in stdlib.iterdir()} | set(sys.stdlib_module_names)
    for rule in rules.STDLIB:
        if not rule.pattern.startswith(
            (
                "*",
                "lib-dynload",
                "config",
                "_sysconfigdata",
                "__",
                "_",
                "site-packages",
                "dist-packages",
                "sitecustomize",
                "usercustomize",
                "LICENSE",
            )
        ):
            name = rule.pattern.split("/")[0].removesuffix(".py").rstrip("*")
            gone_since_3_12_or_3_13 = sys.version_info >= (3, 12)
            assert any(t.startswith(name) for t in top) or gone_since_3_12_or_3_13, rule.pattern


def test_imports_inside_functions_count() -> None:
    assert imported_names(b"import os\ndef f():\n    from a.b import c\n    import d as e\n") == {"os", "a.b", "d"}


def test_module_that_we_import_must_not_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="asyncio"):
        check_mentions(tmp_path)
    check_mentions(Path(os.__file__).parent)


def test_byte_code_is_the_same_every_time_and_runs(tmp_path: Path) -> None:
    source = b'"""Doc."""\nfrom __future__ import annotations\nS = {"a", "b", "c"}\ndef f(x: int) -> int:\n    """Doc."""\n    assert x > 0\n    return x\n\nclass C:\n    """Doc."""\n'
    for place in ("one", "two"):
        (tmp_path / place / "pkg").mkdir(parents=True)
        (tmp_path / place / "pkg" / "__init__.py").write_bytes(source)
        env = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(BUILDER)}
        subprocess.run(
            [sys.executable, "-m", "standalone.bytecode", tmp_path / place, "none", "none"], env=env, check=True
        )
        assert [p.name for p in (tmp_path / place / "pkg").iterdir()] == ["__init__.pyc"]
    assert (tmp_path / "one/pkg/__init__.pyc").read_bytes() == (tmp_path / "two/pkg/__init__.pyc").read_bytes()
    code = "import pkg; print(pkg.f(1), pkg.f.__doc__, pkg.C.__doc__, pkg.f.__code__.co_filename)\ntry: pkg.f(0)\nexcept AssertionError: print('held')"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "one", capture_output=True, text=True, check=True
    )
    assert said.stdout == "1 None None pkg/__init__.py\nheld\n"


def test_documentation_stays_where_it_is_shown(tmp_path: Path) -> None:
    for name in ("cli", "other"):
        (tmp_path / f"{name}.py").write_text('"""Doc."""\n')
    bytecode.compile_folder(tmp_path, ("cli",), ("other.py",))
    assert (tmp_path / "cli.pyc").is_file() and not (tmp_path / "cli.py").exists()
    # Kept as source, its code is found beside it.
    assert (tmp_path / "other.py").is_file() and len(list((tmp_path / "__pycache__").glob("other.*.pyc"))) == 1
    assert b"Doc." in (tmp_path / "cli.pyc").read_bytes()
    assert b"Doc." not in next((tmp_path / "__pycache__").iterdir()).read_bytes()


def test_what_an_elf_file_needs_is_what_ldd_finds() -> None:
    import _ctypes

    path = Path(os.path.realpath(sys.executable))
    found = elf.needs(path)
    assert "libc.so.6" in found.libraries
    assert re.fullmatch(r"2\.\d+(\.\d+)?", elf.highest(found.versions, "GLIBC"))
    assert elf.is_elf(path) and elf.loadable(path) and not elf.is_elf(Path(__file__))
    if getattr(_ctypes, "__file__", None):
        assert any(n.startswith("libffi") for n in elf.needs(Path(_ctypes.__file__)).libraries)


def test_versions_are_compared_as_numbers() -> None:
    versions = {"GLIBC_2.4", "GLIBC_2.35", "GLIBC_2.2.5", "GLIBC_PRIVATE", "GLIBCXX_3.4.30"}
    assert elf.highest(versions, "GLIBC") == "2.35"
    assert elf.highest(versions, "GLIBCXX") == "3.4.30"
    assert elf.highest(versions, "CXXABI") == ""


def test_library_that_nothing_brings_is_an_error(tmp_path: Path) -> None:
    import _ctypes

    if not getattr(_ctypes, "__file__", None):
        pytest.skip("_ctypes is built into this Python")
    for place in ("folder/lib", "apart/lib", "folder/python/lib"):
        (tmp_path / place).mkdir(parents=True)
    module = tmp_path / "folder/lib/_ctypes.so"
    module.write_bytes(Path(_ctypes.__file__).read_bytes())
    if all(n in rules.FROM_SYSTEM for n in elf.needs(module).libraries):
        pytest.skip("this _ctypes needs no other library")
    with pytest.raises(BuildError, match=r"needs libffi"):
        check_libraries(tmp_path / "folder", tmp_path / "apart")


def _wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in {
            f"{name}-1.0.dist-info/METADATA": f"Name: {name}\nVersion: 1.0\n\nA long text.\n",
            **files,
        }.items():
            archive.writestr(inner, text)
    return path


def test_wheels_are_unpacked_without_what_the_rules_leave_out(tmp_path: Path) -> None:
    wheel = _wheel(
        tmp_path, "click", {"click/a.py": "", "click/tests/b.py": "", "click/c.pyi": "", "click-1.0.data/scripts/x": ""}
    )
    (found,) = unpack([wheel], dict.fromkeys(layout.PARTS, tmp_path / "out"))
    assert found.files == ("click-1.0.dist-info/METADATA", "click/a.py")
    assert (tmp_path / "out/lib/click-1.0.dist-info/METADATA").read_text() == "Name: click\nVersion: 1.0\n"


@pytest.mark.parametrize("path", ["../click/a.py", "/click/a.py", "click/../../a.py"])
def test_wheel_that_writes_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(BuildError, match="outside"):
        unpack([_wheel(tmp_path, "click", {path: ""})], dict.fromkeys(layout.PARTS, tmp_path / "out"))


def test_two_wheels_must_not_bring_one_file(tmp_path: Path) -> None:
    wheels = [_wheel(tmp_path, name, {"same.py": ""}) for name in ("click", "rich")]
    with pytest.raises(BuildError, match=r"same\.py"):
        unpack(wheels, dict.fromkeys(layout.PARTS, tmp_path / "out"))


def test_package_without_a_licence_is_an_error(tmp_path: Path) -> None:
    from standalone.interpreter import Embedded

    wheel = _wheel(tmp_path, "click", {"click/a.py": ""})
    part = [Distribution("click", "1.0", layout.CORE, wheel, "", ())]
    nothing = Embedded(tmp_path, tmp_path, {})
    with pytest.raises(BuildError, match=r"no licence text was found for: .*click"):
        collect(part, nothing, dict.fromkeys(layout.PARTS, tmp_path))


def test_archives_do_not_tell_who_made_them_and_when(tmp_path: Path) -> None:
    made = []
    for place, mask in (("one", 0o755), ("two", 0o700)):
        root = tmp_path / place / "folder"
        (root / "bin").mkdir(parents=True, mode=mask)
        for name in ("b", "a", "bin/run"):
            (root / name).write_text(name)
            (root / name).chmod(0o600)
        make_uniform(root)
        made.append(pack(root))
    assert made[0].read_bytes() == made[1].read_bytes()
    assert not differences(tmp_path / "one/folder", tmp_path / "two/folder")
    with tarfile.open(made[0]) as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == ["folder", "folder/a", "folder/b", "folder/bin", "folder/bin/run"]
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members} == {(0, 0, "root", layout.DEFAULT_EPOCH)}
    assert {m.name: m.mode for m in members}["folder/bin/run"] == 0o755
    (tmp_path / "two/folder/a").write_text("x")
    (tmp_path / "two/folder/c").write_text("")
    assert len(differences(tmp_path / "one/folder", tmp_path / "two/folder")) >= 2


def test_result_replaces_that_of_an_earlier_build(tmp_path: Path) -> None:
    for place, name in (("dist", "old"), ("work", "new")):
        (tmp_path / place / "folder").mkdir(parents=True)
        (tmp_path / place / "folder" / name).write_text("")
    publish([tmp_path / "work/folder"], tmp_path / "dist")
    assert [p.name for p in (tmp_path / "dist/folder").iterdir()] == ["new"]


def test_folder_beyond_its_bounds_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tmp_path / layout.folder_name(layout.CORE), tmp_path / layout.folder_name(layout.ORT)
    for folder in folders:
        folder.mkdir()
    (folders[0] / "a").write_bytes(b"x" * 5000)
    made = Made(folders, {layout.CORE: ("a",), layout.LEAN: (), layout.ORT: ()})
    sizes = measure(made, [])
    # Two blocks for the file, one for the folder itself.
    assert next(s for s in sizes if s.name == folders[0].name).on_disk == 3 * 4096
    assert not check_bounds(sizes, "13")
    monkeypatch.setattr(layout, "MOST_ON_DISK", {"13": 12_287})
    assert ["on disk" in problem for problem in check_bounds(sizes, "13")] == [True]


def test_program_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(BuildError, match="ended with 3:\nfor this reason"):
        run([sys.executable, "-c", "import sys; print('for this reason'); sys.exit(3)"])
    with pytest.raises(BuildError, match="cannot be run"):
        run(["/no/such/program"])
