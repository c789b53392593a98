"""The bundle, or a file of weights, is at fault."""

from __future__ import annotations

import errno

from refit_agent.errors.base import RefitAgentError, SettingInvalid

#: The process or the machine is out of something, or the disk fails: no reason to call a file missing.
_NOT_ITS_FAULT = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT,
)  # fmt: skip


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
    advice = "Reinstall the app. Its developer finds the manifest's form in refit-agent's docs/bundle-format.md."


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
    sentence = "The bundle at {bundle} is not signed as it must be: {detail}."


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


class BundleFileUnreadable(BundleError):
    """Nothing says that the file is missing or wrong: this process or this machine cannot read it now."""

    code = "bundle-file-unreadable"
    sentence = "The bundle's file {path} cannot be read now: {detail}."
    advice = "Close programs, or check the disk, and try again: nothing says that the bundle itself is at fault."


def is_machine_s_fault(error: OSError | ValueError) -> bool:
    """Whether a failure to open or read a file says nothing of the file itself."""
    return getattr(error, "errno", None) in _NOT_ITS_FAULT


def file_error(path: str, error: OSError | ValueError) -> BundleFileMissing | BundleFileUnreadable:
    """Our error for a bundle's file that was not opened or not read; ValueError is what a name with a NUL gets."""
    kind = BundleFileUnreadable if is_machine_s_fault(error) else BundleFileMissing
    return kind(path=path, detail=getattr(error, "strerror", None) or str(error))


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


# ---------------------------------------------------------------- files of weights


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
