"""What doctor finds of cards, of the processors' state, and the columns that leaves null."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdbench.runner.telemetry.cpu_load import Processors, usable_processors
from kdbench.runner.telemetry.nvml import AVAILABLE, NO_OWN_MEMORY, NOT_LISTED, NOT_SEEN, Gpu, Nvml
from kdbench.runner.telemetry.nvml_errors import NO_PERMISSION, OPERATING_SYSTEM, Fault, fault
from kdbench.runner.telemetry.sensors import PackageEnergy, Sensors, governor

_PROCESS = ("process_peak_bytes", "process_source", "process_bytes")
_DEVICE = ("device_peak_bytes", "device_source", "device_bytes")
_IDLE = ("device_idle_bytes",)
_ENERGY = (
    *("energy_step_joules", "energy_source", "energy_epoch_joules", "energy_training_joules"),
    *("energy_training_kind", "precompute_joules"),
)
_SAMPLED = ("power_watts", "energy_joules", "gpu_percent")
_CLOCK = ("gpu_sm_mhz_median", "gpu_sm_mhz")
_HEAT = ("gpu_celsius_max", "gpu_celsius")
_THROTTLE = ("gpu_throttled", "gpu_throttle")
_STATE = (*_CLOCK, *_HEAT, *_THROTTLE)
_NEIGHBOURS = ("gpu_neighbours",)
FROM_NVML = (
    *(*_PROCESS, *_DEVICE, *_IDLE, *_ENERGY, "gpu_name", "driver_version", *_SAMPLED),
    *(*_STATE, *_NEIGHBOURS),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at; columns are named as in the store's tables."""

    name: str
    found: str
    #: False where something is lacking that a user might expect
    good: bool = True
    #: columns that will be null
    null: tuple[str, ...] = ()
    #: columns whose value may lie below the truth
    lower_bound: tuple[str, ...] = ()
    remedy: str | None = None


def card_findings(nvml: Nvml) -> list[Finding]:
    """Find which cards and instances there are, and what the driver tells of each."""
    gpus = nvml.gpus()
    findings = [found for gpu in gpus for found in _card(gpu)]
    findings += _silent(nvml, alone=not gpus)
    if gpus:
        driver = f"{gpus[0].driver_version or 'unknown'}, for CUDA up to "
        driver += gpus[0].cuda_driver_version or "unknown"
        return [Finding("driver", driver), *findings]
    why = nvml.problem or "the NVIDIA driver lists no card that answers"
    none = Finding("card", f"none: {why}", good=False, null=FROM_NVML, remedy=nvml.remedy)
    return [*findings, none]


def _silent(nvml: Nvml, *, alone: bool) -> list[Finding]:
    """Find the cards that cannot be asked, by reason."""
    silent = nvml.silent()
    reasons: dict[Fault, list[int]] = {}
    for index, why in silent:
        reasons.setdefault(why, []).append(index)
    findings = []
    for why, which in reasons.items():
        closed = why in (fault(NO_PERMISSION), fault(OPERATING_SYSTEM))
        does = "does not answer" if len(which) == 1 else "do not answer"
        told = f"{len(which)} of {nvml.count()} {does} ({_listed(which)}): {why}"
        if closed:
            does = f"may not be opened by this process ({_listed(which)}; {why.name})"
            told = f"{len(which)} of {nvml.count()} {does}"
        # others' cards of a shared machine: nothing is lacking where this one has its own
        others = closed and not alone
        if others:
            told += "; left alone, as where a scheduler gives a job some of a machine's cards"
        remedy = None if others else why.remedy
        findings.append(Finding("card", told, good=others, remedy=remedy))
    return findings


def _listed(which: Sequence[int]) -> str:
    return ("card " if len(which) == 1 else "cards ") + ", ".join(map(str, which))


def _card(gpu: Gpu) -> list[Finding]:
    name = f"card {gpu.index}"
    if not gpu.mig:
        found = _device_memory(name, _about(gpu), gpu)
        return [found, _process_memory(name, gpu.process_memory), _energy(name, gpu), _state(gpu)]
    count = len(gpu.instances)
    told = _about(gpu) + f"; partitioned (MIG) into {count} instance{'' if count == 1 else 's'}"
    remedy = "choose an instance: CUDA_VISIBLE_DEVICES=<its UUID>"
    instances = [
        part for number, i in enumerate(gpu.instances) for part in _instance(name, number, i)
    ]
    if not gpu.instances:
        remedy = "create instances, or switch MIG off: CUDA sees no device here"
    return [Finding(name, told, good=False, remedy=remedy), *instances, _state(gpu)]


def _instance(card: str, number: int, gpu: Gpu) -> list[Finding]:
    name = f"{card}, instance {number}"
    told = _about(gpu) + "; power, energy and utilisation are told of the whole card alone"
    found = _device_memory(name, told, gpu, null=(*_ENERGY, *_SAMPLED))
    return [found, _process_memory(name, gpu.process_memory)]


def _device_memory(name: str, told: str, gpu: Gpu, null: tuple[str, ...] = ()) -> Finding:
    """Say what a card or instance is, and whether the memory in use on all of it is told."""
    if gpu.device_memory == AVAILABLE:
        # NVML is polled: between two samples the peak may have been higher.
        return Finding(name, told, null=null, lower_bound=_DEVICE[:1])
    remedy = None
    if gpu.device_memory == NO_OWN_MEMORY:
        remedy = "read allocated, reserved, process and host memory: each is what it says, and "
        remedy += "host and card take from the same"
    return Finding(name, told, good=False, null=(*null, *_DEVICE, *_IDLE), remedy=remedy)


def _about(gpu: Gpu) -> str:
    size = "memory " + gpu.device_memory
    if gpu.memory_total_bytes is not None:
        size = gib(gpu.memory_total_bytes)
        if gpu.device_memory != AVAILABLE:
            size += f" (in use: {gpu.device_memory})"
    elif gpu.device_memory == AVAILABLE:
        size = "memory not told"
    return f"{gpu.name or 'unnamed'}, {size}, {gpu.uuid}"


def _process_memory(card: str, told: str) -> Finding:
    name = f"{card}: per process"
    if told in (AVAILABLE, NOT_SEEN):
        return Finding(name, f"memory is {told}", lower_bound=_PROCESS[:1])
    remedy = "read allocated and reserved instead: torch's allocator is exact"
    # Who is there is known where the list is, whether or not it tells what they hold.
    null = (*_PROCESS, *_NEIGHBOURS) if told.startswith(NOT_LISTED) else _PROCESS
    return Finding(name, told, good=False, null=null, remedy=remedy)


def _energy(card: str, gpu: Gpu) -> Finding:
    name = f"{card}: energy"
    if gpu.energy_counter:
        return Finding(name, "counted by the card (nvml-counter)")
    if gpu.power:
        told = "no counter: integrated from sampled power (nvml-power), an estimate"
        return Finding(name, told, good=False, null=("energy_joules",))
    told = "the driver tells neither energy nor power"
    return Finding(name, told, good=False, null=(*_ENERGY, "energy_joules", "power_watts"))


def _state(gpu: Gpu) -> Finding:
    """Find whether clock, temperature and throttling are told: of the card, with its instances."""
    parts = {
        "clock": (gpu.clock, _CLOCK),
        "temperature": (gpu.temperature, _HEAT),
        "reasons for throttling": (gpu.throttling, _THROTTLE),
    }
    name = f"card {gpu.index}: state"
    return _told(name, parts, "read each second")


def _told(name: str, parts: Mapping[str, tuple[bool, Sequence[str]]], how: str) -> Finding:
    """Say which of several things are told, and which are not."""
    known = [what for what, (is_told, _) in parts.items() if is_told]
    unknown = [what for what, (is_told, _) in parts.items() if not is_told]
    told = [f"{', '.join(known)}: {how}"] if known else []
    told += [f"not told: {', '.join(unknown)}"] if unknown else []
    null = tuple(c for is_told, columns in parts.values() if not is_told for c in columns)
    return Finding(name, "; ".join(told), good=not unknown, null=null)


def condition_findings(root: Path) -> list[Finding]:
    """Find what the system tells of the processors while a cell runs.

    Much of it is missing in a virtual machine, which is no fault that a user could mend.
    """
    usable = usable_processors() or frozenset()
    sensors, packages = Sensors(usable, root), PackageEnergy(root)
    others = Processors((os.getpid(),), usable, root / "proc").observable() if usable else False
    throttled = sensors.throttled_seconds() is not None
    parts: dict[str, tuple[bool, Sequence[str]]] = {
        "others' use": (others, ("cpu_elsewhere",)),
        "clock": (sensors.mhz() is not None, ("cpu_mhz", "cpu_mhz_median")),
        "governor": (governor(usable, root) is not None, ("cpu_governor",)),
        "temperature": (sensors.celsius() is not None, ("cpu_celsius", "cpu_celsius_max")),
        "quotas and throttling": (throttled, ("cpu_throttled_seconds",)),
    }
    seen = _told("processor: state", parts, "read each second")
    state = replace(seen, good=others)
    energy = ("host_energy_joules", "host_energy_step_joules", "host_energy_source")
    if packages.joules() is not None:
        return [state, Finding("processor: energy", "counted by the packages (rapl)")]
    if not packages.found:
        found = Finding("processor: energy", "the system has no counters (RAPL)", null=energy)
        return [state, found]
    told = "the counters (RAPL) cannot be read: on most systems they are for root alone"
    remedy = "sudo chmod -R a+r /sys/class/powercap/intel-rapl, which lasts until the next start"
    return [state, Finding("processor: energy", told, good=False, null=energy, remedy=remedy)]


def gib(size: int) -> str:
    """Write bytes as memory is sold."""
    return f"{size / 2**30:.1f} GiB"
