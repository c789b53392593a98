"""The cache on the disk, and what is fetched into it."""

from __future__ import annotations

from refit_agent.errors.base import RefitAgentError


class CacheError(RefitAgentError):
    code = "cache-error"
    exit_code = 7


class CacheInsecure(CacheError):
    code = "cache-insecure"
    sentence = "The cache folder {path} cannot be trusted: {detail}."
    advice = "Make it yours alone (chown to you, chmod 700), or point REFIT_AGENT_HOME elsewhere."


class CacheUnwritable(CacheError):
    code = "cache-unwritable"
    sentence = "The cache cannot be used at {path}: {detail}."
    advice = "See to it that you can read and write there, or point REFIT_AGENT_HOME elsewhere."


class StateInsecure(CacheError):
    code = "state-insecure"
    sentence = "The state folder {path} cannot be trusted: {detail}."
    advice = "Make it yours alone (chown to you, chmod 700), or point REFIT_AGENT_HOME elsewhere."


class DiskFull(CacheError):
    code = "disk-full"
    sentence = "The disk that holds {path} has {free_bytes} free, and {needed_bytes} is needed."
    advice = "Free space on the disk, run 'refit-agent cache prune', or point REFIT_AGENT_HOME elsewhere."


class CacheBusy(CacheError):
    code = "cache-busy"
    sentence = "Another process has been working on the same engine for {seconds} s (lock {path})."
    advice = "Try again when it has finished."


class EnginesInUse(CacheError):
    code = "engines-in-use"
    sentence = "Engines in {path} are in use, or being made right now: {keys}."
    advice = "Close the apps that use them and try again."


class EntryDamaged(CacheError):
    code = "entry-damaged"
    sentence = "The cached engine {key} is damaged: {detail}."
    advice = "It has been set aside; the next request makes it anew."


# ---------------------------------------------------------------- weights that are elsewhere


class FetchError(RefitAgentError):
    code = "fetch-error"
    exit_code = 9


class FetchFailed(FetchError):
    code = "fetch-failed"
    sentence = "{url} could not be fetched: {detail}."
    advice = "Check the network and try again: what has come already is kept."


class FetchMismatch(FetchError):
    code = "fetch-mismatch"
    sentence = "What is at {url} is not the file that the bundle names: {detail}."
    advice = "Update the app, or ask its vendor."


class FetchForbidden(FetchError):
    code = "fetch-forbidden"
    sentence = "{path} would have to be fetched by {scheme}, which is not allowed here (allowed: {allowed})."
    advice = (
        "The setting fetch (REFIT_AGENT_FETCH) lists what is allowed; 'refit-agent settings' says what decides on it."
    )


class FetchLibraryMissing(FetchError):
    code = "fetch-library-missing"
    sentence = "{url} cannot be fetched: {detail}."
    advice = "pip install 'refit-agent[fetch]', and what it names."
