"""Whether now is a bad time for background work: the machine is on battery, or its GPU is busy."""

from __future__ import annotations

import contextlib
import os

from refit_agent.errors import SettingInvalid

WARM_VARIABLE = "REFIT_AGENT_WARM"
BATTERY_VARIABLE = "REFIT_AGENT_WARM_ON_BATTERY"
BUSY_VARIABLE = "REFIT_AGENT_WARM_BUSY_PERCENT"
_DEFAULT_BUSY_PERCENT = 20
_SUPPLIES = "/sys/class/power_supply"


def warm_wanted() -> bool:
    """Whether engines are made in the background at all (REFIT_AGENT_WARM=0 turns it off)."""
    return os.environ.get(WARM_VARIABLE) != "0"


def busy_percent() -> int:
    """From which GPU utilisation on nothing is made in the background. Raises SettingInvalid."""
    text = os.environ.get(BUSY_VARIABLE) or str(_DEFAULT_BUSY_PERCENT)
    if not text.isdecimal() or int(text) > 101:
        raise SettingInvalid(name=BUSY_VARIABLE, value=text, wanted="a percentage from 0 to 101 (101: never too busy)")
    return int(text)


def power_reason() -> str:
    """Why the machine's power speaks against background work, in words; "" if it does not."""
    if os.environ.get(BATTERY_VARIABLE) != "1" and on_battery():
        return "the machine runs on battery"
    return ""


def on_battery(supplies: str = "") -> bool:
    """Whether a battery feeds this machine; False where the system does not tell. ``supplies`` is the folder in
    which it tells, "" for the usual one."""
    supplies = supplies or _SUPPLIES
    discharging = False
    with contextlib.suppress(OSError):
        for name in os.listdir(supplies):
            folder = f"{supplies}/{name}"
            kind = _read(f"{folder}/type")
            if kind in ("Mains", "USB") and _read(f"{folder}/online") == "1":
                return False
            # A mouse or a headset has a battery too, of its own.
            if kind == "Battery" and _read(f"{folder}/scope") != "Device":
                discharging = discharging or _read(f"{folder}/status") == "Discharging"
    return discharging


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def gpu_at_work() -> str:
    """Which GPU is busy, in words; "" if none is, or nothing can be learned. Loads NVML."""
    limit = busy_percent()
    try:
        import pynvml
    except ImportError:
        return ""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ""
    try:
        for number in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):  # a MIG device tells no utilisation
                used = pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(number)).gpu
                if used >= limit:
                    return f"GPU {number} is busy ({used} %)"
    except pynvml.NVMLError:
        return ""
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    return ""
