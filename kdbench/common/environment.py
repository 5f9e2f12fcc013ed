"""What a run ran on: machine, packages, revision. Found without importing torch."""

import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

import psutil

from kdbench.common.errors import printable
from kdbench.common.runtime_settings import processor_limit, requested_threads, runtime_settings
from kdbench.common.system_files import read_text

_PACKAGES = (
    "kdbench",
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "pyarrow",
    "pandas",
    "scikit-learn",
    "nvidia-ml-py",
    "triton",
)


# By the names in torch's version.py: a ROCm build calls its devices cuda all the same.
_PLATFORMS = {
    "hip": "ROCm {} (AMD's cards)",
    "rocm": "ROCm {} (AMD's cards)",
    "xpu": "XPU {} (Intel's cards)",
    "cuda": "CUDA {}",
}


def collect_environment(
    gpu: dict[str, Any] | None, worker: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Describe machine and packages as JSON values; what is not known is None.

    `gpu` is what NVML says of the run's card; `worker` the environment that its workers get.
    """
    machine = os.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    limited = processor_limit(usable, machine)
    return {
        "cpu_model": cpu_model(),
        "cpu_count": machine,
        "cpu_usable": usable,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python_version": platform.python_version(),
        "packages": {name: package_version(name) for name in _PACKAGES},
        "torch_version": package_version("torch"),
        "torch_cuda": torch_cuda_build(),
        "torch_build": torch_build(),
        "git_revision": git_revision(),
        "gpu_name": gpu and gpu.get("name"),
        "driver_version": gpu and gpu.get("driver_version"),
        "gpu": gpu,
        "threads": None if worker is None else requested_threads(worker, usable),
        "runtime_settings": None if worker is None else runtime_settings(worker, limited),
    }


def environment_identity(environment: dict[str, Any]) -> dict[str, str | None]:
    """Pick the parts that a result depends on: another value is another run."""
    keys = ("torch_version", "cpu_model", "gpu_name", "driver_version", "runtime_settings")
    return {key: environment[key] for key in keys}


def package_version(name: str) -> str | None:
    """Version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch_cuda_build() -> str | None:
    """CUDA version that the installed torch was built for, read from its files; None for none."""
    found = _torch_builds().get("cuda")
    # what else a version's text may hold is a build's own
    return found if found and re.fullmatch(r"[\d.]+", found) else None


def torch_build() -> str:
    """Name what the installed torch was built for: a platform of cards, or the CPU."""
    builds = _torch_builds()
    names = (
        text.format(printable(builds[name])) for name, text in _PLATFORMS.items() if name in builds
    )
    return next(names, "the CPU")


def built_for_other_cards() -> bool:
    """Whether the installed torch computes on cards that are not NVIDIA's."""
    return not _torch_builds().keys().isdisjoint(("hip", "rocm", "xpu"))


def _torch_builds() -> dict[str, str]:
    """Read what torch's files say that it was built for, by platform."""
    spec = util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return {}
    text = read_text(Path(spec.submodule_search_locations[0]) / "version.py")
    names = "|".join(_PLATFORMS)
    return dict(re.findall(rf"^({names})\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))


def cpu_model() -> str | None:
    """Name of the processor; None where the system does not report it."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    if platform.system() != "Linux":
        return platform.processor() or None
    text = read_text(Path("/proc/cpuinfo"))
    if not text:
        return None
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine() or None


def git_revision() -> str | None:
    """Revision of kdbench's own checkout, with -dirty for local changes; None where installed."""
    git = ("git", "-C", str(Path(__file__).parent))
    # A copy in site-packages may lie inside somebody else's checkout, which is not ours.
    if _output(*git, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _output(*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=20, encoding="utf-8", errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def cache_folder() -> Path:
    """Where fitted teachers are kept between runs: KDBENCH_CACHE, or the user's cache folder."""
    own = os.environ.get("KDBENCH_CACHE")
    if own:
        return Path(os.path.expanduser(own)).resolve()  # noqa: PTH111 - see user_cache
    return user_cache() / "kdbench"


def user_cache() -> Path:
    """Where the user's caches are: XDG_CACHE_HOME, or ~/.cache.

    A user without a home, as a container has that runs under a bare number, has it in the folder
    for temporary files, under that number.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base)
    if not has_home():
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return Path.home() / ".cache"


def has_home() -> bool:
    """Whether the user has a home: HOME, or an entry in the system's list of users."""
    return not os.path.expanduser("~").startswith("~")  # noqa: PTH111 - pathlib's raises
