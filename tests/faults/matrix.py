"""The crash matrix: every call that a provision makes to the file system, spoiled in every way that fits it.

One case: a copy of a scene, the request with one fault in it, then what must hold (see `aftermath`), then the same
request without faults, and what must hold then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import NamedTuple

from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import sweep

from .aftermath import (
    Content,
    content_of,
    damage_in,
    entry_faults,
    innocent_faults,
    listing,
    quota_faults,
    visible_fault,
)
from .deeds import BENIGN, KILLS, REFUSED, deeds_of
from .layer import Call, Fault, Layer, Spot, read_trace
from .scenes import REQUEST, Scene, size_of
from .steps import step_of

_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.004
#: The parent asks for the size of its worker's log again and again; how often depends on the time.
_ASKED_AGAIN = ("stat", ".log")
#: Nothing may be in these folders while nobody is at work and the cache has been swept.
_LEFT = re.compile("cache/(tmp|locks|quarantine|partial)/")


class Outcome(NamedTuple):
    """How the request ended: "ok", "error" (of ours: ``code``), "killed", or "raw" (anything else)."""

    how: str
    key: str = ""
    hit: bool = False
    code: str = ""
    text: str = ""


class Point(NamedTuple):
    """One case of the matrix."""

    scene: Scene
    fault: Fault
    step: str

    @property
    def words(self) -> str:
        return f"{self.scene.name}, {self.step}: {self.fault.words}"


class Result(NamedTuple):
    """What came of it. ``fired`` says whether the fault was injected at all."""

    point: Point
    fired: bool
    outcome: Outcome
    violations: list[str]


class Clean(NamedTuple):
    """A scene without faults: the calls, the content of its entries, and every name that stays."""

    calls: list[Call]
    golden: dict[str, Content]
    names: set[str]


class Matrix:
    """Runs cases of scenes below one folder. Safe to use from several threads."""

    def __init__(self, layer: Layer, folder: Path) -> None:
        self._layer = layer
        self._folder = folder
        self._numbers = count()
        self._clean: dict[str, Clean] = {}

    # ------------------------------------------------------------ what there is to spoil

    def clean(self, scene: Scene) -> Clean:
        """The scene run once without faults."""
        if scene.name in self._clean:
            return self._clean[scene.name]
        with self._place(scene) as spot:
            outcome = self._request(scene, spot, None, [])
            assert (outcome.how, outcome.hit) == ("ok", scene.hit), outcome
            store = _store(spot.root)
            sweep(store)
            golden = {name: content_of(store, key) for name, key in scene.keys.items()}
            golden = {name: content for name, content in golden.items() if content}
            assert golden.keys() >= scene.innocent, "without any fault an innocent entry is gone"
            calls = [c for c in read_trace(spot)[0] if not (c.call == _ASKED_AGAIN[0] and c.path.endswith(_ASKED_AGAIN[1]) and c.number > 2)]  # fmt: skip
            assert self._request(scene, spot, None, [], traced=False).how == "ok"
            sweep(store)
            found = Clean(calls, golden, listing(spot.root / "home", scene.keys))
            stays = [name for name in found.names if _LEFT.match(name)]
            assert not stays, f"without any fault there stays behind: {stays}"
        self._clean[scene.name] = found
        return found

    def points(self, scenes: Sequence[Scene]) -> Iterator[Point]:
        """Every case of the full matrix in these scenes.

        The first scene that makes a call gets every fault of it; in a later one the first such call of each step is
        killed once more.
        """
        done: set[tuple[str, str, int]] = set()
        for scene in scenes:
            steps: set[tuple[str, str]] = set()
            for call in self.clean(scene).calls:
                step = step_of(call)
                first = (step, call.role) not in steps
                steps.add((step, call.role))
                deeds = deeds_of(call, first_of_step=first)
                if (call.call, call.path, call.number) in done:
                    deeds = [deed for deed in deeds if first and deed in ("kill", "kill-parent")]
                done.add((call.call, call.path, call.number))
                for deed in deeds:
                    yield Point(scene, Fault(call, deed), step)

    # ------------------------------------------------------------ one case

    def run(self, point: Point) -> Result:
        """Inject one fault, and look at everything that must hold."""
        scene, golden = point.scene, self.clean(point.scene).golden
        with self._place(scene) as spot:
            store = _store(spot.root)
            before = size_of(store)
            wrong: list[str] = []
            outcome = self._request(scene, spot, point.fault, wrong)
            calls, fired = read_trace(spot)
            wrong += _outcome_faults(point, outcome)
            wrong += _survivors({c.process for c in calls})
            wrong += entry_faults(scene, store, golden)
            wrong += innocent_faults(scene, store, golden)
            wrong += quota_faults(scene, store, at_least=before)
            if outcome.how == "ok" and outcome.key and content_of(store, outcome.key) != golden["K"]:
                wrong.append("the request was answered with an engine that is not there or not right")
            again = self._request(scene, spot, None, wrong, traced=False)
            if again.how != "ok":
                wrong.append(f"the same request fails afterwards: {again.code} {again.text}")
            wrong += entry_faults(scene, store, golden)
            wrong += innocent_faults(scene, store, golden)
            wrong += quota_faults(scene, store)
            wrong += damage_in(store)
            if again.key and content_of(store, again.key) != golden["K"]:
                wrong.append("the engine of the request afterwards is not what a run without faults makes")
            sweep(store)
            names = listing(spot.root / "home", scene.keys)
            if names - self.clean(scene).names:
                self._later(scene, spot)
                names = listing(spot.root / "home", scene.keys)
            wrong += [f"left behind: {name}" for name in sorted(names - self.clean(scene).names)]
            wrong += [f"lost: {name}" for name in sorted(self.clean(scene).names - names)]
        return Result(point, fired, outcome, list(dict.fromkeys(wrong)))

    def run_all(self, points: Sequence[Point], tell: Callable[[Result], None] = lambda _: None) -> list[Result]:
        """All of them, two at a time or as many as there are processors; a fault that was not reached is tried once more."""

        def one(point: Point) -> Result:
            result = self.run(point)
            if not result.fired and not result.violations:
                result = self.run(point)
            tell(result)
            return result

        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            return list(pool.map(one, points))

    # ------------------------------------------------------------ processes

    @contextlib.contextmanager
    def _place(self, scene: Scene) -> Iterator[Spot]:
        folder = self._folder / f"c{next(self._numbers)}"
        folder.mkdir()
        try:
            scene.copy(folder / "x")
            yield Spot(folder / "x", folder / "notes", scene.keys)
        finally:
            shutil.rmtree(folder)

    def _request(
        self, scene: Scene, spot: Spot, fault: Fault | None, wrong: list[str], *, traced: bool = True
    ) -> Outcome:
        env = scene.environment(spot.root)
        if scene.request[0] != "by-service":
            if traced:
                env |= self._layer.environment(spot, fault)
            return self._watched(scene, spot, env, wrong)
        served = env | (self._layer.environment(spot, fault, "daemon") if traced else {})
        with _daemon(served, spot.root / "home" / "run" / "agent.sock"):
            return self._watched(scene, spot, env, wrong)

    def _later(self, scene: Scene, spot: Spot) -> None:
        """An hour goes by, and the state is written anew: what killed writers left there may stay until then."""
        for file in (spot.root / "home" / "state").rglob("*"):
            os.utime(file, (time.time() - 3600,) * 2)
        env = scene.environment(spot.root)
        subprocess.run([sys.executable, str(REQUEST), "detect"], env=env, check=True, stdout=subprocess.DEVNULL)

    def _watched(self, scene: Scene, spot: Spot, env: dict[str, str], wrong: list[str]) -> Outcome:
        """Ask, and look at the cache all the while as another app would."""
        process = subprocess.Popen(
            scene.command(spot.root), env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: said.extend(process.communicate()))
        reader.start()
        store, ends = _store(spot.root), time.monotonic() + _PATIENCE_S
        watched = [scene.keys[name] for name in ("K", "W") if name in scene.keys and name not in scene.damaged]
        while reader.is_alive():
            for key in watched:
                fault = visible_fault(store, key)
                # Once more: between the two looks of one look-up the whole entry may have come.
                if fault and (fault := visible_fault(store, key)):
                    wrong.append(f"visible while it was made: {fault}")
                    watched = []
            if time.monotonic() > ends:
                wrong.append(f"it hangs for {_PATIENCE_S} s")
                process.kill()
            reader.join(_LOOK_EVERY_S)
        return _outcome(process.returncode, *said)


def _store(root: Path) -> Store:
    return Store(str(root / "home" / "cache"))


def _outcome(code: int, out: bytes, err: bytes) -> Outcome:
    if code == -signal.SIGKILL:
        return Outcome("killed")
    try:
        document = json.loads(out)
    except ValueError:
        return Outcome("raw", text=f"exit code {code}: {err.decode(errors='replace')[-3000:]}")
    if code:
        return Outcome("raw", text=f"exit code {code} after its answer: {err.decode(errors='replace')[-3000:]}")
    if "code" in document:
        return Outcome("error", code=document["code"], text=document["text"])
    return Outcome("ok", document["key"], document["hit"])


def _outcome_faults(point: Point, outcome: Outcome) -> Iterator[str]:
    """The request ends in an engine or in words that are true; only a kill ends it otherwise."""
    call, deed, role = point.fault.call, point.fault.deed, point.fault.call.role
    if outcome.how == "raw":
        yield f"it ends in no error of ours: {outcome.text}"
    if outcome.how == "ok" and call.call == "fsync" and deed in REFUSED:
        yield "the disk refused what was written, and it was published all the same"
    if outcome.how == "killed" and (deed not in KILLS or role == "daemon"):
        yield "it was killed, and nobody killed it"
    if role == "daemon" and outcome.code.startswith("service-"):
        return  # whoever insists on the service is told that it is gone, whatever ended it
    if outcome.how == "error":
        if deed.partition(":")[0] in BENIGN or deed in BENIGN:
            yield f"it fails for what is no fault: {outcome.code} {outcome.text}"
        if deed == "full" and outcome.code != "disk-full":
            yield f"the disk is full, and it says {outcome.code}: {outcome.text}"
        if deed == "readonly" and outcome.code != "cache-unwritable":
            yield f"the disk is read-only, and it says {outcome.code}: {outcome.text}"
        if role == "worker" and deed in ("kill", "torn") and outcome.code not in ("worker-crashed", "fetch-failed"):
            yield f"the worker was killed, and it says {outcome.code}: {outcome.text}"


def _survivors(processes: set[int]) -> Iterator[str]:
    """No process of the request outlives it."""
    ends = time.monotonic() + 10
    for process in processes:
        while _alive(process):
            if time.monotonic() > ends:
                yield f"process {process} is still there"
                break
            time.sleep(0.005)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def _daemon(env: dict[str, str], place: Path) -> Iterator[None]:
    """A service for one request; whatever has become of it, it is gone afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "refit_agent", "serve"],
        env=env,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + _PATIENCE_S
        while process.poll() is None and not _answers(place):
            assert time.monotonic() < ends, "the service does not come up"
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(place))
        except OSError:
            return False
        return True
