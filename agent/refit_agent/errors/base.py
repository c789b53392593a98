"""What every error has in common, how one comes back from another process, and what a caller said wrong."""

from __future__ import annotations

from typing import ClassVar

#: A document nests no deeper on purpose; Python shows only so much before it raises RecursionError.
_DEEPEST = 8


class _Facts(dict[str, object]):
    """Format a template although a fact is missing: a KeyError here would hide the real error."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def size_text(count: int) -> str:
    """Bytes for people: "3.1 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _plain(value: object, depth: int = 0) -> object:
    """The fact as it is, but for what no sentence could show and no JSON hold: whatever another process has sent, str()
    of its error must not raise another one."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return f"(a number of {value.bit_length()} bits)"
    if isinstance(value, (list, tuple, dict)) and depth == _DEEPEST:
        return "(more)"
    if isinstance(value, (list, tuple)):
        items = [_plain(item, depth + 1) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {name: _plain(item, depth + 1) for name, item in value.items()}
    return value


class RefitAgentError(Exception):
    """Base of every error raised on purpose; catch it to catch them all.

    Attributes:
        code: stable kebab-case name of the situation.
        facts: what the sentence was built from; JSON-compatible values. Those whose names end in ``_bytes`` are
            numbers here, and sizes for people in the sentence. Numbers of more than 64 bits are words.
        hint: what the reader can do, or "".
    """

    code: ClassVar[str] = "refit-agent-error"
    exit_code: ClassVar[int] = 1
    sentence: ClassVar[str] = "{detail}"
    advice: ClassVar[str] = ""

    def __init__(self, /, **facts: object) -> None:
        facts = {name: _plain(value) for name, value in facts.items()}
        super().__init__(facts)
        self.facts: dict[str, object] = facts
        self.hint: str = str(facts.get("hint") or self.advice.format_map(_Facts(facts)))
        if "pip install" in self.hint:
            from refit_agent.errors.advice import suited  # for what is missing alone

            self.hint = suited(self.hint)

    def __str__(self) -> str:
        counts = {k: v for k, v in self.facts.items() if k.endswith("_bytes") and isinstance(v, int)}
        sizes = {k: size_text(v) for k, v in counts.items()}
        if len(set(sizes.values())) < len(set(counts.values())):
            # "1.0 GiB is free, and 1.0 GiB is needed" would say that there is enough.
            sizes = {k: f"{v} B" for k, v in counts.items()}
        return self._template().format_map(_Facts({**self.facts, **sizes}))

    def _template(self) -> str:
        """The sentence in the form that suits the facts."""
        return self.sentence

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.facts))


def _rebuild(kind: type[RefitAgentError], facts: dict[str, object]) -> RefitAgentError:
    return kind(**facts)


def error_classes() -> dict[str, type[RefitAgentError]]:
    """Every class that can be raised, by its code; serves the wire and the documentation."""
    found: dict[str, type[RefitAgentError]] = {}
    todo: list[type[RefitAgentError]] = [RefitAgentError]
    while todo:
        kind = todo.pop()
        found[kind.code] = kind
        todo.extend(kind.__subclasses__())
    return found


def from_wire(code: str, facts: dict[str, object]) -> RefitAgentError:
    """The error that another process described by ``code`` and ``facts``.

    An unknown code (a newer process) becomes a plain RefitAgentError that names it.
    """
    kind = error_classes().get(code)
    if kind is None:
        return RefitAgentError(detail=f"{code}: {_plain(facts)}")
    return kind(**facts)


class SettingInvalid(RefitAgentError):
    code = "setting-invalid"
    exit_code = 2
    sentence = "{name} is {value!r}, which is not {wanted}."
    advice = "Correct it, or leave it out for the default."


class SettingsFileInvalid(SettingInvalid):
    """A settings file as a whole; a wrong value in one is a SettingInvalid that names file and key."""

    code = "settings-file-invalid"
    sentence = "The settings file {path} cannot be used: {detail}."
    advice = "Correct it, or remove it for the defaults."
