"""`cells`: energy, work, accuracy, and what the run was measured on."""

from kdbench.store.schema.column import (
    ALL_NEAR,
    NO_GPU,
    NO_NVML,
    NO_SENSOR,
    NO_STEP,
    NOT_CAUGHT,
    NOT_COUNTED,
    NOT_TRAINED,
    PER_CARD,
    Column,
    flag,
    integer,
    number,
    text,
)

CONDITION_COLUMNS = (
    number(
        "energy_step_joules",
        "energy of the card, others' use of it included, per timed step",
        PER_CARD + ALL_NEAR,
    ),
    text("energy_source", "nvml-counter, or nvml-power: integrated samples", PER_CARD),
    number(
        "energy_epoch_joules",
        "energy of the card per epoch of training, evaluation left out; kind as "
        "epoch_seconds_kind. Measured, the median over the epochs of the last attempt",
        PER_CARD + "; measured, and no whole epoch was of the last attempt and away from any "
        "suspension",
    ),
    number(
        "energy_training_joules",
        "energy of the card for the whole training of all epochs, precompute and evaluation left "
        "out; kind as energy_training_kind",
        PER_CARD,
    ),
    text(
        "energy_training_kind",
        "measured: all steps were taken, in one attempt and none of them near a suspension; or "
        "extrapolated from those that were sampled",
        PER_CARD,
    ),
    number(
        "host_energy_step_joules",
        "energy of the processor packages, others' use of them included, per timed step",
        NO_SENSOR + ALL_NEAR,
    ),
    text("host_energy_source", "rapl: the kernel's powercap counters", NO_SENSOR),
    number(
        "flops_step",
        "floating-point operations of a step's matrix products, convolutions and attention, "
        "counted as they are dispatched (a multiplication and an addition are two); "
        "element-wise work and products with a vector are not in it, what is computed again in "
        "backward is",
        NOT_COUNTED,
    ),
    integer(
        "operations_step",
        "operations that a step dispatches, views left out: what is launched, one by one",
        NOT_COUNTED,
    ),
    integer(
        "bytes_moved_step",
        "bytes of all tensors that those operations are given and return: what the step would move "
        "if no cache held anything",
        NOT_COUNTED,
    ),
    number(
        "matmul_flops_per_second",
        "what a large matrix product reaches at best on this device in the cell's precision, with "
        "the worker's threads; repeated until it is steady, once per run, and by up to two later "
        "cells of a run while it is not steady or contended",
        "the measurement failed",
    ),
    number(
        "copy_bytes_per_second",
        "bytes read and written per second at best by a large copy in the device's memory; "
        "measured with the product",
        "the measurement failed",
    ),
    flag(
        "rates_steady",
        "the best three tries of the product, and of the copy, agreed within 3 %",
        "the measurement failed, or it is of a version that measured once (up to 5)",
    ),
    flag(
        "rates_contended",
        "others used the processors or the card while these rates were measured, which may be too "
        "low then",
        "neither could be observed, the measurement failed, or it is of a version up to 5",
    ),
    number(
        "utilisation",
        "flops_step over the median step, as a fraction of this row's matmul_flops_per_second; "
        "tables and figures take the best such rate of the environment and precision instead",
        "one of them is null",
    ),
    number(
        "accuracy",
        "test accuracy after the last of all epochs, 0 to 1",
        NOT_TRAINED + ", or the training did not finish",
    ),
    number("accuracy_best", "best test accuracy over the epochs done, 0 to 1", NOT_TRAINED),
    integer(
        "steps_resumed",
        "steps taken over from an earlier, stopped attempt at this run; 0: none",
        NOT_TRAINED,
    ),
    number(
        "wall_seconds",
        "the whole cell, from starting its process to its end; of a resumed training, its last "
        "attempt",
    ),
    Column("started_at", "when the cell's process was started, UTC", dtype="timestamp"),
    number("sample_seconds_median", "interval between samples, as achieved", "under two samples"),
    number("sample_seconds_max", "the longest such interval", "under two samples"),
    number("load_average", "the system's load over the minute before the cell", NO_SENSOR),
    number(
        "cpu_elsewhere",
        "processors kept busy by others than the worker with its children and kdbench itself, of "
        "those that the worker may use; what a hypervisor took away counts. Mean over the timed "
        "steps: `samples` has the single seconds",
        NO_SENSOR + "; " + NO_STEP + ALL_NEAR,
    ),
    text("cpu_governor", "the kernel's policy for the processors' clocks", NO_SENSOR),
    number(
        "cpu_mhz_median",
        "the mean clock of the usable processors, median over the timed steps",
        NO_SENSOR + NOT_CAUGHT,
    ),
    number(
        "cpu_celsius_max",
        "the processors' highest temperature in the timed steps",
        NO_SENSOR + NOT_CAUGHT,
    ),
    number(
        "cpu_throttled_seconds",
        "time of the timed steps in which a control group's quota stopped the worker's processors, "
        "summed over them, or heat slowed one",
        NO_SENSOR,
    ),
    number("gpu_sm_mhz_median", "the card's clock over the timed steps", NO_NVML + NOT_CAUGHT),
    number(
        "gpu_celsius_max",
        "the card's highest temperature in the timed steps",
        NO_NVML + NOT_CAUGHT,
    ),
    text(
        "gpu_throttled",
        "why the card slowed its clocks during the timed steps, in words; empty: it did not, or "
        "was told to",
        NO_NVML + NOT_CAUGHT,
    ),
    text("cpu_model", "the processor", "the system does not tell"),
    text("gpu_name", "the card's name", NO_GPU),
    text("driver_version", "NVIDIA's driver", NO_GPU),
    text("torch_version", "torch as installed"),
    text("git_revision", "kdbench's own revision, -dirty with local changes", "not a checkout"),
    text("environment", "all that is known of machine and packages, as JSON"),
    integer("schema_version", "version of this layout"),
)
