"""Chooses the device of a run from what torch, in a child process, and NVML report."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdbench.common.environment import built_for_other_cards, torch_build, torch_cuda_build
from kdbench.common.errors import InputError, WorkerError, printable
from kdbench.runner.telemetry.nvml import Gpu, Nvml, open_nvml

Probe = dict[str, Any]

_CHILD = "kdbench.worker.device"
_EXPECTED = "expected auto, cpu, cuda or cuda:N"
_KEYS = frozenset(
    ("torch_version", "cuda_build", "cuda_available", "threads", "devices", "bf16", "cuda_problem")
)


@dataclass(frozen=True)
class ResolvedDevice:
    """The device of a run."""

    device: str  #: `cpu`, or `cuda:N` as torch counts
    #: the card or MIG instance as NVML knows it; None on the CPU, and if NVML lacks the card
    gpu: Gpu | None = None
    #: what the user should know about the choice, such as why no card is used
    note: str | None = None
    name: str | None = None  #: torch's name of the card; None on the CPU

    @property
    def card_name(self) -> str | None:
        """The card's name: NVML's, or torch's where NVML has none or an unreadable one."""
        known = self.gpu.name if self.gpu else None
        return known if known and not (self.name and "\\" in known) else self.name


def probe_torch(timeout: float = 60) -> Probe:
    """Ask torch in a child process what it sees; raises WorkerError after `timeout` seconds."""
    command = [sys.executable, "-P", "-m", _CHILD]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        end = _last_lines(error.stderr or b"")
        raise WorkerError(f"torch did not answer within {timeout:g} s: {end}") from None
    if done.returncode != 0:
        ended = f"{_CHILD} ended with {done.returncode}: {_last_lines(done.stderr)}"
        raise WorkerError(f"torch does not work here: {ended}")
    try:
        answer = json.loads(done.stdout.decode(errors="replace").strip().rpartition("\n")[2])
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not answer.keys() >= _KEYS:
        raise WorkerError(f"{_CHILD}: expected JSON, found: {_last_lines(done.stdout)}")
    return answer


def resolve_device(
    request: str, *, nvml: Nvml | None = None, probe: Callable[[], Probe] = probe_torch
) -> ResolvedDevice:
    """Resolve `--device auto|cpu|cuda|cuda:N`; raises InputError, or WorkerError if torch fails."""
    index = _requested_index(request)
    if request == "cpu":
        return ResolvedDevice("cpu")
    if nvml is None:
        with open_nvml() as opened:
            return resolve_device(request, nvml=opened, probe=probe)
    gpus = nvml.gpus()
    if index is None:
        return _choose_automatically(gpus, nvml, probe)
    if torch_cuda_build() is None:
        remedy = "install a CUDA build of torch, or use --device cpu"
        raise _no_such_device(request, _torch_build(), remedy)
    seen = probe()
    if index >= len(seen["devices"]):
        raise _no_such_device(request, *_describe_devices(seen, nvml))
    return _chosen(index, seen, gpus)


def _requested_index(request: str) -> int | None:
    if request in ("auto", "cpu"):
        return None
    found = re.fullmatch(r"cuda(?::([0-9]{1,3}))?", request)
    if not found:
        near = re.fullmatch(r"(?:gpu|cuda|nvidia)?[:\s]?([0-9]{0,3})", request.strip().lower())
        hint = f"did you mean 'cuda:{near[1] or 0}'?" if near and request.strip() else None
        raise InputError(f"{_EXPECTED}, found {request!r}", where="--device", hint=hint)
    return int(found[1] or 0)


def _choose_automatically(
    gpus: list[Gpu], nvml: Nvml, probe: Callable[[], Probe]
) -> ResolvedDevice:
    if torch_cuda_build() is None:
        why = _torch_build() if gpus or built_for_other_cards() else _no_card(nvml)
        unused = f"{gpus[0].name} is not used: {why}" if gpus else why
        return ResolvedDevice("cpu", note=f"on the CPU: {unused}")
    # Where only NVML is missing or fails, torch may still see a card.
    if not gpus and (nvml.no_driver or nvml.problem is None) and not on_tegra():
        return ResolvedDevice("cpu", note=f"on the CPU: {_no_card(nvml)}")
    seen = probe()
    if seen["devices"]:
        return _chosen(0, seen, gpus)
    why, _ = _describe_devices(seen, nvml)
    unused = f"{gpus[0].name} is not used: {why}" if gpus else _no_card(nvml)
    return ResolvedDevice("cpu", note=f"on the CPU: {unused}")


def _no_card(nvml: Nvml) -> str:
    """Say why there is no card; a machine without a driver may need none, and gets no remedy."""
    why = nvml.why_none() or "no NVIDIA card found"
    return why if nvml.no_driver or not nvml.remedy else f"{why}; {nvml.remedy}"


def _torch_build() -> str:
    build = f"torch is a build for {torch_build()}"
    if not built_for_other_cards():
        return build
    untried = "and kdbench measures NVIDIA's cards and the CPU alone: it was never tried on others"
    return f"{build}, {untried}"


def on_tegra(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson or similar, whose card works without NVML."""
    try:
        return b"nvidia,tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:
        return False


def _chosen(index: int, seen: Probe, gpus: list[Gpu]) -> ResolvedDevice:
    device = seen["devices"][index]
    name, uuid = f"cuda:{index}", _plain(device["uuid"])
    resolved = partial(ResolvedDevice, name, name=printable(device["name"]))
    known = [one for gpu in gpus for one in (gpu, *gpu.instances)]
    gpu = next((one for one in known if uuid and _plain(one.uuid) == uuid), None)
    if gpu is None:
        note = "NVML does not list this card: its memory and energy will be null"
        return resolved(None, note)
    if not gpu.mig or gpu.part_of:
        return resolved(gpu, _instance_note(gpu) if gpu.part_of else None)
    # Some CUDA builds report the card's UUID for an instance.
    instance = _instance_in_use(gpu)
    if instance is None:
        note = "which MIG instance this is, is not known: its memory will be null; name it in "
        return resolved(None, note + "CUDA_VISIBLE_DEVICES by its UUID")
    return resolved(instance, _instance_note(instance))


def _instance_in_use(card: Gpu) -> Gpu | None:
    """Return the one instance that CUDA uses, or None if unknown."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if named.startswith("MIG-"):
        return next((part for part in card.instances if part.uuid.startswith(named)), None)
    return card.instances[0] if len(card.instances) == 1 else None


def _instance_note(instance: Gpu) -> str:
    return (
        f"on a MIG instance ({instance.name or instance.uuid}): memory is the instance's; power, "
        "energy and utilisation are reported for the whole card alone and will be null"
    )


def _plain(uuid: str | None) -> str:
    """Remove NVML's prefix from a UUID: torch has none."""
    return (uuid or "").lower().removeprefix("gpu-").removeprefix("mig-")


def _describe_devices(seen: Probe, nvml: Nvml) -> tuple[str, str]:
    """Return which CUDA devices there are, or why there are none, and what to do."""
    listed = ", ".join(f"cuda:{d['index']} ({d['name']})" for d in seen["devices"])
    if listed:
        return f"torch sees {listed}", "name one of these, or use --device cpu"
    if why_none := nvml.why_none():
        return why_none, f"{nvml.remedy or 'install or repair the driver'}; or use --device cpu"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        why = f"torch sees no card under CUDA_VISIBLE_DEVICES={hidden!r}"
        return why, "unset it, or use --device cpu"
    problem = seen["cuda_problem"]
    why = "torch sees no card" + (f" ({problem})" if problem else "")
    return why, "run kdbench doctor, or use --device cpu"


def _no_such_device(request: str, why: str, what_to_do: str) -> InputError:
    problem = f"{_EXPECTED} that is there, found {request!r}: {why}"
    return InputError(problem, where="--device", hint=what_to_do)


def _last_lines(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return "\n".join(lines[-5:]) or "it printed nothing"
