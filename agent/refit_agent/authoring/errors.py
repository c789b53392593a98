"""Errors of those who make bundles; like all others they have a stable code, and end a command with 3."""

from __future__ import annotations

from typing import ClassVar

from refit_agent.errors import BundleError, SettingInvalid


class AuthoringError(BundleError):
    """A bundle could not be made or changed; what was on disk is as it was before."""

    code: ClassVar[str] = "authoring-error"
    advice: ClassVar[str] = ""


class AuthoringMissing(AuthoringError):
    code: ClassVar[str] = "authoring-missing"
    sentence: ClassVar[str] = "Making bundles needs {library}, which is not installed: {detail}."
    advice: ClassVar[str] = "pip install 'refit-agent[authoring]'."


class ModelUnsupported(AuthoringError):
    code: ClassVar[str] = "model-unsupported"
    sentence: ClassVar[str] = "{path}: {detail}."


class KeyInvalid(AuthoringError):
    code: ClassVar[str] = "key-invalid"
    sentence: ClassVar[str] = "The key file {path} cannot be used: {detail}."


# ---------------------------------------------------------------- building engines


class BuildOptionsInvalid(SettingInvalid):
    """Options of a build that contradict themselves, or cannot be read."""

    code: ClassVar[str] = "build-options-invalid"
    sentence: ClassVar[str] = "The build cannot be done as asked: {detail}."
    advice: ClassVar[str] = "See 'refit-agent bundle build -h'."


class BuilderMissing(AuthoringError):
    code: ClassVar[str] = "builder-missing"
    sentence: ClassVar[str] = "No TensorRT that could build engines is installed: {detail}."
    advice: ClassVar[str] = (
        "pip install tensorrt (10 or later), or tensorrt_rtx, or for Python up to 3.10 tensorrt==8.6.0; "
        "tensorrt_lean runs engines and cannot build any. Without a GPU, 'bundle canonicalize' makes the model to ship, "
        "and 'bundle add-engine --cpu' its CPU target."
    )


class BuilderLacks(AuthoringError):
    """The installed builder is too old, or too new, for what was asked."""

    code: ClassVar[str] = "builder-lacks"
    sentence: ClassVar[str] = "{builder} {version} cannot build that: {detail}."


class BuildFailed(AuthoringError):
    code: ClassVar[str] = "build-failed"
    sentence: ClassVar[str] = "{builder} built no engine from {path}: {detail}."


class BuilderCrashed(AuthoringError):
    code: ClassVar[str] = "builder-crashed"
    sentence: ClassVar[str] = "The builder ended with {how} during {phase}. Its last words:\n{log}"


class BuilderTimeout(AuthoringError):
    code: ClassVar[str] = "builder-timeout"
    sentence: ClassVar[str] = (
        "The builder did not finish within {seconds} s (it was in {phase}) and was stopped. Its last words:\n{log}"
    )
    advice: ClassVar[str] = "Allow more time with --deadline, or search less with --builder-optimization-level."


class WeightsLost(AuthoringError):
    """An engine built from zeros does not ask for a weight, and so may have kept it as zeros."""

    code: ClassVar[str] = "weights-lost"
    sentence: ClassVar[str] = (
        "The engine built from {path} with zeroed weights would compute with zeros in place of {count} of them, "
        "since it does not ask for: {names}."
    )
    advice: ClassVar[str] = "Build with --strip plan (TensorRT 10 or later), and from the canonical form."


class OutputInTheWay(AuthoringError):
    code: ClassVar[str] = "output-in-the-way"
    sentence: ClassVar[str] = "{path} is there already{detail}."
    advice: ClassVar[str] = "Give another place or another name, or replace it with --force."


class RecordInvalid(AuthoringError):
    code: ClassVar[str] = "build-record-invalid"
    sentence: ClassVar[str] = "{path} is not the record of a build: {detail}."


# ---------------------------------------------------------------- copies without weights


class OutputRefused(AuthoringError):
    code: ClassVar[str] = "output-refused"
    sentence: ClassVar[str] = "{path} is not written: {detail}."
    advice: ClassVar[str] = "Give another name for the output."


class OutputUnwritable(AuthoringError):
    code: ClassVar[str] = "output-unwritable"
    sentence: ClassVar[str] = "{path} cannot be written: {detail}."


class NotRestorable(AuthoringError):
    """A stripped model and the model that is to give the weights do not belong together, or one was damaged."""

    code: ClassVar[str] = "not-restorable"
    sentence: ClassVar[str] = "The weights of {model} cannot be put back into {path}: {detail}."


# ---------------------------------------------------------------- the canonical form


class CanonicalDiffers(AuthoringError):
    """A fault of ours, or a model whose results hang on the last bit of its arithmetic; nothing was written."""

    code: ClassVar[str] = "canonical-differs"
    sentence: ClassVar[str] = "The canonical form of {path} computes something else: output {output!r} {detail}."
    advice: ClassVar[str] = "Please report it; --no-check writes the canonical form all the same."


# ---------------------------------------------------------------- changing a bundle


class BundleExists(AuthoringError):
    code: ClassVar[str] = "bundle-exists"
    sentence: ClassVar[str] = "{bundle} is a bundle already."
    advice: ClassVar[str] = "Add models and engines to it, or make the new one in another folder."


class BundleBusy(AuthoringError):
    code: ClassVar[str] = "bundle-busy"
    sentence: ClassVar[str] = "Another command has been changing {bundle} for {seconds} s."
    advice: ClassVar[str] = "Try again when it has finished."


class BundleUnwritable(AuthoringError):
    code: ClassVar[str] = "bundle-unwritable"
    sentence: ClassVar[str] = "The bundle {bundle} cannot be changed: {detail}."


class FieldsUnknown(AuthoringError):
    """Writing the manifest anew would lose what a newer version put into it."""

    code: ClassVar[str] = "manifest-fields-unknown"
    sentence: ClassVar[str] = "{path} has fields that this refit-agent does not know and would lose: {fields}."
    advice: ClassVar[str] = "Update refit-agent, or remove them if they are misspelt."


class SourceUnreadable(AuthoringError):
    code: ClassVar[str] = "source-unreadable"
    sentence: ClassVar[str] = "{path} cannot be read: {detail}."


class NameTaken(AuthoringError):
    code: ClassVar[str] = "name-taken"
    sentence: ClassVar[str] = "{bundle} has {what} already."
    advice: ClassVar[str] = "Give another name, or --replace."


class NameUnusable(SettingInvalid):
    code: ClassVar[str] = "name-unusable"
    sentence: ClassVar[str] = "{name!r} cannot be {what}: it {detail}."
    advice: ClassVar[str] = "Give another name."


class FactsMissing(SettingInvalid):
    """What a plan does not tell of itself was not given; ``missing`` is a list of names of `EngineFacts`."""

    code: ClassVar[str] = "facts-missing"
    sentence: ClassVar[str] = "{plan} does not say of itself: {missing}."
    advice: ClassVar[str] = "Give what is missing."


class EngineRefused(AuthoringError):
    """An engine that could never be used, or that contradicts what is said of it."""

    code: ClassVar[str] = "engine-refused"
    sentence: ClassVar[str] = "{plan} was not added: {detail}."


class ImportRefused(AuthoringError):
    """What another tool made is damaged, hostile, or not what can be imported."""

    code: ClassVar[str] = "import-refused"
    sentence: ClassVar[str] = "{path} cannot be imported: {detail}."


class GoldenImpossible(AuthoringError):
    code: ClassVar[str] = "golden-impossible"
    sentence: ClassVar[str] = "There is no golden data for {model!r}: {detail}."


class UrlUnusable(AuthoringError):
    code: ClassVar[str] = "url-unusable"
    sentence: ClassVar[str] = "{url!r} cannot be where weights are fetched from: {detail}."
