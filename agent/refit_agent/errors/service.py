"""The local service."""

from __future__ import annotations

from refit_agent.errors.base import RefitAgentError


class ServiceError(RefitAgentError):
    code = "service-error"
    exit_code = 8


class ServiceUnreachable(ServiceError):
    """There is no service, or what answers there is not one that this version can talk to; ``path`` is "" where none is
    to be used."""

    code = "service-unreachable"
    sentence = "The service at {path} cannot be used: {detail}."
    advice = "Start it with: refit-agent serve"

    def _template(self) -> str:
        return "No service is used: {detail}." if self.facts.get("path") == "" else self.sentence


class ServiceRefused(ServiceError):
    """The service answered with a problem that is none of the library's: ``problem`` is its code."""

    code = "service-refused"
    sentence = "The service refused the request ({problem}): {detail}"


class ServiceRunning(ServiceError):
    code = "service-running"
    sentence = "Another service runs already, at {path}."
    advice = "One is enough for a user. 'refit-agent status' shows what it does."


class SocketUnusable(ServiceError):
    code = "socket-unusable"
    sentence = "The service cannot listen at {path}: {detail}."
    advice = "Name another place with REFIT_AGENT_SOCKET, for the service and for its clients."


class ServiceNotStopped(ServiceError):
    code = "service-not-stopped"
    sentence = "The service at {path} (process {pid}) was not stopped: {detail}."
    advice = "Stop it yourself and try again."


class ServiceMissing(ServiceError):
    code = "service-missing"
    sentence = "The service is not installed: {detail}."
    advice = "Install it with: pip install 'refit-agent[service]'"


class ServiceStopping(ServiceError):
    code = "service-stopping"
    sentence = "The service is being stopped and takes no more work."
    advice = "Ask again when it has started anew."


class ServiceBusy(ServiceError):
    code = "service-busy"
    sentence = "The engine was not ready after {seconds} s: {detail}."
    advice = "Ask again: the work goes on for as long as anybody waits for it."


class NoSuchLease(ServiceError):
    code = "no-such-lease"
    sentence = "There is no lease {lease!r}: it has run out, or was given back."
    advice = "Ask for the engine again."


class NoSuchBundle(ServiceError):
    code = "no-such-bundle"
    sentence = "No bundle is registered as {id!r}."
    advice = "Register its folder, or name the folder in place of the id."
