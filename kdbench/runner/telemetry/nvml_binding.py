"""The module through which NVML is asked: nvidia-ml-py's `pynvml`, or what is there in its place.

A distribution that is called pynvml once brought a package of that name, which wins over
nvidia-ml-py's module wherever both are installed.
"""

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from kdbench.common.errors import printable

__all__ = ["NEEDED", "binding_problem", "pynvml", "text_of"]

_FAILED: str | None = None
try:
    import pynvml
except Exception as error:  # noqa: BLE001 - a stranger's module may do anything
    pynvml, _FAILED = None, f"{type(error).__name__}: {error}"

_OURS = "nvidia-ml-py"
#: all that is used of the module
NEEDED = (
    *("NVMLError", "NVMLError_ArgumentVersionMismatch", "NVMLError_FunctionNotFound"),
    *("NVML_CLOCK_SM", "NVML_DEVICE_MIG_ENABLE", "NVML_TEMPERATURE_GPU"),
    *("nvmlDeviceGetClockInfo", "nvmlDeviceGetComputeRunningProcesses_v2"),
    *("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetCount"),
    *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
    *("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "nvmlDeviceGetHandleByIndex"),
    *("nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMemoryInfo"),
    *("nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceGetMigMode", "nvmlDeviceGetName"),
    *("nvmlDeviceGetPowerUsage", "nvmlDeviceGetProcessUtilization", "nvmlDeviceGetTemperature"),
    *("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetUUID", "nvmlDeviceGetUtilizationRates"),
    *("nvmlInit", "nvmlMemory_v2", "nvmlShutdown", "nvmlSystemGetCudaDriverVersion_v2"),
    "nvmlSystemGetDriverVersion",
)


@lru_cache(maxsize=1)
def binding_problem() -> tuple[str, str] | None:
    """Say why NVML cannot be asked through the module that is there, and what to do; or None."""
    missing = [] if _FAILED else [name for name in NEEDED if not hasattr(pynvml, name)]
    if not _FAILED and not missing:
        return None
    file = _file()
    if file is None:
        what = printable(_FAILED or "it has no file")
        return f"the module pynvml cannot be used ({what})", f"pip install {_OURS}"
    why = printable(_FAILED) if _FAILED else f"it lacks {missing[0]}"
    owners = list(_owners(file))
    names = sorted({name for name, _ in owners} - {_OURS})
    if names:
        others = ", ".join(f"{name} {version}" for name, version in owners if name in names)
        remedy = f"pip uninstall {' '.join(names)}, then pip install --force-reinstall {_OURS}"
        return f"the module pynvml is of {others}, not of {_OURS}: {why}", remedy + _path(file)
    if owners:
        version = owners[0][1]
        return f"{_OURS} {version} is too old: {why}", f"pip install --upgrade {_OURS}"
    remedy = f"remove or rename {file}, then pip install {_OURS}"
    return f"the module pynvml is not {_OURS}'s, but {file}: {why}", printable(remedy)


def text_of(call: Callable[..., Any], *arguments: object) -> str | None:
    """Ask NVML for a text, whatever bytes it is: what is no UTF-8, or no letter, is escaped.

    pynvml itself decodes strictly, and some drivers' texts (555 under WSL2) are no UTF-8. None:
    empty.
    """
    text = getattr(call, "__wrapped__", call)(*arguments)
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    return printable(text) or None


def _file() -> Path | None:
    """Find the file that the module was, or would be, read from."""
    from importlib.util import find_spec  # noqa: PLC0415 - where something is wrong alone

    try:
        spec = find_spec("pynvml")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _owners(file: Path) -> Iterator[tuple[str, str]]:
    """Find the distributions that say that they brought a file, with their versions."""
    for distribution in metadata.distributions():
        listed = [part for part in distribution.files or () if part.name == file.name]
        if any(_same(Path(str(distribution.locate_file(part))), file) for part in listed):
            yield distribution.name, distribution.version


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # listed, and not there any more
        return False


def _path(file: Path) -> str:
    """Say that a file is found by PYTHONPATH, where pip does not reach."""
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if file.is_relative_to(Path(entry).absolute()):
            return f"; or take {printable(entry)} out of PYTHONPATH"
    return ""
