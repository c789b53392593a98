"""Which GPUs and runtimes this machine has, asked once and remembered.

    detect ─┬─ fingerprint ── _linux, _windows, folders   what would change the answer; no driver call
            ├─ remembered                                 the last answers, in the state folder
            └─ nvml, visible, installed                   asked only when nothing is remembered

Nothing here imports CUDA or TensorRT, and `detect` itself imports only msgspec until it must ask.
"""
