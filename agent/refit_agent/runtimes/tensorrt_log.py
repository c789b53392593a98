"""TensorRT's messages: to structlog, repeats collapsed to one line and a count, errors kept for our own."""

from __future__ import annotations

from typing import Any

from refit_agent.logs import get_logger

_log = get_logger("refit_agent.tensorrt")
_KEPT_ERRORS = 5


class MessageSink:
    """Takes the messages of one worker. TensorRT calls it from its own threads; it never raises.

    One warning a layer ("Using an engine plan file across different models of devices ...") becomes
    one line and, at `flush`, the number of times that it came.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._warnings: dict[str, int] = {}
        self._errors: list[str] = []

    def take(self, severity: str, text: str) -> None:
        """One message of TensorRT's; ``severity`` as ILogger.Severity names it."""
        key = (severity, text)
        count = self._counts.get(key, 0) + 1
        self._counts[key] = count
        if severity == "WARNING":
            self._warnings[text] = self._warnings.get(text, 0) + 1
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors = [*self._errors, text][-_KEPT_ERRORS:]
        if count == 1:
            self._say(severity, text)

    def flush(self) -> None:
        """Say how often each repeated message came, and forget them all."""
        counts, self._counts = self._counts, {}
        # A copy: a thread of TensorRT's may be adding to the old one at this moment.
        for (severity, text), count in list(counts.items()):
            if count > 1:
                self._say(severity, text, repeated=count)

    def warnings(self) -> list[str]:
        """Every warning once, in the order in which they came, with the number of times if more than one."""
        return [text if count == 1 else f"{text} ({count} times)" for text, count in list(self._warnings.items())]

    def errors(self) -> str:
        """The last errors, oldest first, for the detail of an error of ours; forgotten afterwards."""
        errors, self._errors = self._errors, []
        return "; ".join(errors) or "TensorRT gave no reason"

    def _say(self, severity: str, text: str, **fields: Any) -> None:
        level = {"VERBOSE": "debug", "INFO": "debug", "WARNING": "warning"}.get(severity, "error")
        getattr(_log, level)(text, **fields)


def make_logger(module: Any, sink: MessageSink) -> Any:
    """An ILogger of ``module`` (tensorrt_lean, tensorrt or tensorrt_rtx) that feeds ``sink``."""

    class Bridge(module.ILogger):  # type: ignore[misc]  # the module is known only at run time
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 wants it called by name

        def log(self, severity: Any, text: str) -> None:
            try:
                sink.take(severity.name, text)
            except Exception:  # noqa: BLE001 - an exception would unwind through TensorRT's C++ frames
                return

    return Bridge()
