"""Every error this project raises on purpose, in one tree.

    RefitAgentError
    ├── SettingInvalid         the caller or the environment         exit 2
    ├── BundleError            the app's developer can act           exit 3
    │   └── OnnxError          the ONNX file is damaged or hostile
    ├── DeviceError            the machine's owner can act           exit 4
    ├── SelectionError         nothing in the bundle fits            exit 5
    ├── RefitError             an engine could not be made           exit 6
    ├── CacheError             the disk or the cache folder          exit 7
    ├── ServiceError           the local service                     exit 8
    └── FetchError             the network, or what is at the URL    exit 9

Each class has a stable kebab-case ``code`` (command line, wire, logs), takes the facts by
keyword and keeps them in ``facts``, and builds from them one sentence and a hint that says what
to do. All of them pickle. ``ValueError`` and ``TypeError`` still mean a mistake of the calling
code. This module imports nothing of ours.
"""

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


# ---------------------------------------------------------------- the bundle


class OwnWeightsInvalid(SettingInvalid):
    """The file that the caller gave for the weights, in place of the bundle's."""

    code = "own-weights-invalid"
    sentence = "The weights file {path} cannot be used: {detail}"
    advice = "Give an ONNX file of the same model, or none for the bundle's own weights."


class BundleError(RefitAgentError):
    code = "bundle-error"
    exit_code = 3
    advice = "Reinstall the app, or ask its vendor for a sound bundle."


class BundleMissing(BundleError):
    code = "bundle-missing"
    sentence = "There is no bundle at {bundle}: {detail}."
    advice = "Give the folder that holds bundle.json."


class ManifestInvalid(BundleError):
    code = "manifest-invalid"
    sentence = "{path} is not a valid manifest: {detail}."
    advice = "Reinstall the app. Its developer finds the manifest's form in refit-agent's README."


class ManifestTooNew(BundleError):
    code = "manifest-too-new"
    sentence = "{path} has schema {schema}, and this refit-agent reads schemas up to {newest}."
    advice = "Update refit-agent."


class UnsafePath(BundleError):
    code = "unsafe-path"
    sentence = "{owner} names the path {path!r}, which {detail}."
    advice = "Do not use this bundle: a sound one names only files inside its own folder."


class SignatureMissing(BundleError):
    code = "signature-missing"
    sentence = "The bundle at {bundle} is not signed by a key that the app trusts: {detail}."


class SignatureInvalid(BundleError):
    code = "signature-invalid"
    sentence = "The signature of the bundle at {bundle} is not good: {detail}."


class VerifierMissing(BundleError):
    code = "verifier-missing"
    sentence = "The bundle's signature cannot be checked: {detail}."
    advice = "pip install 'refit-agent[signing]'."


class BundleFileMissing(BundleError):
    code = "bundle-file-missing"
    sentence = "The bundle's file {path} is missing or cannot be read: {detail}."


class BundleFileMismatch(BundleError):
    code = "bundle-file-mismatch"
    sentence = "The bundle's file {path} is not the one that the manifest describes: {detail}."


class UnknownModel(BundleError):
    code = "unknown-model"
    sentence = "{bundle} has no model {model!r}; it has: {known}."
    advice = "Name one of those."


class NotAnOnnxModel(BundleError):
    code = "not-an-onnx-model"
    sentence = "Model {model!r} has no ONNX file: its weights are in safetensors files."
    advice = "What was asked for needs a model with an ONNX file."


class UnknownProfile(BundleError):
    code = "unknown-profile"
    sentence = "Model {model!r} has no profile {profile!r}; it has: {known}."
    advice = "Name one of those."


class PlanInvalid(BundleError):
    code = "plan-invalid"
    sentence = "{path} is not the plan that it should be: {detail}."


class OnnxError(BundleError):
    code = "onnx-error"


class OnnxMalformed(OnnxError):
    """The file is not a sound ONNX model; ``path`` and ``offset`` say where."""

    code = "onnx-malformed"
    sentence = "{path} is not a sound ONNX file: at byte {offset}, {detail}."


class OnnxUnsafePath(OnnxError):
    code = "onnx-unsafe-path"
    sentence = "{path} (byte {offset}) keeps weights in {location!r}, which {detail}."
    advice = "Keep external data beside the model, in the same folder or below it."


class OnnxExternalMissing(OnnxError):
    code = "onnx-external-missing"
    sentence = "{path} (byte {offset}) keeps weights in {location!r}, which cannot be read: {detail}."


class WeightUnsupported(OnnxError):
    code = "weight-unsupported"
    sentence = "The weight {name!r} in {path} cannot be used for a refit: {detail}."


class SafetensorsMalformed(BundleError):
    """The file is not sound, or two of them do not go together."""

    code = "safetensors-malformed"
    sentence = "{path} is not a sound safetensors file: {detail}."


# ---------------------------------------------------------------- the machine


class DeviceError(RefitAgentError):
    code = "device-error"
    exit_code = 4


class DeviceFailed(DeviceError):
    code = "device-failed"
    sentence = "The GPU did not answer: {detail}."
    advice = "Check it with nvidia-smi, or use --target cpu."


class RuntimeChanged(DeviceError):
    """What the worker imported is not what the engine was chosen for, e.g. after an update."""

    code = "runtime-changed"
    sentence = "The engine was chosen for {module} {expected}, and the worker found {found}."
    advice = "Try again: what is installed has just been looked at anew."


class GpuMemoryShort(DeviceError):
    code = "gpu-memory-short"
    sentence = "GPU {gpu} has {free_bytes} bytes of memory free and {needed_bytes} are needed: {short_bytes} short."
    advice = "Close other programs that use the GPU and try again."


# ---------------------------------------------------------------- selection


class SelectionError(RefitAgentError):
    code = "selection-error"
    exit_code = 5


class NoMatchingEngine(SelectionError):
    code = "no-matching-engine"
    sentence = "None of the {count} engines of model {model!r} in {app} can be used here: {detail}."
    advice = (
        "Run 'refit-agent explain' on the bundle for every reason; the app's vendor can add an engine for this machine."
    )


class RuntimeMissing(SelectionError):
    code = "runtime-missing"
    sentence = "{model!r} needs {runtime}, which is not installed here."
    advice = "Install it with: pip install 'refit-agent[{extra}]'"


class UnknownTarget(SelectionError):
    code = "unknown-target"
    sentence = "There is no target {target!r} on this machine; there are: {known}."
    advice = "A target is cpu, gpu, cuda:N or a GPU's UUID; none lets refit-agent choose."


# ---------------------------------------------------------------- refit


class RefitError(RefitAgentError):
    code = "refit-error"
    exit_code = 6
    advice = "Run 'refit-agent doctor' and send its output to the app's vendor."


class Cancelled(RefitError):
    """The caller said that the work is to stop."""

    code = "cancelled"
    sentence = "The refit was cancelled."
    advice = "Ask again when it is wanted."


class WorkerCrashed(RefitError):
    code = "worker-crashed"
    sentence = "The refit worker ended with {how} during {phase}. Its last words:\n{log}"


class WorkerTimeout(RefitError):
    code = "worker-timeout"
    sentence = (
        "The refit worker did not finish within {seconds} s (it was in {phase}) and was stopped. Its last words:\n{log}"
    )
    advice = "Allow more time with --deadline, or check whether the GPU hangs."


class PlanRefused(RefitError):
    code = "plan-refused"
    sentence = "{runtime} {version} refused the plan {path}: {detail}."


class WeightsUncovered(RefitError):
    code = "weights-uncovered"
    sentence = "{count} of the plan's weights have no source in {path}: {names}. {detail}"


class WeightsAmbiguous(RefitError):
    code = "weights-ambiguous"
    sentence = "The plan's weight names have more than one reading against {path}: {detail}."
    advice = "The app's developer can name the sources with an explicit weight map in the manifest."


class WeightsMismatch(RefitError):
    code = "weights-mismatch"
    sentence = "The weight {name!r} does not fit the plan: {detail}."


class WeightsNotIdentical(RefitError):
    code = "weights-not-identical"
    sentence = "The plan {path} takes only the weights that it was built from, and {weights} holds others."
    advice = "Ship a plan built with REFIT to change weights, or use the original ONNX file."


class RefitRefused(RefitError):
    code = "refit-refused"
    sentence = "{runtime} did not complete the refit: {detail}."


class CheckImpossible(RefitError):
    """The check run cannot be done with this engine and these inputs, today or tomorrow."""

    code = "check-impossible"
    sentence = "The finished engine cannot be checked: {detail}"
    advice = "The app's developer can mend the golden data, or leave it out."


class GoldenMismatch(RefitError):
    code = "golden-mismatch"
    sentence = "The finished engine computes wrong results: output {output!r} {detail}."


# ---------------------------------------------------------------- the cache


class CacheError(RefitAgentError):
    code = "cache-error"
    exit_code = 7


class CacheInsecure(CacheError):
    code = "cache-insecure"
    sentence = "The cache folder {path} cannot be trusted: {detail}."
    advice = "Make it yours alone (chown to you, chmod 700), or point REFIT_AGENT_HOME elsewhere."


class CacheUnwritable(CacheError):
    code = "cache-unwritable"
    sentence = "The cache cannot be written at {path}: {detail}."
    advice = "Make the folder writable, or point REFIT_AGENT_HOME elsewhere."


class DiskFull(CacheError):
    code = "disk-full"
    sentence = "The disk that holds {path} has {free_bytes} bytes free and {needed_bytes} are needed."
    advice = "Free space on the disk, run 'refit-agent cache prune', or point REFIT_AGENT_HOME elsewhere."


class CacheBusy(CacheError):
    code = "cache-busy"
    sentence = "Another process has been working on the same engine for {seconds} s (lock {path})."
    advice = "Try again when it has finished."


class EntryDamaged(CacheError):
    code = "entry-damaged"
    sentence = "The cached engine {key} is damaged: {detail}."
    advice = "It has been set aside; the next request makes it anew."


# ---------------------------------------------------------------- the service


class ServiceError(RefitAgentError):
    code = "service-error"
    exit_code = 8


class ServiceUnreachable(ServiceError):
    """There is no service, or what answers there is not one that this version can talk to."""

    code = "service-unreachable"
    sentence = "The service at {path} cannot be used: {detail}."
    advice = "Start it with: refit-agent serve"


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
    advice = "REFIT_AGENT_FETCH lists what is allowed."


class FetchLibraryMissing(FetchError):
    code = "fetch-library-missing"
    sentence = "{url} cannot be fetched: {detail}."
    advice = "pip install 'refit-agent[fetch]', and what it names."
