"""There is no engine: the machine failed, nothing in the bundle fits it, or the refit came to nothing."""

from __future__ import annotations

from refit_agent.errors.base import RefitAgentError


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
    sentence = "GPU {gpu} has {free_bytes} of memory free, and {needed_bytes} is needed: {short_bytes} short."
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

    def _template(self) -> str:
        if self.facts.get("count") == 1:
            return "The only engine of model {model!r} in {app} cannot be used here: {detail}."
        return self.sentence


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


class DeadlinePassed(RefitError):
    """The time for the whole command was over before this engine was ready."""

    code = "deadline-passed"
    sentence = "The {seconds} s for the whole command were over; {detail}."
    advice = "Run the command again: engines that are ready stay, and it goes on with the others."
