"""What of the environment decides a step's time or bytes, beside the cell and the machine.

Only what is listed here, and what finds libraries, devices and caches, reaches a worker: so no
variable decides a figure that its row does not name. None of them holds a secret.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdbench.common.errors import printable, truncate
from kdbench.common.system_files import group_folders, read_text

#: these alone say how many threads torch computes with, and the column `threads` says it
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: forced on a whole process, they would make one precision of fp32 and tf32: no worker is told
PRECISION = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")

_LONGEST_SHOWN = 160


@dataclass(frozen=True)
class VariableFamily:
    """Variables that begin with one of some words."""

    prefixes: tuple[str, ...]  #: what their names begin with
    why: str  #: what they decide
    bytes: bool  #: whether that is memory too, and not time alone


VARIABLE_FAMILIES = (
    VariableFamily(
        ("PYTORCH_", "TORCH_"),
        "torch's allocators (PYTORCH_ALLOC_CONF and its older names, "
        "PYTORCH_NO_CUDA_MEMORY_CACHING), its choice of BLAS (TORCH_BLAS_PREFER_), cuBLAS's "
        "workspace (TORCH_CUBLAS_), cuDNN's caches (TORCH_CUDNN_), its compiler",
        bytes=True,
    ),
    VariableFamily(
        ("TORCHINDUCTOR_", "TRITON_"), "what torch.compile makes of a student", bytes=True
    ),
    VariableFamily(
        ("CUBLAS_", "CUBLASLT_", "CUDNN_"),
        "the workspaces and kernels of cuBLAS and cuDNN, also for deterministic results",
        bytes=True,
    ),
    VariableFamily(
        ("CUDA_",), "launches one by one (CUDA_LAUNCH_BLOCKING), when kernels load", bytes=True
    ),
    VariableFamily(
        ("ATEN_CPU_CAPABILITY",), "the processor's instructions in torch's kernels", bytes=True
    ),
    VariableFamily(
        ("ONEDNN_", "DNNL_"), "the processor's instructions in oneDNN's kernels", bytes=True
    ),
    VariableFamily(
        ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "VECLIB_"),
        "how threads are placed, wait and share, and MKL's kernels and buffers",
        bytes=False,
    ),
)
# They find things, say what is printed, or are there to build with: nothing is computed otherwise.
_NOT_DECIDING = re.compile(
    r".*_(HOME|PATH|DIR|DIRS|ROOT|VERSION|LOGS?|LOG_LEVEL|LOGDEST|WARNINGS|VERBOSE|CACHE|DEBUG)|"
    r"CUDA_(VISIBLE_DEVICES|COMPONENT_LIST|CACHE_MAXSIZE|DEVICE_ORDER|ARCH_LIST|PKG\w*|MPS_PIPE_DIRECTORY)|"
    r"(OMP|KMP)_(DISPLAY_\w+|SETTINGS)|MKL_VERBOSE|KMP_DUPLICATE_LIB_OK|KMP_INIT_AT_FORK|"
    r"TORCH_(CUDA_ARCH_LIST|SHOW_\w+|TRACE|COMPILE_DEBUG)|PYTORCH_(BUILD\w*|NVML_\w+|TEST_\w+)|"
    r"CUDNN_LOG\w*|CUBLAS(LT)?_LOG\w*"
)
# decides, and ends as what does not
_DECIDING = ("TORCH_CUBLAS_WORKSPACE_CACHE",)
_SECRET = re.compile(r"TOKEN|SECRET|PASS|CREDENTIAL|AUTH|(?:API|ACCESS|PRIVATE)_?KEY")


def is_withheld(name: str) -> bool:
    """Whether a variable is no worker's business: a secret, or a precision beside the cell's."""
    return name in PRECISION or _SECRET.search(name) is not None


def runtime_settings(environment: Mapping[str, str], processors: str | None = None) -> str | None:
    """Write what decides a worker's figures as `NAME=value` pairs, in order; None: nothing is set.

    `processors` is how many it may use, where that is fewer than the machine has.
    """
    found = {
        name: printable("".join(value.split()))
        for name, value in environment.items()
        if name not in THREADS and value.strip() and _family(name)
    }
    if processors is not None:
        found["processors"] = processors
    return " ".join(f"{name}={found[name]}" for name in sorted(found)) or None


def memory_settings(settings: str | None) -> str | None:
    """Keep the settings that decide bytes as well as times."""
    kept = [
        f"{name}={value}"
        for name, value in _pairs(settings).items()
        if (family := _family(name)) is not None and family.bytes
    ]
    return " ".join(kept) or None


def changed_settings(before: str | None, now: str | None) -> str:
    """Name the settings that differ, with what they are now."""
    first, second = _pairs(before), _pairs(now)
    names = [n for n in sorted({*first, *second}) if first.get(n) != second.get(n)]
    changes = (f"{n}={second[n]}" if n in second else f"{n} is not set" for n in names)
    return truncate(", ".join(changes), _LONGEST_SHOWN)


def requested_threads(environment: Mapping[str, str], usable: int | None) -> str:
    """Say how many threads torch will compute with, where no matrix file sets it.

    It is a number only where all that sets it agrees: else torch's own rule decides, by the
    libraries that it was built with, and what it decides by is named.
    """
    found = {name: _count(environment.get(name, "")) for name in THREADS}
    counts = {name: count for name, count in found.items() if count is not None}
    if not counts:
        return f"torch's default for {usable or 'unknown'} processors"
    if len(set(counts.values())) == 1:
        return str(min(counts.values()))
    return ", ".join(f"{name}={count}" for name, count in counts.items())


def processor_limit(usable: int | None, machine: int | None, root: Path = Path("/")) -> str | None:
    """Say how many processors an affinity or a quota leaves, if fewer than there are."""
    quota = _quota(root)
    known = [count for count in (usable, quota) if count is not None and machine is not None]
    least = min(known, default=None)
    return f"{least:g}" if least is not None and machine and least < machine else None


def _family(name: str) -> VariableFamily | None:
    if is_withheld(name):
        return None
    if name not in _DECIDING and _NOT_DECIDING.fullmatch(name):
        return None
    return next((family for family in VARIABLE_FAMILIES if name.startswith(family.prefixes)), None)


def _pairs(settings: str | None) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in (settings or "").split())
    return {name: value for name, _, value in pairs}


def _count(value: str) -> int | None:
    """Read a number of threads as OpenMP does: the first of a list, and nothing of nonsense."""
    first = value.partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdecimal() and int(first) > 0 else None


def _quota(root: Path) -> float | None:
    """Return the fewest processors' worth of time that a control group of this process allows."""
    shares = (_share(folder) for folder, *_ in group_folders("cpu", root))
    return min((share for share in shares if share is not None), default=None)


def _share(group: Path) -> float | None:
    limits = read_text(group / "cpu.max").split() or [
        read_text(group / "cpu.cfs_quota_us"),
        read_text(group / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = (float(part) for part in limits)
    except ValueError:  # "max", or no such files: no limit
        return None
    return round(quota / period, 2) if quota > 0 and period > 0 else None
