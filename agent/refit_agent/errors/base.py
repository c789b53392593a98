"""What every error has in common, how one comes back from another process, and what a caller said wrong."""

from __future__ import annotations

from typing import ClassVar


class _Facts(dict[str, object]):
    """Format a template although a fact is missing: a KeyError here would hide the real error."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


class RefitAgentError(Exception):
    """Base of every error raised on purpose; catch it to catch them all.

    Attributes:
        code: stable kebab-case name of the situation.
        facts: what the sentence was built from; JSON-compatible values.
        hint: what the reader can do, or "".
    """

    code: ClassVar[str] = "refit-agent-error"
    exit_code: ClassVar[int] = 1
    sentence: ClassVar[str] = "{detail}"
    advice: ClassVar[str] = ""

    def __init__(self, /, **facts: object) -> None:
        super().__init__(facts)
        self.facts: dict[str, object] = facts
        self.hint: str = str(facts.get("hint") or self.advice.format_map(_Facts(facts)))
        if "pip install" in self.hint:
            from refit_agent.errors.advice import suited  # for what is missing alone

            self.hint = suited(self.hint)

    def __str__(self) -> str:
        return self.sentence.format_map(_Facts(self.facts))

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
        return RefitAgentError(detail=f"{code}: {facts}")
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
