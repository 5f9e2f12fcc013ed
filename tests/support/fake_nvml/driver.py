"""The library itself. What it answers is a script: a dict, in a JSON file for child processes.

    load_fails     the library cannot be loaded
    init           the code that nvmlInit returns
    lacks          functions that an old driver does not export
    driver, cuda   versions; cuda as in 12090
    messages       {code: text} of nvmlErrorString
    gpus           a list of
        uuid, name, total, reserved
        used           bytes in use
        power_mw, energy_mj, busy_percent
        joules_from    nanoseconds of CLOCK_MONOTONIC: the energy counter stood at 0 then, and has
                       gone up by power_mw since; in place of energy_mj
        processes      {pid: bytes | null: NVML_VALUE_NOT_AVAILABLE}; "worker" is kdbench's worker
                       while it runs, "worker+N" as a namespace numbers it that is N ahead of ours
        computing      {pid: percent} of the processes that compute
        sm_mhz, celsius, throttle   clock, temperature, bits of the clocks' event reasons
        mig            whether MIG is on; absent: the card does not know of it
        instances      of a card in MIG mode: cards, whose uuid begins with MIG-
        lost_after     calls that the card answers before it falls off the bus
        errors         {function: code}
        then           {"file": path, ...}: once there is such a file, these in place of those

A text that begins with hex: is the bytes that follow, such as hex:f8fff9, which is no UTF-8.
A figure that is absent or null is not supported; one that is a list changes with every call, and
stays at its last. The struct layouts below are nvml.h's, written down independently of pynvml's.
"""

import ctypes
import json
import os
import time
from ctypes import CFUNCTYPE, c_char_p, c_int, c_uint, c_uint64, c_void_p
from pathlib import Path

SCRIPT = "FAKE_NVML_SCRIPT"
LIBRARY = "libnvidia-ml.so.1"

SUCCESS, UNINITIALIZED, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE = 0, 1, 3, 6, 7
GPU_IS_LOST, VERSION_MISMATCH, ARGUMENT_VERSION_MISMATCH = 15, 18, 25
_NOT_AVAILABLE = 2**64 - 1
_MESSAGES = {15: b"GPU is lost", 25: b"Argument version mismatch"}


class MemoryV1(ctypes.Structure):
    _fields_ = (("total", c_uint64), ("free", c_uint64), ("used", c_uint64))


class MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", c_uint),
        ("total", c_uint64),
        ("reserved", c_uint64),
        ("free", c_uint64),
        ("used", c_uint64),
    )


class Process(ctypes.Structure):
    _fields_ = (
        ("pid", c_uint),
        ("used", c_uint64),
        ("gpu_instance", c_uint),
        ("compute_instance", c_uint),
    )


class Utilization(ctypes.Structure):
    _fields_ = (
        ("pid", c_uint),
        ("timestamp", c_uint64),
        ("sm", c_uint),
        ("memory", c_uint),
        ("encoder", c_uint),
        ("decoder", c_uint),
    )


class Library:
    """Stands for the loaded library: its attributes are its C functions."""

    def __init__(self, script):
        self._script = script
        self._cards = [Card(gpu) for gpu in script.get("gpus", ())]
        self._started = False
        self._text = ctypes.create_string_buffer(80)
        for name, (types, function) in self._functions().items():
            if name not in script.get("lacks", ()):
                result = c_void_p if name == "nvmlErrorString" else c_int
                setattr(self, name, CFUNCTYPE(result, *types)(function))

    def _functions(self):
        pointer = c_void_p
        card = {
            "nvmlDeviceGetUUID": ((pointer, c_uint), Card.uuid),
            "nvmlDeviceGetName": ((pointer, c_uint), Card.name),
            "nvmlDeviceGetMemoryInfo": ((pointer,), Card.memory),
            "nvmlDeviceGetMemoryInfo_v2": ((pointer,), Card.memory_v2),
            "nvmlDeviceGetPowerUsage": ((pointer,), Card.power),
            "nvmlDeviceGetTotalEnergyConsumption": ((pointer,), Card.energy),
            "nvmlDeviceGetUtilizationRates": ((pointer,), Card.utilization),
            "nvmlDeviceGetComputeRunningProcesses_v2": ((pointer, pointer), Card.processes),
            "nvmlDeviceGetComputeRunningProcesses_v3": ((pointer, pointer), Card.processes),
            "nvmlDeviceGetMigMode": ((pointer, pointer), Card.mig),
            "nvmlDeviceGetMaxMigDeviceCount": ((pointer,), Card.places),
            "nvmlDeviceGetClockInfo": ((c_uint, pointer), Card.clock),
            "nvmlDeviceGetTemperature": ((c_uint, pointer), Card.temperature),
            "nvmlDeviceGetCurrentClocksEventReasons": ((pointer,), Card.throttle),
            "nvmlDeviceGetCurrentClocksThrottleReasons": ((pointer,), Card.throttle),
            "nvmlDeviceGetProcessUtilization": ((pointer, pointer, c_uint64), Card.utilized),
        }
        functions = {
            name: ((pointer, *types), self._on_card(name, answer))
            for name, (types, answer) in card.items()
        }
        return functions | {
            "nvmlInitWithFlags": ((c_uint,), self._init),
            "nvmlShutdown": ((), self._shutdown),
            "nvmlErrorString": ((c_int,), self._message),
            "nvmlSystemGetDriverVersion": ((pointer, c_uint), self._driver),
            "nvmlSystemGetCudaDriverVersion_v2": ((pointer,), self._cuda),
            "nvmlDeviceGetCount_v2": ((pointer,), self._count),
            "nvmlDeviceGetHandleByIndex_v2": ((c_uint, pointer), self._by_index),
            "nvmlDeviceGetHandleByUUID": ((c_char_p, pointer), self._by_uuid),
            "nvmlDeviceGetMigDeviceHandleByIndex": ((pointer, c_uint, pointer), self._instance),
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": ((pointer, pointer), self._parent),
        }

    def _on_card(self, name, answer):
        def call(handle, *arguments):
            if not self._started:
                return UNINITIALIZED
            card = self._card(handle)
            return card.refuses(name) or answer(card, *arguments)

        return call

    def _card(self, handle):
        """Cards are numbered from 1, the instances of the second from 201."""
        if handle < 100:
            return self._cards[handle - 1]
        return self._cards[handle // 100 - 1].instances[handle % 100 - 1]

    def _init(self, _flags):
        code = self._script.get("init", SUCCESS)
        self._started = code == SUCCESS
        return code

    def _shutdown(self):
        self._started = False
        return SUCCESS

    def _message(self, code):
        told = self._script.get("messages", {}).get(str(code))
        self._text.value = _MESSAGES.get(code, b"error %d" % code) if told is None else _raw(told)
        return ctypes.addressof(self._text)

    def _driver(self, text, size):
        return _write_text(text, size, self._script.get("driver", "575.57.08"))

    def _cuda(self, version):
        return _write(c_int, version, self._script.get("cuda", 12090))

    def _count(self, count):
        return _write(c_uint, count, len(self._cards)) if self._started else UNINITIALIZED

    def _by_index(self, index, handle):
        # Handles are opaque to the caller; 0 would be a null pointer.
        return self._cards[index].refuses("handle") or _write(c_void_p, handle, index + 1)

    def _by_uuid(self, uuid, handle):
        if not self._started:
            return UNINITIALIZED
        for index, card in enumerate(self._cards):
            if _raw(card.script["uuid"]) == uuid:
                return self._by_index(index, handle)
            for place, instance in enumerate(card.instances):
                if _raw(instance.script["uuid"]) == uuid:
                    return self._instance(index + 1, place, handle)
        return NOT_FOUND

    def _instance(self, card, place, handle):
        if place >= len(self._cards[card - 1].instances):
            return NOT_FOUND
        return _write(c_void_p, handle, 100 * card + place + 1)

    def _parent(self, instance, handle):
        return _write(c_void_p, handle, instance // 100)


class Card:
    def __init__(self, script):
        self.script = script
        self.instances = [Card(instance) for instance in script.get("instances", ())]
        self._calls = 0
        self._read = {}

    def refuses(self, name):
        self._calls += 1
        then = self.script.get("then")
        if then and Path(then["file"]).exists():
            self.script = self.script | then | {"then": None}
        if self._calls > self.script.get("lost_after", self._calls):
            return GPU_IS_LOST
        return self.script.get("errors", {}).get(name, SUCCESS)

    def _next(self, key):
        value = self.script.get(key)
        if not isinstance(value, list):
            return value
        turn = self._read.get(key, 0)
        self._read[key] = turn + 1
        return value[min(turn, len(value) - 1)]

    def _number(self, kind, address, key):
        value = self._next(key)
        return NOT_SUPPORTED if value is None else _write(kind, address, value)

    def uuid(self, text, size):
        return _write_text(text, size, self.script["uuid"])

    def name(self, text, size):
        return _write_text(text, size, self.script.get("name", "Fake GPU"))

    def memory(self, address):
        used = self._next("used")
        if used is None:
            return NOT_SUPPORTED
        # The first version knows no reserve: it counts as used.
        used += self.script.get("reserved", 0)
        total = self.script["total"]
        return _write_struct(MemoryV1, address, total=total, free=total - used, used=used)

    def memory_v2(self, address):
        if MemoryV2.from_address(address).version != ctypes.sizeof(MemoryV2) | 2 << 24:
            return ARGUMENT_VERSION_MISMATCH
        used = self._next("used")
        if used is None:
            return NOT_SUPPORTED
        total, reserved = self.script["total"], self.script.get("reserved", 0)
        free = total - used - reserved
        return _write_struct(
            MemoryV2, address, total=total, reserved=reserved, free=free, used=used
        )

    def power(self, address):
        return self._number(c_uint, address, "power_mw")

    def energy(self, address):
        since = self.script.get("joules_from")
        if since is not None:
            seconds = (time.monotonic_ns() - since) / 1e9
            return _write(c_uint64, address, int(seconds * self.script["power_mw"]))
        return self._number(c_uint64, address, "energy_mj")

    def utilization(self, address):
        # Two unsigned ints follow each other: gpu, memory.
        return self._number(c_uint, address, "busy_percent") or _write(c_uint, address + 4, 11)

    def processes(self, count, array):
        listed = _numbered(self.script.get("processes"))
        if listed is None:
            return NOT_SUPPORTED
        room = c_uint.from_address(count).value
        _write(c_uint, count, len(listed))
        if len(listed) > room:
            return INSUFFICIENT_SIZE
        for index, (pid, used) in enumerate(listed):
            _write_struct(
                Process,
                array + index * ctypes.sizeof(Process),
                pid=pid,
                used=_NOT_AVAILABLE if used is None else used,
                gpu_instance=2**32 - 1,
                compute_instance=2**32 - 1,
            )
        return SUCCESS

    def utilized(self, samples, count, _since):
        listed = _numbered(self.script.get("computing"))
        if not listed:
            return NOT_SUPPORTED if listed is None else NOT_FOUND
        room = c_uint.from_address(count).value
        _write(c_uint, count, len(listed))
        if not samples or len(listed) > room:
            return INSUFFICIENT_SIZE
        for index, (pid, percent) in enumerate(listed):
            address = samples + index * ctypes.sizeof(Utilization)
            _write_struct(Utilization, address, pid=pid, timestamp=time.time_ns(), sm=percent)
        return SUCCESS

    def clock(self, _kind, address):
        return self._number(c_uint, address, "sm_mhz")

    def temperature(self, _sensor, address):
        return self._number(c_uint, address, "celsius")

    def throttle(self, address):
        return self._number(c_uint64, address, "throttle")

    def places(self, address):
        return _write(c_uint, address, 7) if self.script.get("mig") else NOT_SUPPORTED

    def mig(self, current, pending):
        return self._number(c_uint, current, "mig") or _write(c_uint, pending, 0)


def library(script):
    """What loading the library gives; raises OSError where it cannot be loaded."""
    if script.get("load_fails"):
        raise OSError(f"{LIBRARY}: cannot open shared object file: No such file or directory")
    return Library(script)


def patched(real, script):
    """A CDLL that loads the fake, and anything else as ever; still a class, as others expect."""

    class Patched(real):
        def __new__(cls, name=None, *_, **__):
            return library(script) if name == LIBRARY else super().__new__(cls)

    return Patched


def install_from_environment():
    """Patch ctypes for this whole process, if the environment names a script."""
    if os.environ.get(SCRIPT):
        script = json.loads(Path(os.environ[SCRIPT]).read_text())
        ctypes.CDLL = patched(ctypes.CDLL, script)


def _numbered(listed):
    """Processes by number, and what is told of each; the worker is found by what it runs."""
    if listed is None:
        return None
    worker = _worker() if any(name.startswith("worker") for name in listed) else None
    found = []
    for name, told in listed.items():
        if not name.startswith("worker"):
            found.append((int(name), told))
        elif worker is not None:
            found.append((worker + int(name.partition("+")[2] or 0), told))
    return found


def _worker():
    """The worker whose runner is this one's parent: its child, or one of a warm process of its."""
    for child in _children(os.getppid()):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"kdbench.worker\0" in command:
                return child
            if b"kdbench.worker.forker\0" in command and (forked := _children(child)):
                return forked[0]
        except OSError:
            continue
    return None


def _children(parent):
    return [int(c) for c in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _write(kind, address, value):
    kind.from_address(address).value = value
    return SUCCESS


def _raw(text):
    return bytes.fromhex(text[4:]) if text.startswith("hex:") else text.encode()


def _write_text(address, size, text):
    content = _raw(text) + b"\0"
    if len(content) > size:
        return INSUFFICIENT_SIZE
    ctypes.memmove(address, content, len(content))
    return SUCCESS


def _write_struct(kind, address, **values):
    struct = kind.from_address(address)
    for name, value in values.items():
        setattr(struct, name, value)
    return SUCCESS
