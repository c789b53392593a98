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
code. Nothing here imports anything else of ours.
"""

from __future__ import annotations

from refit_agent.errors.base import (
    RefitAgentError,
    SettingInvalid,
    SettingsFileInvalid,
    error_classes,
    from_wire,
)
from refit_agent.errors.bundle import (
    BundleError,
    BundleFileMismatch,
    BundleFileMissing,
    BundleMissing,
    ManifestInvalid,
    ManifestTooNew,
    NotAnOnnxModel,
    OnnxError,
    OnnxExternalMissing,
    OnnxMalformed,
    OnnxUnsafePath,
    OwnWeightsInvalid,
    PlanInvalid,
    SafetensorsMalformed,
    SignatureInvalid,
    SignatureMissing,
    UnknownModel,
    UnknownProfile,
    UnsafePath,
    VerifierMissing,
    WeightUnsupported,
)
from refit_agent.errors.cache import (
    CacheBusy,
    CacheError,
    CacheInsecure,
    CacheUnwritable,
    DiskFull,
    EnginesInUse,
    EntryDamaged,
    FetchError,
    FetchFailed,
    FetchForbidden,
    FetchLibraryMissing,
    FetchMismatch,
    StateInsecure,
)
from refit_agent.errors.engine import (
    Cancelled,
    CheckImpossible,
    DeviceError,
    DeviceFailed,
    GoldenMismatch,
    GpuMemoryShort,
    NoMatchingEngine,
    PlanRefused,
    RefitError,
    RefitRefused,
    RuntimeChanged,
    RuntimeMissing,
    SelectionError,
    UnknownTarget,
    WeightsAmbiguous,
    WeightsMismatch,
    WeightsNotIdentical,
    WeightsUncovered,
    WorkerCrashed,
    WorkerTimeout,
)
from refit_agent.errors.service import (
    NoSuchBundle,
    NoSuchLease,
    ServiceBusy,
    ServiceError,
    ServiceMissing,
    ServiceNotStopped,
    ServiceRefused,
    ServiceRunning,
    ServiceStopping,
    ServiceUnreachable,
    SocketUnusable,
)

__all__ = [
    "BundleError",
    "BundleFileMismatch",
    "BundleFileMissing",
    "BundleMissing",
    "CacheBusy",
    "CacheError",
    "CacheInsecure",
    "CacheUnwritable",
    "Cancelled",
    "CheckImpossible",
    "DeviceError",
    "DeviceFailed",
    "DiskFull",
    "EnginesInUse",
    "EntryDamaged",
    "FetchError",
    "FetchFailed",
    "FetchForbidden",
    "FetchLibraryMissing",
    "FetchMismatch",
    "GoldenMismatch",
    "GpuMemoryShort",
    "ManifestInvalid",
    "ManifestTooNew",
    "NoMatchingEngine",
    "NoSuchBundle",
    "NoSuchLease",
    "NotAnOnnxModel",
    "OnnxError",
    "OnnxExternalMissing",
    "OnnxMalformed",
    "OnnxUnsafePath",
    "OwnWeightsInvalid",
    "PlanInvalid",
    "PlanRefused",
    "RefitAgentError",
    "RefitError",
    "RefitRefused",
    "RuntimeChanged",
    "RuntimeMissing",
    "SafetensorsMalformed",
    "SelectionError",
    "ServiceBusy",
    "ServiceError",
    "ServiceMissing",
    "ServiceNotStopped",
    "ServiceRefused",
    "ServiceRunning",
    "ServiceStopping",
    "ServiceUnreachable",
    "SettingInvalid",
    "SettingsFileInvalid",
    "SignatureInvalid",
    "SignatureMissing",
    "SocketUnusable",
    "StateInsecure",
    "UnknownModel",
    "UnknownProfile",
    "UnknownTarget",
    "UnsafePath",
    "VerifierMissing",
    "WeightUnsupported",
    "WeightsAmbiguous",
    "WeightsMismatch",
    "WeightsNotIdentical",
    "WeightsUncovered",
    "WorkerCrashed",
    "WorkerTimeout",
    "error_classes",
    "from_wire",
]
