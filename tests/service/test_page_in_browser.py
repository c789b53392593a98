"""The status page in Chromium, without a window: what a person sees, and what the browser does meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import signal
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, REAL, edit, make_bundle, model_of, shim

from .running import Running, read_answer, until
from .visitor import Visitor

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium here", allow_module_level=True)

#: Nothing but our page is to be asked for anything; root may not have a sandbox.
ARGUMENTS = [
    *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> 'quoted' \u202e&amp;"
SHOWN = HOSTILE.replace("\u202e", "\\u202e")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, headless=True)
        yield browser
        browser.close()


class Tab:
    """One page in a browser of its own, with all that it complained of and asked for."""

    def __init__(self, chromium: Any, **options: Any) -> None:
        self.context = chromium.new_context(**options)
        self.context.set_default_timeout(20_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.text} {message.location['url']}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.context.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> Any:
        self.page.goto(url)
        self.page.locator("#version:not(:empty)").wait_for()
        return self.page

    def see(self, text: str, within: str = "body") -> None:
        self.page.locator(within).get_by_text(text).first.wait_for()


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Opens browsers without cookies."""
    tabs: list[Tab] = []

    def make(**options: Any) -> Tab:
        tabs.append(Tab(chromium, **options))
        return tabs[-1]

    yield make
    for one in tabs:
        one.context.close()


def link(service: Running) -> str:
    url: str = service.ask("POST", "/v1/page").document["url"]
    return url


def named(root: Path, name: str) -> Path:
    """A bundle whose app and model are called ``name``."""

    def change(document: dict[str, Any]) -> None:
        document["app"]["name"] = name
        model_of(document)["name"] = name

    edit(root, change)
    return root


def test_it_shows_what_there_is(service: Running, bundle: Path, tab: Callable[..., Tab]) -> None:
    """Machine, bundle, model, engine and why, errors; nothing is complained of, and nobody else is asked."""
    service.ensure(bundle, MODEL)
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    service.ensure(bundle, "nope")
    seen = tab()
    url = link(service)
    page = seen.open(url)
    assert page.title() == "Refit Agent"
    assert page.locator("html").get_attribute("lang") == "en"
    seen.see("ONNX Runtime", "#machine")
    for text in ("Test", str(bundle), MODEL, "plans/mlp.cpu", "runs on the CPU", "ready"):
        seen.see(text, "#bundles")
    seen.see("unknown-model", "#errors")
    seen.see("1 engine", "#cache")
    seen.see(str(service.home / "state"), "#service")
    seen.see("At rest. 1 of 1 engine ready.", "#summary")
    assert page.locator("meter").get_attribute("aria-label")
    origin = url.partition("/open")[0] + "/"
    assert {request.startswith(origin) for request in seen.requests} == {True}
    assert seen.complaints == []


def test_where_one_comes_from_does_not_matter(service: Running, tab: Callable[..., Tab], tmp_path: Path) -> None:
    """From nowhere, from a link in a file; and again after a reload. The link itself is gone from the history."""
    for from_file in (False, True):
        seen = tab()
        url = link(service)
        if from_file:
            (tmp_path / "mail.html").write_text(f'<!doctype html><a id="it" href="{url}">here</a>')
            seen.page.goto((tmp_path / "mail.html").as_uri())
            seen.page.click("#it")
        else:
            seen.page.goto(url)
        seen.page.locator("#version:not(:empty)").wait_for()
        assert "token" not in seen.page.url
        seen.page.reload()
        seen.page.locator("#version:not(:empty)").wait_for()
        assert seen.page.evaluate("history.length") == 2 + from_file
        assert seen.complaints == []


def test_a_link_that_was_used_says_what_to_do(service: Running, tab: Callable[..., Tab]) -> None:
    """In another browser, and so does the page's own address there."""
    url = link(service)
    first = tab().open(url)
    stranger = tab().page
    for address in (url, first.url):
        assert stranger.goto(address).status == 403
        assert "refit-agent ui" in stranger.locator("body").inner_text()


def test_a_bar_moves_and_goes(
    start: Callable[..., Running], bundle: Path, tab: Callable[..., Tab], tmp_path: Path
) -> None:
    """With the words of its phase and those who wait; then the engine is ready."""
    stops = """
    def wait(name):
        ends = time.monotonic() + 60
        while not os.path.exists(os.path.join(HERE, name)) and time.monotonic() < ends:
            time.sleep(0.02)
    wait("first")
    """
    late = """
    Real = onnxruntime.InferenceSession
    def late(*args, **options):
        wait("second")
        return Real(*args, **options)
    onnxruntime.InferenceSession = late
    """
    runtime = shim(tmp_path / "slow", textwrap.dedent(stops) + REAL + textwrap.dedent(late))
    service = start(path=[runtime])
    record = service.ask("POST", "/v1/bundles", {"path": str(bundle)}).document
    seen = tab()
    page = seen.open(link(service))
    seen.see("Nothing is being made.")
    with service.begin(record["id"], MODEL) as one, service.begin(record["id"], MODEL) as two:
        bar = page.locator("#jobs progress")
        bar.wait_for()
        assert bar.get_attribute("aria-label") == f"Making {MODEL}"
        seen.see("2 callers waiting", "#jobs")
        assert not page.get_by_text("Nothing is being made.").is_visible()
        before = bar.evaluate("bar => bar.value")
        kept = bar.element_handle()
        (runtime / "first").touch()
        seen.see("checking the result", "#jobs")
        assert before < bar.evaluate("bar => bar.value") < 1
        assert kept.evaluate("bar => bar.isConnected"), "it is a new bar each time"
        share = page.locator("#jobs .share").inner_text()
        assert share == "90%"
        seen.see(f"being made, {share}", "#bundles")
        assert page.title().startswith(share)
        (runtime / "second").touch()
        bar.wait_for(state="detached")
        for sock in (one, two):
            assert read_answer(sock).lines[-1]["event"] == "result"
    seen.see("Nothing is being made.")
    seen.see("ready", "#bundles .state")
    assert seen.complaints == []


def test_names_from_a_bundle_are_text(service: Running, tmp_path: Path, tab: Callable[..., Tab]) -> None:
    """Whatever they look like; what cannot be seen or turns the line around is written out."""
    bundle = named(make_bundle(tmp_path / HOSTILE.replace("/", ":")), HOSTILE)
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    service.ensure(bundle, HOSTILE)
    service.ensure(bundle, HOSTILE + "?")
    seen = tab()
    page = seen.open(link(service))
    seen.see(SHOWN, "#bundles h3")
    seen.see(SHOWN, "#bundles h4")
    seen.see(str(tmp_path), "#bundles")
    seen.see("unknown-model", "#errors")
    assert SHOWN.replace("/", ":") in page.locator("#errors").inner_text()
    assert page.locator("img, script:not([src='page.js'])").count() == 0
    assert page.title() == "Refit Agent"
    assert "\u202e" not in page.locator("body").inner_text()
    assert seen.complaints == []


def test_it_says_when_the_service_has_ended(
    start: Callable[..., Running], bundle: Path, slow_runtime: Path, tab: Callable[..., Tab]
) -> None:
    """After kill -9 within seconds, after SIGTERM at once; nothing is asked again and again, no bar stands still."""
    for number in (signal.SIGKILL, signal.SIGTERM):
        service = start(path=[slow_runtime])
        seen = tab()
        page = seen.open(link(service))
        with service.begin(bundle, MODEL):
            page.locator("#jobs progress").wait_for()
            assert service.process is not None
            service.process.send_signal(number)
            seen.see("The service has ended", "#notice")
            assert page.locator("#notice").get_attribute("role") == "alert"
            asked = len(seen.requests)
            page.wait_for_timeout(4000 if number == signal.SIGKILL else 500)
            assert len(seen.requests) == asked
            assert page.locator("progress").count() == 0
        service.process.wait(20)
        service.kill()


def test_it_says_when_the_service_stands_still(service: Running, tab: Callable[..., Tab]) -> None:
    """Stopped, or on a machine that does nothing else any more; and no longer once it goes on."""
    seen = tab()
    seen.page.clock.install()
    page = seen.open(link(service))
    seen.see("At rest", "#summary")
    assert service.process is not None
    service.process.send_signal(signal.SIGSTOP)
    try:
        page.clock.fast_forward(30_000)
        seen.see("has not said anything for a while", "#notice")
    finally:
        service.process.send_signal(signal.SIGCONT)
    page.locator("#notice").wait_for(state="hidden")


def test_it_says_when_its_session_has_ended(service: Running, tab: Callable[..., Tab]) -> None:
    """Or goes on in another tab."""
    seen = tab()
    page = seen.open(link(service))
    second = seen.context.new_page()
    second.goto(page.url)
    seen.see("goes on in another tab", "#notice")
    page.reload()
    page.locator("#version:not(:empty)").wait_for()
    for _ in range(16):
        assert Visitor.of(service).open().status == 200
    seen.see("refit-agent ui", "#notice")
    assert page.reload().status == 403


def test_what_is_unfolded_stays_so(service: Running, bundle: Path, tmp_path: Path, tab: Callable[..., Tab]) -> None:
    """By the keyboard alone, and while news comes in."""

    def change(document: dict[str, Any]) -> None:
        (engine,) = model_of(document)["engines"]
        gpu = {"runtime": "tensorrt", "built_with": "10.16.1", "os": ["linux"], "compute_capabilities": ["9.0"]}
        model_of(document)["engines"].append(engine | gpu | {"path": "plans/gpu.plan"})

    edit(bundle, change)
    service.ask("POST", "/v1/bundles", {"path": str(bundle)})
    seen = tab()
    page = seen.open(link(service))
    summary = page.get_by_text("Why not the others")
    summary.wait_for()
    assert not page.get_by_text("plans/gpu.plan").is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("plans/gpu.plan").wait_for()
    service.ask("POST", "/v1/bundles", {"path": str(named(make_bundle(tmp_path / "two", seed=7), "Second"))})
    seen.see("Second", "#bundles")
    assert page.get_by_text("plans/gpu.plan").is_visible()
    assert page.evaluate("document.activeElement.textContent") == "Why not the others"


#: The least contrast of any text with what lies behind it, after WCAG.
_CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
  };
  let least = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !element.checkVisibility()) continue;
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < least[0]) least = [ratio, element.className + " " + element.textContent.slice(0, 40)];
  }
  return least;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_it_can_be_read(
    start: Callable[..., Running], slow_runtime: Path, tmp_path: Path, tab: Callable[..., Tab], scheme: str, width: int
) -> None:
    """Narrow and wide, in the light and in the dark, with everything that it can show; nothing sticks out."""
    service = start(path=[slow_runtime])
    (slow_runtime / "go").touch()
    ready = named(make_bundle(tmp_path / "ready"), "Ready " + "x" * 100)
    service.ensure(ready, "Ready " + "x" * 100)
    missing = named(make_bundle(tmp_path / "missing", seed=2), "Missing")
    gone = named(make_bundle(tmp_path / "gone", seed=3), "Gone")
    for root in (ready, missing, gone):
        service.ask("POST", "/v1/bundles", {"path": str(root)})
    (gone / "bundle.json").unlink()
    service.ensure("/nowhere/" + "y" * 200, MODEL)
    (slow_runtime / "go").unlink()
    with service.begin(missing, "Missing"):
        until(service.workers)
        seen = tab(color_scheme=scheme, viewport={"width": width, "height": 900})
        page = seen.open(link(service))
        seen.see("being made", "#bundles")
        page.locator("#jobs progress").wait_for()
        seen.see("bundle-missing", "#errors")
        sheet = "getComputedStyle(document.body).backgroundColor"
        red = int(re.findall(r"\d+", page.evaluate(sheet))[0])
        assert red > 200 if scheme == "light" else red < 60
        ratio, where = page.evaluate(_CONTRAST)
        assert ratio >= 4.5, where
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        columns = page.evaluate("getComputedStyle(document.getElementById('columns')).gridTemplateColumns")
        assert len(columns.split()) == (2 if width == 1400 else 1)


def test_motion_can_be_done_without(service: Running, tab: Callable[..., Tab]) -> None:
    """For those who asked their system for less of it."""
    motion = "getComputedStyle(document.documentElement).getPropertyValue('--motion')"
    assert "width" in tab(reduced_motion="no-preference").open(link(service)).evaluate(motion)
    assert tab(reduced_motion="reduce").open(link(service)).evaluate(motion) == "none"
