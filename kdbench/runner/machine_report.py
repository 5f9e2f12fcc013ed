"""What `doctor` finds about cards and processors, and which columns stay null as a result."""

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
_NEIGHBOURS = ("gpu_neighbours",)
_OF_THE_CARD = "; power, energy and utilisation are reported for the whole card alone"
_READ_OTHERS = (
    "read allocated, reserved, process and host memory: each is what it says, and host and card "
    "take from the same"
)
NVML_COLUMNS = (
    *(*_PROCESS, *_DEVICE, *_IDLE, *_ENERGY, "gpu_name", "driver_version", *_SAMPLED),
    *(*_CLOCK, *_HEAT, *_THROTTLE, *_NEIGHBOURS),
)


@dataclass(frozen=True)
class Finding:
    """One check of the machine; columns are named as in the store's tables."""

    name: str
    found: str
    #: False where something is missing that a user might expect
    good: bool = True
    #: columns that will be null
    null: tuple[str, ...] = ()
    #: columns whose value may be below the true one
    lower_bound: tuple[str, ...] = ()
    remedy: str | None = None


def card_findings(nvml: Nvml) -> list[Finding]:
    """List the cards and MIG instances, and what the driver reports for each."""
    gpus = nvml.gpus()
    findings = [finding for gpu in gpus for finding in _card(gpu)]
    findings += _silent(nvml, has_own=bool(gpus))
    if gpus:
        driver, cuda = gpus[0].driver_version, gpus[0].cuda_driver_version
        found = f"{driver or 'unknown'}, for CUDA up to {cuda or 'unknown'}"
        return [Finding("driver", found), *findings]
    why = nvml.problem or "the NVIDIA driver lists no card that answers"
    none = Finding("card", f"none: {why}", good=False, null=NVML_COLUMNS, remedy=nvml.remedy)
    return [*findings, none]


def _silent(nvml: Nvml, *, has_own: bool) -> list[Finding]:
    """Report the cards that do not answer, by reason."""
    reasons: dict[Fault, list[int]] = {}
    for index, why in nvml.silent():
        reasons.setdefault(why, []).append(index)
    findings = []
    for why, indices in reasons.items():
        forbidden = why in (fault(NO_PERMISSION), fault(OPERATING_SYSTEM))
        count = f"{len(indices)} of {nvml.count()}"
        if forbidden:
            summary = f"{count} may not be opened by this process ({_listed(indices)}; {why.name})"
        else:
            does = "does not answer" if len(indices) == 1 else "do not answer"
            summary = f"{count} {does} ({_listed(indices)}): {why}"
        # On a shared machine they are other users' cards: no problem if this process has its own.
        others = forbidden and has_own
        if others:
            summary += "; left alone, as where a scheduler gives a job some of a machine's cards"
        remedy = None if others else why.remedy
        findings.append(Finding("card", summary, good=others, remedy=remedy))
    return findings


def _listed(which: Sequence[int]) -> str:
    return ("card " if len(which) == 1 else "cards ") + ", ".join(map(str, which))


def _card(gpu: Gpu) -> list[Finding]:
    name = f"card {gpu.index}"
    if not gpu.mig:
        found = _device_memory(name, _about(gpu), gpu)
        return [found, _process_memory(name, gpu.process_memory), _energy(name, gpu), _state(gpu)]
    count = len(gpu.instances)
    about = _about(gpu) + f"; partitioned (MIG) into {count} instance{'' if count == 1 else 's'}"
    remedy = "choose an instance: CUDA_VISIBLE_DEVICES=<its UUID>"
    if not gpu.instances:
        remedy = "create instances, or switch MIG off: CUDA sees no device here"
    findings = [Finding(name, about, good=False, remedy=remedy)]
    for number, instance in enumerate(gpu.instances):
        part = f"{name}, instance {number}"
        about = _about(instance) + _OF_THE_CARD
        findings.append(_device_memory(part, about, instance, null=(*_ENERGY, *_SAMPLED)))
        findings.append(_process_memory(part, instance.process_memory))
    return [*findings, _state(gpu)]


def _device_memory(name: str, summary: str, gpu: Gpu, null: tuple[str, ...] = ()) -> Finding:
    """Describe a card or instance, and whether its used memory is known."""
    if gpu.device_memory == AVAILABLE:
        # NVML is polled: the peak between two samples may be higher.
        return Finding(name, summary, null=null, lower_bound=_DEVICE[:1])
    remedy = _READ_OTHERS if gpu.device_memory == NO_OWN_MEMORY else None
    return Finding(name, summary, good=False, null=(*null, *_DEVICE, *_IDLE), remedy=remedy)


def _about(gpu: Gpu) -> str:
    total, used = gpu.memory_total_bytes, gpu.device_memory
    if total is None:
        size = "memory not reported" if used == AVAILABLE else f"memory {used}"
    else:
        size = gib(total) + ("" if used == AVAILABLE else f" (in use: {used})")
    return f"{gpu.name or 'unnamed'}, {size}, {gpu.uuid}"


def _process_memory(card: str, summary: str) -> Finding:
    name = f"{card}: per process"
    if summary in (AVAILABLE, NOT_SEEN):
        return Finding(name, f"memory is {summary}", lower_bound=_PROCESS[:1])
    remedy = "read allocated and reserved instead: torch's allocator is exact"
    # A process list without memory still tells who is on the card.
    null = (*_PROCESS, *_NEIGHBOURS) if summary.startswith(NOT_LISTED) else _PROCESS
    return Finding(name, summary, good=False, null=null, remedy=remedy)


def _energy(card: str, gpu: Gpu) -> Finding:
    name = f"{card}: energy"
    if gpu.energy_counter:
        return Finding(name, "counted by the card (nvml-counter)")
    if gpu.power:
        summary = "no counter: integrated from sampled power (nvml-power), an estimate"
        return Finding(name, summary, good=False, null=("energy_joules",))
    summary = "the driver reports neither energy nor power"
    return Finding(name, summary, good=False, null=(*_ENERGY, "energy_joules", "power_watts"))


def _state(gpu: Gpu) -> Finding:
    parts = {
        "clock": (gpu.clock, _CLOCK),
        "temperature": (gpu.temperature, _HEAT),
        "reasons for throttling": (gpu.throttling, _THROTTLE),
    }
    return _availability(f"card {gpu.index}: state", parts)


def _availability(name: str, parts: Mapping[str, tuple[bool, Sequence[str]]]) -> Finding:
    """Report which of several readings are available; each has its columns."""
    known = [what for what, (available, _) in parts.items() if available]
    unknown = [what for what, (available, _) in parts.items() if not available]
    summary = [f"{', '.join(known)}: read each second"] if known else []
    summary += [f"not reported: {', '.join(unknown)}"] if unknown else []
    null = tuple(column for what in unknown for column in parts[what][1])
    return Finding(name, "; ".join(summary), good=not unknown, null=null)


def condition_findings(root: Path) -> list[Finding]:
    """Report which readings of the processors the system offers.

    A virtual machine lacks many of them, and the user cannot change that.
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
    state = replace(_availability("processor: state", parts), good=others)
    energy = ("host_energy_joules", "host_energy_step_joules", "host_energy_source")
    name = "processor: energy"
    if packages.joules() is not None:
        return [state, Finding(name, "counted by the packages (rapl)")]
    if not packages.found:
        return [state, Finding(name, "the system has no counters (RAPL)", null=energy)]
    summary = "the counters (RAPL) cannot be read: on most systems they are for root alone"
    remedy = "sudo chmod -R a+r /sys/class/powercap/intel-rapl, which lasts until the next start"
    return [state, Finding(name, summary, good=False, null=energy, remedy=remedy)]


def gib(size: int) -> str:
    """Format bytes as GiB."""
    return f"{size / 2**30:.1f} GiB"
