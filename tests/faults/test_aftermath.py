"""The checks after a fault see what they are there for: each thing that must not be, made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from entries import key_of, put
from refit_agent.cache.store import Store

from .aftermath import (
    Content,
    content_of,
    damage_in,
    entry_faults,
    innocent_faults,
    listing,
    order_faults,
    quota_faults,
    visible_fault,
)
from .layer import Call, Fault
from .matrix import Outcome, Point, Result, _outcome_faults
from .scenes import Scene
from .steps import STEPS, step_of
from .table import problems, table

K, N = key_of(1), key_of(2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sound entries."""
    store = Store(str(tmp_path / "home" / "cache"))
    put(store, 1)
    put(store, 2)
    return store


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene("s", "", tmp_path, {"K": K, "N": N}, quota=4000)


@pytest.fixture
def golden(store: Store) -> dict[str, Content]:
    return {"K": content_of(store, K), "N": content_of(store, N)}


def test_sound_entries_are_sound(scene: Scene, store: Store, golden: dict[str, Content]) -> None:
    assert not [*entry_faults(scene, store, golden), *innocent_faults(scene, store, golden)]
    assert not [*quota_faults(scene, store), *damage_in(store)]
    assert visible_fault(store, K) == ""


def test_a_half_entry_is_seen(scene: Scene, store: Store, golden: dict[str, Content]) -> None:
    Path(store.folder(K), "entry.json").unlink()
    assert any("not whole" in fault for fault in entry_faults(scene, store, golden))
    assert visible_fault(store, K)
    assert damage_in(store)


def test_other_content_of_the_same_size_and_time_is_seen(
    scene: Scene, store: Store, golden: dict[str, Content]
) -> None:
    """What no look-up can see, the matrix must."""
    plan = Path(store.folder(K), "plan")
    status = plan.stat()
    plan.write_bytes(b"x" * status.st_size)
    import os

    os.utime(plan, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert isinstance(store.lookup(K, touch=False), tuple)
    assert len(list(entry_faults(scene, store, golden))) == 2
    assert visible_fault(store, K)


def test_a_stranger_is_seen(scene: Scene, store: Store, golden: dict[str, Content]) -> None:
    put(store, 3)
    assert any("nobody asked" in fault for fault in entry_faults(scene, store, golden))


def test_a_lost_neighbour_is_seen(scene: Scene, store: Store, golden: dict[str, Content]) -> None:
    shutil.rmtree(store.folder(N))
    assert list(innocent_faults(scene, store, golden))


def test_too_much_is_seen(scene: Scene, store: Store) -> None:
    put(store, 4, 5000)
    assert list(quota_faults(scene, store))
    assert not list(quota_faults(scene, store, at_least=1 << 20))


def test_leftovers_are_seen(scene: Scene, store: Store, tmp_path: Path) -> None:
    before = listing(tmp_path / "home", scene.keys)
    store.stage(K)
    (tmp_path / "home" / "cache" / "locks" / f"{K}.lock").touch()
    assert listing(tmp_path / "home", scene.keys) - before == {"cache/tmp/K.*", "cache/locks/K.lock"}


@pytest.mark.parametrize(
    ("deed", "role", "outcome"),
    [
        ("kill", "worker", Outcome("raw", text="Traceback")),
        ("errno:5", "parent", Outcome("killed")),
        ("short", "worker", Outcome("error", code="refit-error")),
        ("slow:150", "worker", Outcome("error", code="worker-timeout")),
        ("errno:4", "parent", Outcome("error", code="cache-unwritable")),
        ("full", "worker", Outcome("error", code="cache-unwritable")),
        ("readonly", "worker", Outcome("error", code="disk-full")),
        ("kill", "worker", Outcome("error", code="golden-mismatch")),
        ("kill", "daemon", Outcome("killed")),
    ],
)
def test_a_wrong_ending_is_seen(scene: Scene, deed: str, role: str, outcome: Outcome) -> None:
    point = Point(scene, Fault(Call(role, 1, "write", "home/x", 1, "-"), deed), "write")
    assert list(_outcome_faults(point, outcome))
    assert not list(_outcome_faults(point, Outcome("ok", K)))


def test_an_engine_that_the_disk_refused_is_seen(scene: Scene) -> None:
    point = Point(scene, Fault(Call("worker", 1, "fsync", "home/x", 1, "write"), "errno:5"), "fsync")
    assert list(_outcome_faults(point, Outcome("ok", K)))
    assert not list(_outcome_faults(point, Outcome("error", code="cache-unwritable")))


def test_a_name_before_its_bytes_is_seen() -> None:
    """Written and not brought to the disk, brought there too early, or its folder forgotten."""
    staged, published = "home/cache/tmp/K.*", "home/cache/engines/K"
    sound = [
        ("create", f"{staged}/a"),
        ("write", f"{staged}/a"),
        ("fsync", f"{staged}/a"),
        ("create", f"{staged}/entry.json"),
        ("write", f"{staged}/entry.json"),
        ("fsync", f"{staged}/entry.json"),
        ("fsync", staged),
        ("rename", f"{staged} > {published}"),
        ("fsync", "home/cache/engines"),
    ]

    def faults(steps: list[tuple[str, str]]) -> list[str]:
        return list(order_faults([Call("parent", 1, call, path, 1, "-") for call, path in steps]))

    assert not faults(sound)
    for number, (call, _) in enumerate(sound):
        if call == "fsync":
            assert faults(sound[:number] + sound[number + 1 :]), sound[number]
    fetched = [("write", "home/cache/partial/W"), ("rename", f"home/cache/partial/W > {staged}/weights")]
    assert faults([*fetched, *sound])
    assert not faults([fetched[0], ("fsync", "home/cache/partial/W"), fetched[1], *sound])
    early = [*sound[:1], sound[2], sound[1], *sound[3:]]
    assert faults(early)
    assert faults(sound[:7]), "nothing was published"


def test_a_matrix_with_a_step_left_out_is_refused(scene: Scene) -> None:
    """As is a small one, and one whose faults are not reached."""
    call = Call("parent", 1, "write", "home/x", 1, "-")
    results = [
        Result(Point(scene, Fault(call, deed), step), True, Outcome("ok"), [])
        for step in STEPS
        for deed in ("kill", "full", "readonly", "slow:150", "errno:5")
        for _ in range(3)
    ]
    assert not problems(results, whole=True)
    assert any("'rename'" in p for p in problems([r for r in results if r.point.step != "rename"], whole=True))
    assert any("at least" in p for p in problems(results[:200], whole=True))
    assert any("were reached" in p for p in problems([*results, *[results[0]._replace(fired=False)] * 90], whole=True))
    assert problems([results[0]._replace(violations=["it is lost"])], whole=False)
    assert "violated" in table(results)


def test_a_call_that_fits_no_step_is_refused() -> None:
    """A new kind of file has to be given a step."""
    with pytest.raises(LookupError):
        step_of(Call("parent", 1, "write", "home/cache/new", 1, "-"))
