"""The machine around the worker, as the kernel's files report it: clocks, heat, load and energy.

Every reader takes the root of the file system as an argument, and returns None for what is not
reported: many of these files are missing in virtual machines and containers, or are for root alone.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from statistics import fmean

from kdbench.common.system_files import read_text
from kdbench.runner.telemetry.cpu_load import Processors, usable_cores, usable_processors
from kdbench.runner.telemetry.host import load_average

Figures = dict[str, int | float | str | None]

_ROOT = Path("/")
# A clock is read from a file per processor; on a large machine some of them must do.
_MOST_CLOCKS = 16
# The package's own sensor: one reading, where each core's would interrupt that core.
_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "soc_thermal")
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_WHOLE = re.compile(r"Package id|Tctl|Tdie|^$")


class Conditions:
    """Reads all that the samples hold of the machine; None for what the system does not report.

    `kdbench` are the processes of kdbench itself, which are no others; without `usable`, the
    processors are those that this process may run on.
    """

    def __init__(
        self, kdbench: Collection[int], usable: Collection[int] | None = None, root: Path = _ROOT
    ) -> None:
        usable = usable_processors() if usable is None else usable
        self._root = root
        self._usable = usable or ()
        self._processors = Processors(kdbench, usable, root / "proc") if usable else None
        self._sensors = Sensors(self._usable, root)
        self._energy = PackageEnergy(root)

    def start(self) -> Figures:
        """Return what is reported once, when the cell starts; these are no columns of `samples`."""
        return {
            "load_average": load_average(),
            "cpu_governor": governor(self._usable, self._root),
            "usable_processors": len(self._usable) or None,
            "usable_cores": usable_cores(self._usable, self._root) if self._usable else None,
        }

    def read(self, worker: Collection[int]) -> Figures:
        """Return what is read at the slow rate, for the worker's process and its children."""
        return {
            "cpu_elsewhere": self._processors.elsewhere(worker) if self._processors else None,
            "cpu_mhz": self._sensors.mhz(),
            "cpu_celsius": self._sensors.celsius(),
            "cpu_throttled_seconds": self._sensors.throttled_seconds(),
        }

    def joules(self) -> float | None:
        """Return the processor packages' energy counters, summed."""
        return self._energy.joules()


class Sensors:
    """What can be read of the usable processors' state; which files there are is found once."""

    def __init__(self, usable: Collection[int], root: Path = _ROOT) -> None:
        cpus = [root / f"sys/devices/system/cpu/cpu{number}" for number in sorted(usable)]
        step = -(-len(cpus) // _MOST_CLOCKS) or 1
        self._clocks = [cpu / "cpufreq/scaling_cur_freq" for cpu in cpus[::step]]
        self._heat = _thermometers(root)
        self._quota = list(_quota_files(root))
        self._slowed = [
            cpu / f"thermal_throttle/{part}_throttle_total_time_ms"
            for cpu in cpus
            for part in ("core", "package")
        ]

    def mhz(self) -> float | None:
        """Return the mean clock of the processors; null without frequency scaling."""
        known = _numbers(self._clocks)
        return fmean(known) / 1000 if known else None

    def celsius(self) -> float | None:
        """Return the highest of the processor packages' temperatures."""
        known = _numbers(self._heat)
        return max(known) / 1000 if known else None

    def throttled_seconds(self) -> float | None:
        """Return the time in which a quota stopped or heat slowed the processors, a counter.

        Of quotas the sum over the control groups that this process is in, each as the kernel
        counts it: over all its processors, so it may run faster than the clock. Of heat the
        longest of the processors' (a package tells the same time for each of its own).
        """
        read = [_quota(file, unit) for file, unit in self._quota]
        known = [seconds for seconds in read if seconds is not None]
        if slowed := _numbers(self._slowed):
            known.append(max(slowed) / 1000)
        return sum(known) if known else None


class PackageEnergy:
    """The energy counters of the processor packages (RAPL), summed, without wrap-around.

    Source: the kernel's Documentation/power/powercap. Since 2020 they are for root alone on most
    systems, since they can betray what a processor computes.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._zones = [_Zone(folder) for folder in _packages(root)]

    def joules(self) -> float | None:
        """Return energy since the first reading's counter began; None if any package is silent."""
        read = [zone.joules() for zone in self._zones]
        return sum(j or 0.0 for j in read) if read and None not in read else None

    @property
    def found(self) -> bool:
        """Whether there are such counters, readable or not."""
        return bool(self._zones)


class _Zone:
    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range = next(iter(_numbers([folder / "max_energy_range_uj"])), None)
        self._last: float | None = None
        self._wrapped = 0.0

    def joules(self) -> float | None:
        now = next(iter(_numbers([self._counter])), None)
        if now is None:
            return None
        if self._last is not None and now < self._last:
            # Without a range, how far it had come is not known, for good: not a number.
            self._wrapped += self._range if self._range is not None else math.nan
        self._last = now
        return None if math.isnan(self._wrapped) else (self._wrapped + now) / 1e6


def governor(usable: Collection[int], root: Path = _ROOT) -> str | None:
    """Return the kernel's policy for the processors' clocks; several where they differ."""
    cpus = root / "sys/devices/system/cpu"
    found = {read_text(cpus / f"cpu{number}/cpufreq/scaling_governor") for number in usable}
    return ", ".join(sorted(found - {""})) or None


def _packages(root: Path) -> Iterator[Path]:
    """Find the packages' zones: their parts (core, dram) are in them, and psys is all of it."""
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        if re.fullmatch(r"package-\d+(-die-\d+)?", read_text(folder / "name")):
            yield folder


def _thermometers(root: Path) -> list[Path]:
    """Find the files with a package's temperature, in thousandths of a degree."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    found = [zone / "temp" for zone in zones if read_text(zone / "type") in _ZONES]
    if _numbers(found):
        return found
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    return [
        file
        for chip in chips
        if read_text(chip / "name") in _CHIPS
        for file in sorted(chip.glob("temp*_input"))
        if _WHOLE.match(read_text(file.with_name(file.name.replace("_input", "_label"))))
    ]


def _quota_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Find the control groups' counters of throttling: version 2's, else version 1's, by path."""
    mount = root / "sys/fs/cgroup"
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield from ((file, "throttled_usec") for file in _levels(mount, path))
        elif "cpu" in controllers.split(","):
            folder = next((f for f in (mount / controllers, mount / "cpu") if f.is_dir()), None)
            if folder:
                yield from ((file, "throttled_time") for file in _levels(folder, path))


def _levels(mount: Path, path: str) -> Iterator[Path]:
    """Each level's cpu.stat: any of them may set a quota, and a container shows only the upper."""
    folder = mount / path.strip("/")
    for level in (folder, *folder.parents):
        if level != mount and mount not in level.parents:
            return
        if (level / "cpu.stat").is_file():
            yield level / "cpu.stat"


def _quota(file: Path, name: str) -> float | None:
    found = re.search(rf"^{name} (\d+)$", read_text(file), re.MULTILINE)
    if not found:
        return None
    return int(found[1]) / (1e6 if name == "throttled_usec" else 1e9)


def _numbers(files: Iterable[Path]) -> list[float]:
    """Read files of one number each; those that are not there, or hold none, are left out."""
    found = []
    for file in files:
        try:
            found.append(float(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return found
