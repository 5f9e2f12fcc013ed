"""The tables beside `cells`: phases, epochs, steps, samples, memory, timeline."""

from kdbench.store.schema.column import (
    KEY,
    NO_GPU,
    NO_NVML,
    NO_SENSOR,
    NOT_TRAINED,
    PER_CARD,
    UNTIMED,
    Column,
    flag,
    integer,
    number,
    text,
)

TABLES_BESIDE_CELLS: dict[str, tuple[Column, ...]] = {
    "phases": (
        KEY,
        text(
            "phase", "setup, precompute, compile, warmup, measure, train, evaluate, account, rates"
        ),
        integer("attempt", "from 0: a resumed training keeps the phases of those before"),
        integer("started_ns", "CLOCK_MONOTONIC at its start; shared with steps and samples"),
        number("seconds", "wall-clock time", "the phase did not finish"),
        integer(
            "units",
            "steps or batches timed in it (a precompute's warm-up batch is not); an epoch of a "
            "training is one phase, or several, parted by checkpoints; steps that were suspended "
            "are counted, batches are not",
            "it has none",
        ),
        integer(
            "units_total",
            "steps or batches a whole run of it needs; precompute: more than "
            "units where the budget cut it short, or batches were suspended",
            "not known",
        ),
        flag(
            "suspended",
            "the machine was suspended, or the process stopped, while it ran",
            "the phase did not finish",
        ),
        integer("allocated_peak_bytes", "peak allocated in the phase", NO_GPU),
        integer("reserved_peak_bytes", "peak reserved in the phase", NO_GPU),
        integer("host_peak_bytes", "peak resident memory in the phase", "the phase did not finish"),
        text("host_source", "vmhwm or polled", "the phase did not finish"),
    ),
    "epochs": (
        KEY,
        integer("epoch", "from 0"),
        integer("steps", "optimizer steps in it"),
        number(
            "train_seconds",
            "its training, evaluation left out; suspended steps are in it as the clock saw them",
        ),
        number("train_loss", "mean loss over its steps"),
        number("train_accuracy", "fraction of its training images classified right, as seen"),
        number("evaluate_seconds", "its evaluation"),
        number("test_loss", "mean cross entropy on the test images"),
        number("test_accuracy", "fraction of the test images classified right"),
        number("learning_rate", "at the epoch's first step"),
    ),
    "steps": (
        KEY,
        text("phase", "warmup, measure, account or train"),
        integer("step", "from 0 within the phase; of a training, within the epoch"),
        integer("epoch", "from 0", NOT_TRAINED),
        integer("attempt", "from 0: a resumed training keeps the steps of those before"),
        integer(
            "started_ns",
            "CLOCK_MONOTONIC at its start; another clock than the samples' in all attempts but "
            "the last",
        ),
        number(
            "seconds",
            "wall-clock time from asking for the step's images to the optimizer's end, the device "
            "synchronised at both ends",
            "an accounting step",
        ),
        number(
            "device_seconds",
            "time between CUDA events at both ends",
            NO_GPU + "; an accounting step",
        ),
        number(
            "data_seconds",
            "of it, waiting for images, making a batch, giving back the last gradients",
            UNTIMED,
        ),
        number("teacher_seconds", "of it, the teacher", UNTIMED + "; the step runs none"),
        number("forward_seconds", "of it, the student's forward pass and the loss", UNTIMED),
        number("backward_seconds", "of it, backward", UNTIMED),
        number("optimizer_seconds", "of it, the optimizer", UNTIMED),
        flag(
            "suspended",
            "the machine was suspended, or the process stopped, while it ran or between it and the "
            "step before: cold, and no time to count",
        ),
        number("loss", "the step's loss"),
        integer("allocated_peak_bytes", "the CUDA allocator's peak in this step", NO_GPU),
        integer("reserved_peak_bytes", "the CUDA allocator's reserved peak", NO_GPU),
    ),
    "samples": (
        KEY,
        integer("monotonic_ns", "CLOCK_MONOTONIC when the sample was taken"),
        integer(
            "host_bytes",
            "resident memory of the worker and its children",
            "the worker was not running",
        ),
        integer(
            "process_bytes",
            "NVML: the worker's memory on the card",
            NO_NVML + "; not read this often",
        ),
        integer("device_bytes", "NVML: used memory of the card or MIG instance", NO_NVML),
        number("power_watts", "NVML: power draw of the card", PER_CARD + "; not read this often"),
        number(
            "energy_joules", "NVML: the card's energy counter", PER_CARD + "; not read this often"
        ),
        integer(
            "gpu_percent",
            "NVML: share of time with a kernel running",
            PER_CARD + "; not read this often",
        ),
        integer(
            "gpu_neighbours",
            "NVML: other processes that have the card open to compute",
            NO_NVML + "; not read this often",
        ),
        number("gpu_sm_mhz", "NVML: the card's clock", NO_NVML + "; not read this often"),
        number("gpu_celsius", "NVML: its temperature", NO_NVML + "; not read this often"),
        integer(
            "gpu_throttle",
            "NVML: the bits of the reasons why its clocks are lowered, an idle card's and those of "
            "a setting among them; 0: they are not",
            NO_NVML + "; not read this often",
        ),
        number(
            "cpu_elsewhere",
            "processors kept busy by others since the last reading",
            NO_SENSOR + "; not read this often",
        ),
        number("cpu_mhz", "mean clock of the processors", NO_SENSOR + "; not read this often"),
        number("cpu_celsius", "highest processor temperature", NO_SENSOR + "; not read this often"),
        number(
            "cpu_throttled_seconds",
            "counter of the time in which a quota stopped the processors, summed over them, or "
            "heat slowed one",
            NO_SENSOR + "; not read this often",
        ),
        number(
            "host_energy_joules",
            "RAPL: the packages' energy counters, summed, wrap-around undone",
            NO_SENSOR + "; not read this often",
        ),
    ),
    "memory": (
        KEY,
        text(
            "stage",
            "whose peak it is: steady, a step as all but the first (measured: the accounting "
            "step's); first, a training's very first step; precompute",
        ),
        text(
            "category",
            "parameters, gradients, optimizer_state, activations, teacher, inputs, "
            "workspace or other",
        ),
        text("module", "the module that allocated it, by dotted name", "outside any module"),
        integer("bytes", "live bytes at that peak"),
        integer("blocks", "how many storages those are"),
    ),
    "timeline": (
        KEY,
        integer(
            "moment",
            "from 0, in the order of the accounting step's allocations and frees: no time. Moment "
            "0 is the step's start, with a row for each category that ever holds something; each "
            "later one has one row, of the category that it changes",
        ),
        text("part", "start, data, teacher, forward, backward or optimizer"),
        text("category", "as in memory"),
        integer("live_bytes", "bytes of this category from this moment on"),
    ),
}
