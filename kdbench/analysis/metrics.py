"""The figures that tables and pictures can show: where each comes from and what it means."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdbench.common.errors import check_name
from kdbench.common.units import Unit


@dataclass(frozen=True)
class Metric:
    """One quantity."""

    name: str  #: what the command line calls it
    column: str  #: its column of `cells`, in base units
    title: str  #: what a panel is headed with
    short: str  #: the head of a table's column, one or two lines
    note: str  #: what it means, in a few words
    source_column: str | None = None  #: the column that tells how it was got, where there is one
    #: the column that tells measured from extrapolated, where there is one
    kind_column: str | None = None
    over_seeds: bool = False  #: mean over seeds, where others are the median over runs
    #: columns that tell whether a run took the value over from an earlier computation, and from
    #: which: what many runs share counts once
    computed_once: tuple[str, str] | None = None

    @property
    def unit(self) -> Unit:
        """What its values are, as the column's name has it."""
        units: tuple[Unit, ...] = ("bytes", "seconds", "joules")
        return next((unit for unit in units if unit in self.column), "fraction")

    @property
    def is_memory(self) -> bool:
        """Whether it is an amount of memory."""
        return self.unit == "bytes"

    @property
    def is_disturbed(self) -> bool:
        """Whether others who use the machine change it."""
        return self.unit in ("seconds", "joules") or self.name in ("device", "utilisation")

    @property
    def missing_when(self) -> str:
        """Say when the column is null, in the schema's words."""
        # imported here: `--help` lists the metrics, and the store loads pyarrow
        from kdbench.store.schema import TABLES  # noqa: PLC0415

        doc = next(column for column in TABLES["cells"] if column.name == self.column)
        return doc.null_when or "it was not measured"


_ALL = (
    Metric(
        "parameters",
        "parameter_bytes",
        "Parameter bytes",
        "param.\nbytes",
        "weights alone, which is what the paper counts",
    ),
    Metric(
        "allocated",
        "allocated_peak_bytes",
        "Peak allocated in a step",
        "peak\nalloc.",
        "activations and all: where a card runs out",
        source_column="allocated_source",
    ),
    Metric(
        "reserved",
        "reserved_peak_bytes",
        "Peak reserved in a step",
        "peak\nreserv.",
        "what the CUDA caching allocator held",
    ),
    Metric(
        "process",
        "process_peak_bytes",
        "GPU memory of the process",
        "GPU\nprocess",
        "highest sample, a lower bound of the peak",
        source_column="process_source",
    ),
    Metric(
        "device",
        "device_peak_bytes",
        "GPU memory in use",
        "GPU\ndevice",
        "highest sample over the idle card, a lower bound; others' use is in it",
        source_column="device_source",
    ),
    Metric(
        "host",
        "host_peak_bytes",
        "Peak host memory",
        "host\npeak",
        "resident, interpreter and libraries included",
        source_column="host_source",
    ),
    Metric(
        "step_time",
        "step_seconds_median",
        "Time per step",
        "step\ntime",
        "median over the timed steps",
    ),
    Metric(
        "fastest_step",
        "step_seconds_fastest",
        "Fastest step",
        "fastest\nstep",
        "of the timed ones: what disturbs a step makes it longer",
    ),
    *(
        Metric(
            f"{part}_time",
            f"step_{part}_seconds",
            f"Time per step: {what}",
            f"{part}\ntime",
            f"{what}, median over the timed steps",
        )
        for part, what in {
            "data": "waiting for images, and batches of them",
            "teacher": "the teacher",
            "forward": "the student's forward pass and the loss",
            "backward": "backward",
            "optimizer": "the optimizer",
        }.items()
    ),
    Metric(
        "epoch_time",
        "epoch_seconds",
        "Time per epoch",
        "epoch\ntime",
        "training alone, evaluation left out",
        kind_column="epoch_seconds_kind",
    ),
    Metric(
        "precompute_time",
        "precompute_seconds",
        "Precompute, once",
        "pre-\ncompute",
        "embeddings, before the first step",
        kind_column="precompute_seconds_kind",
        computed_once=("precompute_reused", "precompute_key"),
    ),
    Metric(
        "precompute_memory",
        "precompute_peak_bytes",
        "Peak of the precompute, once",
        "precomp.\npeak",
        "the teacher at work, before the first step",
        computed_once=("precompute_reused", "precompute_key"),
    ),
    Metric(
        "energy",
        "energy_step_joules",
        "Energy per step",
        "step\nenergy",
        "of the card",
        source_column="energy_source",
    ),
    Metric(
        "epoch_energy",
        "energy_epoch_joules",
        "Energy per epoch",
        "epoch\nenergy",
        "of the card, training alone",
        source_column="energy_source",
        kind_column="epoch_seconds_kind",
    ),
    Metric(
        "training_energy",
        "energy_training_joules",
        "Energy of a training",
        "training\nenergy",
        "of the card over all epochs, precompute and evaluation left out",
        source_column="energy_source",
        kind_column="energy_training_kind",
    ),
    Metric(
        "precompute_energy",
        "precompute_joules",
        "Energy of the precompute",
        "precomp.\nenergy",
        "of the card, once, before the first step",
        source_column="energy_source",
        kind_column="precompute_seconds_kind",
    ),
    Metric(
        "host_energy",
        "host_energy_step_joules",
        "Energy of the processors per step",
        "host\nenergy",
        "of the processor packages, others' use of them included",
        source_column="host_energy_source",
    ),
    Metric(
        "utilisation",
        "utilisation",
        "Utilisation",
        "utili-\nsation",
        "a step's operations per second, over those of a large matrix product on this device",
    ),
    Metric(
        "accuracy",
        "accuracy",
        "Test accuracy",
        "accu-\nracy",
        "after the last epoch",
        over_seeds=True,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find_metrics(names: Iterable[str]) -> Sequence[Metric]:
    """Look metrics up by name, each once, in the order given; an unknown one is an InputError."""
    found = {}
    for name in names:
        check_name(name, METRICS, "metric", "--metric")
        found[name] = METRICS[name]
    return tuple(found.values())
