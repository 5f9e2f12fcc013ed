"""The machine around the worker: others' use of the processors, their clocks, heat and energy."""

from collections.abc import Collection
from pathlib import Path

from kdbench.runner.telemetry.cpu_load import Processors, usable_cores, usable_processors
from kdbench.runner.telemetry.host import load_average
from kdbench.runner.telemetry.sensors import PackageEnergy, Sensors, governor

Figures = dict[str, int | float | str | None]


class Conditions:
    """Reads all that the samples tell of the machine; on a system that tells nothing, all is None.

    Args:
        kdbench: the processes of kdbench itself, which are no others.
        usable: numbers of the processors that the worker may run on; None: not known, and then
            nothing is claimed of them.
        root: of the file system.
    """

    def __init__(
        self,
        kdbench: Collection[int],
        usable: Collection[int] | None = None,
        root: Path = Path("/"),
    ) -> None:
        usable = usable_processors() if usable is None else usable
        self._root = root
        self._usable = usable or ()
        self._processors = Processors(kdbench, usable, root / "proc") if usable else None
        self._sensors = Sensors(self._usable, root)
        self._energy = PackageEnergy(root)

    def start(self) -> Figures:
        """Return what is told once, when the cell starts; these are no columns of `samples`."""
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
