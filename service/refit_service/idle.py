"""Whether now is a bad time for background work: it is turned off or not its hours, the machine is on battery, or its
GPU is busy."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from refit_agent import settings
from refit_agent.settings import Hours

_SUPPLIES = "/sys/class/power_supply"


def off_reason() -> str:
    """Why nothing is made in the background at all, in words; "" if something is. Raises SettingInvalid."""
    found = settings.find("warm")
    if found.value:
        return ""
    return f"{found.source} turns it off"


def hours_reason() -> str:
    """Why this time of the day speaks against beginning background work, in words; "" if it does not. Raises
    SettingInvalid."""
    found = settings.find("warm_between")
    hours = found.value
    if not isinstance(hours, Hours) or hours.contain(_minute_of_the_day()):
        return ""
    return f"it is to begin between {hours} only (warm_between of {found.source})"


def _minute_of_the_day() -> int:
    if hasattr(time, "tzset"):
        time.tzset()  # somebody who travels changes the time zone of a running service
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


def power_reason() -> str:
    """Why the machine's power speaks against background work, in words; "" if it does not. Raises SettingInvalid."""
    if on_battery() and not settings.find("warm_on_battery").value:
        return "the machine runs on battery"
    return ""


def on_battery(supplies: str = "") -> bool:
    """Whether a battery feeds this machine; False where the system does not tell. ``supplies`` is the folder in
    which it tells, "" for the usual one."""
    if sys.platform == "win32" and not supplies:
        return _on_battery_in_windows()
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


def _on_battery_in_windows() -> bool:
    """By GetSystemPowerStatus, whose SYSTEM_POWER_STATUS begins with ACLineStatus: 0 on battery, 1 not, 255 unknown."""
    if sys.platform != "win32":
        return False
    import ctypes

    status = (ctypes.c_ubyte * 12)()
    return bool(ctypes.windll.kernel32.GetSystemPowerStatus(status)) and status[0] == 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def gpu_at_work() -> str:
    """Which GPU is busy, in words; "" if none is, or nothing can be learned. Loads NVML."""
    limit = settings.warm_busy_percent()
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
