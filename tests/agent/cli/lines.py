"""The lines of `provision --progress=json`, read and held against what is promised of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from refit_agent.cli import progress_events as events

decoder = msgspec.json.Decoder(events.Event, strict=True)


class Lines:
    """All lines of one command, checked for what holds of every command."""

    def __init__(self, out: str, *, whole: bool = True) -> None:
        assert out.isascii() and (out.endswith("\n") or not whole)
        self.all = [_checked(line) for line in out.split("\n")[:-1]]
        self.steps = [line for line in self.all if line["event"] == "progress"]
        self.engines = [line for line in self.all if line["event"] == "engine"]
        assert self.all[0]["event"] == "start" and self.all[0]["protocol"] == 1
        assert [line["event"] for line in self.all].count("start") == 1
        percents = [line["percent"] for line in self.all if "percent" in line]
        assert percents == sorted(percents) and percents[0] >= 0 and percents[-1] <= 100
        assert all(step["eta_s"] is None or step["eta_s"] >= 0 for step in self.steps)
        assert [e["number"] for e in self.engines] == [*range(1, len(self.engines) + 1)]
        if whole:
            assert [line["event"] for line in self.all].count("result") == 1
            assert self.result["engines"][: len(self.engines)] == [e["engine"] for e in self.engines]

    @property
    def start(self) -> dict[str, Any]:
        return self.all[0]

    @property
    def result(self) -> dict[str, Any]:
        assert self.all[-1]["event"] == "result"
        return self.all[-1]

    @property
    def percent(self) -> float:
        """The last one."""
        return float(self.all[-1]["percent"])


def _checked(line: str) -> dict[str, Any]:
    """The line as a document, which has every field that its type has, of that type, and no other; nested objects
    stand last."""
    document: dict[str, Any] = json.loads(line)
    assert msgspec.to_builtins(decoder.decode(line)) == document
    nested = [isinstance(value, (dict, list)) for value in document.values()]
    if document["event"] != "result":
        assert nested == sorted(nested)
    assert line == json.dumps(document, separators=(",", ":")), "no space between the tokens"
    return document
