"""A process of its own beside the worker, which samples memory, power and energy.

    python -P -m kdbench.runner.telemetry.sampler OUT.jsonl --parent PID [--gpu-uuid UUID]

Being a process of its own, it disturbs the training least, keeps its deadlines whatever the
display does, and keeps what it saw when the worker is killed. It prints `ready` after its first
sample, takes `watch PID` on its input, and takes a last sample and leaves when its input ends.
Killed, it loses the last second at most; only the file's last line can be cut short.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kdbench.common.lifetime import STOP_SIGNALS, die_with_parent, ignore_signals
from kdbench.runner.telemetry.host import ResidentMemory
from kdbench.runner.telemetry.neighbours import Neighbours
from kdbench.runner.telemetry.sensors import Conditions

if TYPE_CHECKING:
    from kdbench.runner.telemetry.gpu import GpuReader

# Polling is all that there is to know of a card's memory in use, and its peaks are short.
CARD_INTERVAL_MS = 20
# A host's peak is the kernel's to tell, exactly, and the training wants all processors: on two of
# them a sample each 20 ms cost a step of 70 ms two percent, by the threads that wait for the one
# that it stops.
HOST_INTERVAL_MS = 100
# The driver refreshes these about this often; asking it more contends with the training.
_POWER_EVERY_NS = 100_000_000
# The list of processes costs milliseconds on some drivers; the state of the machine changes slowly.
_SLOW_EVERY_NS = 1_000_000_000
_FLUSH_EVERY_NS = 1_000_000_000
# Holds more than a second of samples, so that each flush is one write, of whole lines.
_BUFFER_BYTES = 1 << 20

Sample = dict[str, Any]
Clock = Callable[[], int]


def next_deadline(start: int, interval: int, now: int) -> int:
    """Return the first of start + k * interval after `now`: what was missed is not caught up."""
    return start + ((now - start) // interval + 1) * interval


class Timer:
    """True at most once per period, on an absolute grid: lateness does not add up."""

    def __init__(self, period_ns: int, start: int) -> None:
        self._period = period_ns
        self._start = self._deadline = start

    def due(self, now: int) -> bool:
        """Whether a period has begun since this was last true."""
        if now < self._deadline:
            return False
        self._deadline = next_deadline(self._start, self._period, now)
        return True


class Sampler:
    """Takes samples: the rows of the table `samples`, without their run_key.

    A sample has the columns that are known, and now and then what is no column, for the cell's own
    row: `neighbours` on the card ([pid, name, computing] each), and in the first what
    `Conditions.start` reports. All deadlines count from `start`, on `clock` (CLOCK_MONOTONIC, ns).
    """

    def __init__(
        self,
        gpu: GpuReader | None,
        conditions: Conditions | None = None,
        *,
        start: int,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self._gpu = gpu
        self._conditions = conditions
        self._neighbours = Neighbours()
        self._clock = clock
        self._host: ResidentMemory | None = None
        self._pid: int | None = None
        self._power = Timer(_POWER_EVERY_NS, start)
        self._slow = Timer(_SLOW_EVERY_NS, start)

    def watch(self, pid: int) -> None:
        """Watch this process, and its children, from the next sample on."""
        self._pid = pid
        self._host = ResidentMemory(pid, clock=self._clock)

    def first(self) -> Sample:
        """Take the sample before the worker starts, with what is told once."""
        sample = self.sample(whole=True)
        known = self._conditions.start() if self._conditions else {}
        return sample | {name: value for name, value in known.items() if value is not None}

    def sample(self, *, whole: bool = False) -> Sample:
        """Take one sample; a `whole` one reads also what is not due, such as the last energy."""
        now = self._clock()
        power, slow = self._power.due(now) or whole, self._slow.due(now) or whole
        # Memory first: the process list is slow, and the sample's time is that of its memory.
        values: Sample = {
            "monotonic_ns": now,
            "host_bytes": self._host.read() if self._host else None,
            "device_bytes": self._gpu.device_bytes() if self._gpu else None,
        }
        if power:
            values |= self._energies()
        if slow:
            values |= self._surroundings()
        return {name: value for name, value in values.items() if value is not None}

    def _energies(self) -> Sample:
        gpu = self._gpu
        return {
            "power_watts": gpu and gpu.power_watts(),
            "energy_joules": gpu and gpu.energy_joules(),
            "gpu_percent": gpu and gpu.gpu_percent(),
            "host_energy_joules": self._conditions and self._conditions.joules(),
        }

    def _surroundings(self) -> Sample:
        own = () if self._host is None or self._pid is None else (self._pid, *self._host.children)
        values: Sample = dict(self._conditions.read(own)) if self._conditions else {}
        gpu = self._gpu
        if gpu is None:
            return values
        values |= {
            "gpu_sm_mhz": gpu.sm_mhz(),
            "gpu_celsius": gpu.celsius(),
            "gpu_throttle": gpu.throttle_bits(),
        }
        company = self._neighbours.read(gpu.processes(), own, gpu.computing())
        if company is not None:
            others = [[other.pid, other.name, other.computing] for other in company.others]
            values |= {"process_bytes": company.worker_bytes, "gpu_neighbours": company.count}
            values["neighbours"] = others or None
        return values


class Lines:
    """Writes samples, a JSON object per line; what is handed to the system ends with a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._waiting: list[str] = []

    def add(self, sample: Sample) -> None:
        """Keep a sample for the next flush."""
        self._waiting.append(json.dumps(sample) + "\n")

    def flush(self) -> None:
        """Hand all that waits to the system, in one write."""
        text, self._waiting = "".join(self._waiting), []
        self._file.write(text.encode())
        self._file.flush()


class Commands:
    """What the runner says on a pipe; waiting for it is what the sampler does between samples."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._partial = b""

    def wait(self, seconds: float) -> list[str] | None:
        """Wait up to `seconds` for whole lines; None after the input's end."""
        ready, _, _ = select.select([self._descriptor], [], [], max(seconds, 0))
        if not ready:
            return []
        read = os.read(self._descriptor, 4096)
        if not read:
            return None
        *lines, self._partial = (self._partial + read).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def run(sampler: Sampler, lines: Lines, commands: Commands, *, start: int, interval: int) -> None:
    """Sample until the commands end; the first sample is taken by the caller."""
    flush = Timer(_FLUSH_EVERY_NS, start + _FLUSH_EVERY_NS)
    deadline = next_deadline(start, interval, time.monotonic_ns())
    while True:
        said = commands.wait((deadline - time.monotonic_ns()) / 1e9)
        if said is None:
            return
        for line in said:
            verb, _, value = line.partition(" ")
            if verb != "watch" or not value.isdecimal():
                raise SystemExit(f"expected 'watch PID', found {line!r}")
            sampler.watch(int(value))
        if time.monotonic_ns() < deadline:
            continue
        lines.add(sampler.sample())
        now = time.monotonic_ns()
        if flush.due(now):
            lines.flush()
        deadline = next_deadline(start, interval, now)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sampler; see the module's docstring."""
    # These reach the whole group, by Ctrl-C and by a scheduler: when the sampling ends is for the
    # runner to say.
    ignore_signals(STOP_SIGNALS)
    options = _parser().parse_args(arguments)
    die_with_parent(options.parent)
    with ExitStack() as stack:
        file = stack.enter_context(options.out.open("wb", buffering=_BUFFER_BYTES))
        gpu = _open_gpu(stack, options.gpu_uuid) if options.gpu_uuid else None
        conditions = Conditions((options.parent, os.getpid()))
        start = time.monotonic_ns()
        sampler, lines = Sampler(gpu, conditions, start=start), Lines(file)
        stack.callback(lines.flush)
        lines.add(sampler.first())
        lines.flush()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        default = CARD_INTERVAL_MS if options.gpu_uuid else HOST_INTERVAL_MS
        interval = round((options.interval_ms or default) * 1e6)
        run(sampler, lines, Commands(sys.stdin.fileno()), start=start, interval=interval)
        lines.add(sampler.sample(whole=True))
        if gpu is not None and gpu.lost:
            sys.stderr.write(f"{gpu.problem}; nothing was sampled of it from then on\n")
    return 0


def _open_gpu(stack: ExitStack, uuid: str) -> GpuReader:
    # A run on the CPU need not load it.
    from kdbench.runner.telemetry.nvml import open_nvml  # noqa: PLC0415

    nvml = stack.enter_context(open_nvml())
    reader = nvml.reader(uuid)
    if nvml.problem or reader.problem:
        sys.stderr.write(f"nothing is sampled of the card: {nvml.problem or reader.problem}\n")
    return reader


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kdbench.runner.telemetry.sampler")
    parser.add_argument("out", type=Path, help="where the samples go, a JSON object per line")
    parser.add_argument("--parent", type=int, required=True, help="the process that starts this")
    parser.add_argument("--interval-ms", type=_positive, help="20 with a card, 100 without")
    parser.add_argument("--gpu-uuid", help="the card to sample; none without it")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"expected at least 1 ms, found {text}")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
