"""The worker process: ``python -m refit_agent.worker`` reads one job from standard input and does it.

GPU code can crash, hang and leak; here it takes down nothing but this process. Events go to what was
standard output when the process began; standard output itself is joined to standard error, so that a
native library that prints cannot break the protocol. When standard input ends, the parent is gone or
has given up, and the process exits at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refit_agent.refit.messages import Event, FetchJob, Job

#: The parent's process ID, so that a worker whose parent died first can tell.
PARENT_VARIABLE = "REFIT_AGENT_PARENT_PID"

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13
_IOPRIO_BEST_EFFORT_LOWEST = (2 << 13) | 7
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
# priority classes of Windows
_IDLE_PRIORITY = 0x40
_BELOW_NORMAL_PRIORITY = 0x4000


def main() -> None:
    """Run one job and exit: 0 when an event told the parent how it ended."""
    out = os.dup(1)
    os.dup2(2, 1)
    die_with_parent()
    source = os.fdopen(os.dup(0), "rb")
    line = source.readline()

    from refit_agent.refit.messages import Job, job_decoder

    job = job_decoder.decode(line)
    step_back(job.background)
    threading.Thread(target=exit_at_end_of, args=(source,), daemon=True).start()
    if isinstance(job, Job) and job.gpu:
        from refit_agent.gpu.context import open_context

        open_context(job)  # takes longer than everything else that comes before the plan can be opened
    from refit_agent import logs

    logs.want("info")
    _send(out, _perform(out, job))
    # Not sys.exit: native libraries crash in their exit handlers, and everything is on the disk already.
    sys.stderr.flush()
    os._exit(0)


def _perform(out: int, job: Job | FetchJob) -> Event:
    from refit_agent.errors import BundleFileMissing, RefitAgentError, RefitError
    from refit_agent.refit.messages import Failed, FetchJob

    try:
        if isinstance(job, FetchJob):
            from refit_agent.refit.transfer import transfer

            return transfer(job, lambda event: _send(out, event))
        from refit_agent.refit import pipeline

        return pipeline.run(job, lambda event: _send(out, event))
    except RefitAgentError as error:
        return Failed(code=error.code, facts=plain_facts(error.facts))
    except OSError as error:
        from refit_agent.cache.disk import write_error

        if isinstance(error.filename, str) and not error.filename.startswith(job.staging):
            # Something was not read; "the cache cannot be written" would send its reader astray.
            if isinstance(error, FileNotFoundError):
                facts: dict[str, object] = {"path": error.filename, "detail": error.strerror}
                return Failed(code=BundleFileMissing.code, facts=facts)
            return Failed(code=RefitError.code, facts={"detail": f"The refit failed: {error}."})
        failure = write_error(error, job.staging)
        return Failed(code=failure.code, facts=plain_facts(failure.facts))
    except MemoryError:
        return Failed(code=RefitError.code, facts={"detail": "The refit worker ran out of memory."})
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises must reach the parent as words
        import traceback

        traceback.print_exc()
        return Failed(code=RefitError.code, facts={"detail": f"The refit failed: {type(error).__name__}: {error}."})


def plain_facts(facts: dict[str, object]) -> dict[str, object]:
    """The facts of an error as JSON can hold them."""
    return {k: v if isinstance(v, (str, int, float, bool, list, type(None))) else str(v) for k, v in facts.items()}


def _send(out: int, event: Event) -> None:
    from refit_agent.refit.messages import encoder

    data = encoder.encode(event) + b"\n"
    # Whoever read our events is gone; the end of standard input will say so too.
    with contextlib.suppress(BrokenPipeError):
        os.write(out, data)


def exit_at_end_of(source: object) -> None:
    """Read the binary stream to its end, then end this process: the parent is gone or has given up."""
    read = getattr(source, "read")  # noqa: B009 - any binary stream
    while read(4096):
        pass
    os._exit(3)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, even while native code holds the GIL."""
    if sys.platform != "linux":
        return
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent and os.getppid() != int(parent):
        os._exit(3)  # it died before we could ask


def step_back(background: bool) -> None:
    """Give way to what the user is doing: a little for a waiting app, altogether for background work."""
    with contextlib.suppress(OSError, ValueError, ImportError):
        import resource

        # A crashed GPU process leaves gigabytes of core dump otherwise.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # should memory run out, it is this process that goes, and no app of the user's
    with contextlib.suppress(OSError, AttributeError):
        os.nice(19 if background else 5)
    number = _IOPRIO_SET.get(os.uname().machine) if sys.platform == "linux" else None
    if number is not None:
        import ctypes

        ctypes.CDLL(None).syscall(
            number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE if background else _IOPRIO_BEST_EFFORT_LOWEST
        )
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        kernel.GetCurrentProcess.restype = ctypes.c_void_p  # a handle, cut off to 32 bits without this
        kernel.SetPriorityClass(
            ctypes.c_void_p(kernel.GetCurrentProcess()), _IDLE_PRIORITY if background else _BELOW_NORMAL_PRIORITY
        )


if __name__ == "__main__":
    main()
