"""What gets into the folder and what does not, with the reasons.

Patterns are those of fnmatch over paths with forward slashes; "*" matches slashes too. A later rule overrides an
earlier one, so that "keep" rules can except something from a "drop" rule before them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from standalone.layout import CORE, LEAN, ORT


class Rule(NamedTuple):
    """Files that match are kept or dropped."""

    keep: bool
    pattern: str
    reason: str


def kept(path: str, rules: Sequence[Rule]) -> bool:
    """Whether the last rule that matches keeps the path; true if none matches."""
    for rule in reversed(rules):
        if fnmatch.fnmatchcase(path, rule.pattern):
            return rule.keep
    return True


def _drop(reason: str, *patterns: str) -> list[Rule]:
    return [Rule(False, pattern, reason) for pattern in patterns]


def _keep(reason: str, *patterns: str) -> list[Rule]:
    return [Rule(True, pattern, reason) for pattern in patterns]


#: Part of every distribution in the lock. None: it is not installed, for the reason given.
DISTRIBUTIONS: dict[str, str | None] = {
    "refit-agent": CORE,
    "click": CORE,
    "filelock": CORE,
    "msgspec": CORE,
    "numpy": CORE,
    "nvidia-ml-py": CORE,
    "platformdirs": CORE,
    "rich": CORE,
    "structlog": CORE,
    # settings, before Python 3.11
    "tomli": CORE,
    "typing-extensions": CORE,
    "zstandard": CORE,
    # the service
    "aiohttp": CORE,
    "aiohappyeyeballs": CORE,
    "aiosignal": CORE,
    "async-timeout": CORE,
    "attrs": CORE,
    "frozenlist": CORE,
    "idna": CORE,
    "multidict": CORE,
    "prometheus-client": CORE,
    "propcache": CORE,
    "yarl": CORE,
    # signatures of bundles
    "pynacl": CORE,
    "cffi": CORE,
    # the lean runtime
    "tensorrt-lean-cu12": LEAN,
    "tensorrt-lean-cu12-bindings": LEAN,
    "tensorrt-lean-cu12-libs": LEAN,
    "tensorrt-lean-cu13": LEAN,
    "tensorrt-lean-cu13-bindings": LEAN,
    "tensorrt-lean-cu13-libs": LEAN,
    "onnxruntime": ORT,
    # a name that only requires tensorrt-lean-cu13
    "tensorrt-lean": None,
    # rich colours source code and renders Markdown with these; the program does neither
    "pygments": None,
    "markdown-it-py": None,
    "mdurl": None,
    # cffi needs it to read C declarations, at the time when PyNaCl is built
    "pycparser": None,
    # for making bundles, which the folder does not do
    "cryptography": None,
    # ONNX Runtime's tools for developers use these; running a model does not
    "coloredlogs": None,
    "flatbuffers": None,
    "humanfriendly": None,
    "mpmath": None,
    "packaging": None,
    "protobuf": None,
    "pyreadline3": None,
    "sympy": None,
}

#: Source distributions that are let in, because there is no wheel. Each only names the module `tensorrt_lean`.
FROM_SOURCE = frozenset({"tensorrt-lean-cu12", "tensorrt-lean-cu13"})

#: Of the standard library, below lib/python3.X. Every codec stays: in a locale such as zh_CN.GB18030 Python does not
#: start without that of its file names. `checks.check_mentions` knows what our own code imports inside functions.
STDLIB: list[Rule] = [
    *_drop(
        "tests of Python itself",
        "test/*",
        "*/test/*",
        "*/tests/*",
        "lib-dynload/_test*",
        "lib-dynload/_xx*",
        "lib-dynload/_ctypes_test*",
        "lib-dynload/xx*",
        "__phello__*",
        "__hello__.py",
    ),
    *_drop(
        "development: installing, building, testing, profiling, debugging",
        "ensurepip/*",
        "distutils/*",
        "lib2to3/*",
        "venv/*",
        "unittest/*",
        "doctest.py",
        "pdb.py",
        "bdb.py",
        "cProfile.py",
        "profile.py",
        "pstats.py",
        "lib-dynload/_lsprof*",
        "trace.py",
        "tracemalloc.py",
        "pyclbr.py",
        "pickletools.py",
        "tabnanny.py",
        "modulefinder.py",
        "zipapp.py",
        "py_compile.py",
        "compileall.py",
        "symtable.py",
        "this.py",
        "antigravity.py",
        "config-*/*",
        "_bootsubprocess.py",
        "imp.py",
        "LICENSE.txt",
        "*.rst",
        "*.txt",
    ),
    *_drop("the build machine's paths; an empty one is written in its place", "_sysconfigdata_*"),
    *_drop(
        "windows on a screen",
        "idlelib/*",
        "tkinter/*",
        "turtle.py",
        "turtledemo/*",
        "lib-dynload/_tkinter*",
        "webbrowser.py",
    ),
    *_drop(
        "terminals; rich does it by itself",
        "curses/*",
        "lib-dynload/_curses*",
        "lib-dynload/readline*",
        "rlcompleter.py",
        "cmd.py",
        "_pyrepl/*",
        "getopt.py",
        "optparse.py",
        "pty.py",
    ),
    *_drop(
        "data bases",
        "sqlite3/*",
        "lib-dynload/_sqlite3*",
        "dbm/*",
        "lib-dynload/_dbm*",
        "lib-dynload/_gdbm*",
        "shelve.py",
    ),
    *_drop("documentation reader", "pydoc.py", "pydoc_data/*"),
    *_drop(
        "protocols and file formats that nothing here speaks",
        "xmlrpc/*",
        "ftplib.py",
        "imaplib.py",
        "nntplib.py",
        "poplib.py",
        "smtplib.py",
        "smtpd.py",
        "telnetlib.py",
        "mailbox.py",
        "mailcap.py",
        "cgi.py",
        "cgitb.py",
        "xdrlib.py",
        "sunau.py",
        "aifc.py",
        "chunk.py",
        "wave.py",
        "sndhdr.py",
        "imghdr.py",
        "plistlib.py",
        "audioop.py",
        "lib-dynload/audioop*",
        "lib-dynload/ossaudiodev*",
        "ossaudiodev.py",
        "lib-dynload/nis*",
        "lib-dynload/spwd*",
        "lib-dynload/_crypt*",
        "crypt.py",
        "pipes.py",
        "asynchat.py",
        "asyncore.py",
        "http/cookiejar.py",
        "xml/*",
        "lib-dynload/_elementtree*",
        "lib-dynload/pyexpat*",
        "urllib/robotparser.py",
    ),
    *_drop("Python code for what is compiled as well", "_pydecimal.py", "_pyio.py"),
    *_drop(
        "processes that share Python objects; ours speak JSON",
        "multiprocessing/*",
        "lib-dynload/_multiprocessing*",
        "lib-dynload/_posixshmem*",
        "concurrent/futures/process.py",
    ),
    *_drop(
        "mathematics for which nothing here asks",
        "statistics.py",
        "lib-dynload/_statistics*",
        "lib-dynload/cmath*",
        "graphlib.py",
        "sched.py",
    ),
    *_drop(
        "macOS, Windows and other systems",
        "msilib/*",
        "_msi*",
        "nturl2path.py",
        "asyncio/windows_*",
        "asyncio/proactor_events.py",
        "ctypes/macholib/*",
        "ctypes/wintypes.py",
        "ctypes/_aix.py",
        "_aix_support.py",
        "_osx_support.py",
        "_ios_support.py",
        "_apple_support.py",
        "_android_support.py",
    ),
    *_drop("made anew below", "__pycache__/*", "*/__pycache__/*"),
    *_drop(
        "what is installed on the build machine is its own business",
        "site-packages/*",
        "dist-packages/*",
        "sitecustomize.py",
        "usercustomize.py",
    ),
]

#: Of the installed packages, below lib/.
PACKAGES: list[Rule] = [
    *_drop(
        "for type checkers and compilers",
        "*.pyi",
        "*/py.typed",
        "*.pyx",
        "*.pxd",
        "*.pxi",
        "*.h",
        "*.hpp",
        "*.c",
        "*.a",
        "*.lib",
        "*.pc",
        "*.hash",
    ),
    *_drop("tests and their data", "*/tests/*", "*/test/*", "*/testing/*", "*/conftest.py"),
    *_drop(
        "texts; licences are collected apart", "*/README*", "*.md", "*.rst", "*/LICENSE*", "*/ThirdPartyNotices.txt"
    ),
    *_drop("of the metadata the agent reads versions and requirements alone", "*.dist-info/*"),
    *_keep("see above", "*.dist-info/METADATA"),
    # NumPy: arrays, types, random numbers; linear algebra because numpy.lib imports it.
    *_drop(
        "NumPy's build and Fortran tools",
        "numpy/f2py/*",
        "numpy/distutils/*",
        "numpy/_build_utils/*",
        "numpy/_pyinstaller/*",
        "numpy/_configtool.py",
        "numpy/random/_examples/*",
        "numpy/random/lib/*",
        "numpy/_core/include/*",
        "numpy/_core/lib/*",
    ),
    *_drop(
        "NumPy's own test modules, its instruction set demonstration among them",
        "numpy/_core/_*_tests.*",
        "numpy/_core/_simd.*",
        "numpy/_core/tests/*",
    ),
    *_drop(
        "parts of NumPy that are loaded on first use, which is never",
        "numpy/fft/*",
        "numpy/polynomial/*",
        "numpy/ma/*",
        "numpy/ctypeslib/*",
        "numpy/core/*",
        "numpy/rec/*",
        "numpy/doc/*",
        "numpy/matlib.py",
        "numpy/lib/recfunctions.py",
        "numpy/_core/cversions.py",
    ),
    # zstandard has its library twice, for two ways to call it.
    *_drop("the second copy, for PyPy", "zstandard/_cffi.*", "zstandard/backend_cffi.py"),
    # ONNX Runtime: the library is linked into the Python module, and lies beside it once more.
    *_drop("the second copy, for C programs", "onnxruntime/capi/libonnxruntime.so.*"),
    *_drop(
        "tools for those who make models",
        "onnxruntime/tools/*",
        "onnxruntime/quantization/*",
        "onnxruntime/transformers/*",
        "onnxruntime/datasets/*",
        "onnxruntime/backend/*",
        "onnxruntime/capi/convert_npz_to_onnx_adapter.py",
        "onnxruntime/capi/onnxruntime_collect_build_info.py",
    ),
    *_drop("to build plugins with the full TensorRT", "tensorrt_lean/plugin/*", "tensorrt_lean_bindings/plugin/*"),
    *_drop("the side of cffi that compiles; compiled modules need _cffi_backend alone", "cffi/*"),
    *_drop(
        "for other systems and frameworks",
        "click/_winconsole.py",
        "click/testing.py",
        "platformdirs/pytest_plugin.py",
        "rich/_win32_console.py",
        "rich/_windows_renderer.py",
        "structlog/_greenlets.py",
        "structlog/twisted.py",
        "prometheus_client/twisted/*",
        "prometheus_client/django/*",
    ),
    *_drop("a lock over SQLite, loaded on first use", "filelock/_async_read_write.py", "filelock/_read_write.py"),
    *_drop(
        "what rich does with Pygments and markdown-it",
        "rich/markdown.py",
        "rich/syntax.py",
        "rich/traceback.py",
        "rich/diagnose.py",
        "rich/__main__.py",
    ),
    *_drop(
        "aiohttp for pytest, gunicorn",
        "aiohttp/pytest_plugin.py",
        "aiohttp/test_utils.py",
        "aiohttp/worker.py",
        "aiohttp/.hash/*",
        "aiohttp/_websocket/*.pyx",
    ),
]

#: Kept as source as well, since the agent recognises a runtime by this file.
SOURCES_KEPT = ("tensorrt_lean/__init__.py", "onnxruntime/__init__.py")

#: Where documentation strings stay: click shows them as help, and NumPy 2.2 hands those of this module to C code.
DOCS_KEPT = ("refit_agent/cli/", "numpy/_core/multiarray.py")

#: Not stripped of its symbols: NVIDIA's licence allows to hand its files on as they are.
UNCHANGED = ("tensorrt_lean_libs/*", "tensorrt_lean_bindings/*")

#: Left to the system, like glibc: a driver library loaded later may need a newer one than ours.
FROM_SYSTEM = frozenset(
    {
        *("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2"),
        *("ld-linux-x86-64.so.2", "linux-vdso.so.1", "libstdc++.so.6", "libgcc_s.so.1"),
    }
)

#: Found by their name alone, because another module has loaded them before.
LOADED_BEFORE = {"tensorrt_lean_bindings/tensorrt_lean.so": frozenset({"libnvinfer_lean.so.11"})}
