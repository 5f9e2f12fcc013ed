"""The tables of the store: every column with its type, unit and meaning.

The documentation page of the columns is written from here, so what a figure means is said once.
Missing is null everywhere, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 6
#: The oldest version whose figures mean what today's do: a baseline of it is compared as it is.
COMPARABLE_SINCE = 4

Dtype = Literal["string", "int64", "float64", "bool", "timestamp"]

STATUSES = ("ok", "oom", "failed", "timeout", "killed", "diverged", "interrupted")


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type, meaning, and when it is null (None: never)."""

    name: str
    dtype: Dtype
    doc: str
    null_when: str | None = None


def _text(name: str, doc: str, null_when: str | None = None) -> Column:
    return Column(name, "string", doc, null_when)


def _integer(name: str, doc: str, null_when: str | None = None) -> Column:
    return Column(name, "int64", doc, null_when)


def _number(name: str, doc: str, null_when: str | None = None) -> Column:
    return Column(name, "float64", doc, null_when)


def _flag(name: str, doc: str, null_when: str | None = None) -> Column:
    return Column(name, "bool", doc, null_when)


_KEY = _text("run_key", "joins all tables: one run of one cell")
_NO_STEP = "no step finished"
_NO_TIME = _NO_STEP + ", or all that did were suspended"
_ALL_NEAR = "; all timed steps were within a second of a suspension"
_NO_GPU = "not on a CUDA device"
_NO_NVML = "no NVML, or the driver does not tell it"
_NOT_TRAINED = "mode is profile"
_NO_PIXELS = (
    "the method has no teacher; setup did not finish; predicted, and the checkpoint is on the hub"
)
_UNTIMED = "an accounting step"
_NOT_COUNTED = "no accounting step finished; compiled"
_NO_SENSOR = "the system does not tell it"
_MEASURED = "source is not predicted"
_NOT_OOM = "status is not oom"
_NOT_TOLD = "; whoever refused did not tell"
_NOT_CAUGHT = "; the timed steps were too short to meet a reading, one a second"
_PER_CARD = _NO_NVML + "; a MIG instance, for which it is not told"

# What a cell is, before anything runs: `--only` filters on these.
PLAN_COLUMNS = (
    _text("cell_id", "hash of all that decides what a step computes, and its result"),
    _text(
        "label",
        "the cell's axes in words, unique within its matrix file; results of a file that was "
        "changed, or run with --set, can hold several cell_ids under one label",
    ),
    _text("matrix", "the matrix's name"),
    _text("mode", "profile: steps are timed; train: trained for all its epochs and evaluated"),
    _text(
        "method",
        "how the teacher is used: teacher-kd, embed-kd, cached-kd, vanilla-kd, "
        "student-only, or a plug-in's name",
    ),
    _text("student", "the student's name in the matrix file"),
    _flag("student_inferred", "the student's shape is inferred, not published"),
    _integer("image_size", "side of the student's input, in pixels"),
    _text("teacher", "the teacher's name in the matrix file", "the method has no teacher"),
    _text("teacher_weights", "random, pretrained or fitted", "the method has no teacher"),
    _text(
        "teacher_checkpoint",
        "the published checkpoint that its shape, or its weights too, are of",
        "the matrix file names none",
    ),
    _text("dataset", "the data set's name"),
    _integer("batch_size", "images per step"),
    _integer("epochs", "epochs of a whole training; the learning rate's schedule goes by them"),
    _text(
        "precision",
        "arithmetic of training and evaluation: fp32; tf32: matrix products and convolutions in "
        "it; bf16, fp16: under autocast, fp16 with the loss scaled",
    ),
    _text("attention", "the student's attention: eager (plain products) or sdpa (torch's choice)"),
    _text("loss", "paper or published-code"),
    _number("alpha1", "weight of the classification loss"),
    _number("alpha2", "weight of the distillation loss"),
    _text("optimizer", "the optimizer's name"),
    _text(
        "optimizer_kernels",
        "how it works through the parameters: single, foreach or fused; auto: torch's choice, "
        "foreach on CUDA and single on a CPU",
    ),
    _number("learning_rate", "the optimizer's initial learning rate"),
    _flag(
        "compile",
        "the student is compiled by torch for its training; no evaluation is, and no ledger sees "
        "into it: `memory` and `timeline` have no rows of it",
    ),
    _flag("checkpointing", "activations within the student's blocks are recomputed in backward"),
    _integer("seed", "seed of weights, data order and dropout"),
    _integer("repeat", "number of the repeat, from 0; each repeat is a process of its own"),
    _text("device", "cpu or cuda:N"),
    _text(
        "launch",
        "spawn: a fresh process; fork: a fork of a warm one, where repeats share what makes "
        "processes differ",
    ),
    _text("source", "measured, predicted or reported (by the paper)"),
    _text("profile", "the device profile that a prediction is for", "source is not predicted"),
)

_OUTCOME_COLUMNS = (
    _integer("threads", "CPU threads of the framework in the worker", "the worker did not start"),
    _text(
        "runtime_settings",
        "what of the environment decides times or bytes, as NAME=value pairs: settings of torch, "
        "its allocators, its compiler and the libraries below it, as the worker was given them; "
        "`processors` is how many an affinity or a quota leaves of the machine's. How many threads "
        "OMP_NUM_THREADS and MKL_NUM_THREADS come to is in `threads`",
        "none is set; before version 6 they were not recorded",
    ),
    _text("status", "ok, or how the run ended: " + ", ".join(STATUSES[1:])),
    _text(
        "caveats",
        "what of a prediction is outside of what was verified, in words",
        _MEASURED + "; all of it was verified",
    ),
    _text("error", "what went wrong, in one line", "status is ok"),
    _text(
        "oom_source",
        "who refused the memory. cuda: torch's allocator or the driver; host: an allocation in the "
        "worker failed, on a limit or for good; kernel: the system's killer ended the worker",
        _NOT_OOM,
    ),
    _integer(
        "oom_asked_bytes",
        "what was asked for when memory ran out; of a card as torch tells it, rounded to two "
        "decimals of KiB, MiB or GiB",
        _NOT_OOM + _NOT_TOLD,
    ),
    _integer(
        "oom_free_bytes",
        "what was free then: on the card, rounded likewise; on the host, while the error was "
        "handled, under the tightest limit, of the system, the control group or the process",
        _NOT_OOM + _NOT_TOLD,
    ),
    _flag(
        "unstable",
        "the timed steps changed their level, by more than 5 % and than chance would (Pettitt's "
        "test, p < 0.01), so that their median stands for no one state; where they are fewer than "
        "16, the warm-up ended before it was steady",
        "too few steps to tell",
    ),
    _flag(
        "contended",
        "others used the processors or the card during the timed steps: more processors than the "
        "worker's threads left over, by a tenth of one on average, or the card at all. Times may "
        "be too long then; memory is not affected, but device_peak_bytes and energy are",
        "neither could be observed; " + _NO_STEP + _ALL_NEAR,
    ),
    _text("contention", "who or what contended, in words", "contended is not true"),
    _number("step_seconds_median", "median over the timed steps of this process", _NO_TIME),
    _number(
        "step_seconds_ci_low",
        "lower end of the median's 95 % interval within this process",
        "fewer than 6 steps",
    ),
    _number("step_seconds_ci_high", "its upper end", "fewer than 6 steps"),
    _number(
        "step_seconds_fastest",
        "the fastest timed step of this process, to which others' use of the machine adds least: "
        "what `kdbench check` compares",
        _NO_TIME,
    ),
    _integer("steps_measured", "timed steps behind the median, suspended ones left out"),
    _integer(
        "suspended_steps",
        "timed steps that the machine was suspended or the process stopped in, or just before: "
        "rows of `steps`, and in no time or energy here",
        _NO_STEP,
    ),
    _integer(
        "warmup_steps",
        "steps until the series was steady, once more after each suspension: not timed",
        "mode is train",
    ),
    _number(
        "step_device_seconds_median",
        "median over the timed steps of the card's own time, between two CUDA events",
        _NO_GPU + "; " + _NO_TIME,
    ),
    _number(
        "step_data_seconds",
        "median part of a timed step: waiting for images, making the batch of them, giving back "
        "the last step's gradients. The parts are told apart on the host's clock on a CPU, by "
        "CUDA events on a card",
        _NO_TIME,
    ),
    _number(
        "step_teacher_seconds",
        "median part: the teacher's forward pass",
        "the step runs no teacher; " + _NO_TIME,
    ),
    _number(
        "step_forward_seconds", "median part: the student's forward pass and the loss", _NO_TIME
    ),
    _number("step_backward_seconds", "median part: backward", _NO_TIME),
    _number("step_optimizer_seconds", "median part: the optimizer", _NO_TIME),
    _number("epoch_seconds", "seconds of training per epoch, evaluation left out", _NO_TIME),
    _text(
        "epoch_seconds_kind",
        "measured (median over whole epochs without a suspended step), or extrapolated: median "
        "step times the steps of an epoch",
        _NO_TIME,
    ),
    _number(
        "precompute_seconds",
        "one-off cost before the first step: class or image embeddings. Of what an earlier run "
        "computed and kept, what it cost then",
        "the method precomputes nothing",
    ),
    _text(
        "precompute_seconds_kind",
        "measured, or extrapolated from the batches that `phases` counts",
        "the method precomputes nothing",
    ),
    _integer(
        "precompute_peak_bytes",
        "peak allocated while precomputing; source as allocated_source",
        "the method precomputes nothing",
    ),
    _integer(
        "precompute_kept_bytes",
        "what the precompute leaves for the training to hold",
        "the method precomputes nothing",
    ),
    _number(
        "precompute_joules",
        "energy of the card while precomputing; extrapolated like precompute_seconds",
        _PER_CARD + "; the method precomputes nothing, or an earlier run had computed it",
    ),
    _flag(
        "precompute_reused",
        "an earlier run had computed it, and this one read it from the cache",
        "the method precomputes nothing",
    ),
    _text(
        "precompute_key",
        "content key of what was computed: rows with one key share one computation where they "
        "reused it",
        "the method precomputes nothing; mode is profile, which measures it anew",
    ),
    _text(
        "teacher_revision",
        "commit that the teacher's checkpoint was read at",
        "it came from no repository",
    ),
    _text(
        "teacher_preprocessing",
        "what the teacher's pixels go through: the side that images are resized to and the filter, "
        "the centre that is cut out, if one is, and the means and deviations of pixels in 0..1 "
        "that they are normalised by, in the order red, green, blue",
        _NO_PIXELS,
    ),
    _text(
        "teacher_preprocessing_source",
        "who says so: checkpoint (its preprocessor_config.json), matrix (the file's keys), default "
        "(CLIP's means and deviations, bilinear, nothing cut out), or the matrix over one of these",
        _NO_PIXELS,
    ),
    _text(
        "data_storage",
        "where the images were: device, or stream (decoded again in each epoch)",
        "setup did not finish",
    ),
    _integer(
        "parameter_bytes",
        "parameters and buffers held during a step: the student's, the method's own, and the "
        "teacher's where the step runs it. No gradients, optimizer state or activations: "
        "this is the figure that the paper's Figure 4 shows",
        "setup did not finish",
    ),
    _integer("student_parameters", "number of the student's parameters", "setup did not finish"),
    _integer(
        "method_parameters",
        "number of the parameters of the method's own layers, which are trained with the student",
        "the method has none; setup did not finish",
    ),
    _integer(
        "allocated_peak_bytes",
        "peak of a step in the framework's allocator; predicted, of a steady one",
        _NO_STEP,
    ),
    _text(
        "allocated_source",
        "cuda-allocator: exact, the highest of the timed steps; ledger: exact "
        "for all that passes through dispatch, one accounting step; profiler: exact, torch's own "
        "record of the CPU allocator in a compiled student's accounting step; trace: predicted, "
        "exact bytes of what passes through dispatch; simulation: predicted, that trace replayed "
        "through a model of the CUDA caching allocator",
        _NO_STEP,
    ),
    _integer("reserved_peak_bytes", "peak that the CUDA caching allocator held", _NO_GPU),
    _integer(
        "first_allocated_peak_bytes",
        "peak allocated in a training's very first step, which finds no gradients and no optimizer "
        "state, and makes both",
        _MEASURED,
    ),
    _integer(
        "first_reserved_peak_bytes",
        "peak that the CUDA caching allocator holds until that step's end",
        _MEASURED + "; " + _NO_GPU,
    ),
    _integer(
        "process_peak_bytes",
        "highest NVML sample of the worker's memory: a lower bound of the peak",
        _NO_NVML,
    ),
    _text("process_source", "nvml-polled", _NO_NVML),
    _integer(
        "device_peak_bytes",
        "highest NVML sample of the card's used memory minus its idle "
        "baseline: a lower bound, and others on the card are in it",
        _NO_NVML,
    ),
    _text("device_source", "nvml-polled", _NO_NVML),
    _integer(
        "device_idle_bytes",
        "used memory of the card, or of the MIG instance, before the worker was started",
        _NO_NVML,
    ),
    _integer(
        "gpu_neighbours",
        "most other processes that had the card open to compute at once, up to a second before "
        "and after the timed steps; in a container that hides its own numbers, at least so many",
        _NO_NVML,
    ),
    _integer(
        "host_peak_bytes",
        "peak resident memory of the worker over the timed steps, "
        "interpreter and libraries included; of a resumed training, over all its attempts where "
        "the source is vmhwm. A forked worker's has in it what it shares with the process that it "
        "was forked from, and not the pages of libraries that it never touched: it is lower than "
        "a fresh one's, and not to be compared with it",
        _NO_STEP,
    ),
    _text(
        "host_source",
        "vmhwm: the kernel's exact high-water mark; polled: highest sample, a lower bound",
        _NO_STEP,
    ),
    _integer(
        "unattributed_bytes",
        "peak of the accounting step as a second source tells it, minus the ledger's: never folded "
        "into a category. CPU: torch's profiler, so what operations take below dispatch, and "
        "scalars. CUDA: the allocator, so also libraries' workspaces, and its rounding of each "
        "block up to 512 bytes or more",
        _NOT_COUNTED,
    ),
    _integer(
        "unattributed_scratch_bytes",
        "of unattributed_bytes, how much higher the peak is for what operations take and give back "
        "within themselves, as torch's profiler tells: oneDNN's scratch and copies in other "
        "layouts, columns of a convolution. It is the processor's and the libraries' to decide; "
        "the rest of unattributed_bytes is not",
        _NOT_COUNTED + "; not on a CPU",
    ),
    _number(
        "energy_step_joules",
        "energy of the card, others' use of it included, per timed step",
        _PER_CARD + _ALL_NEAR,
    ),
    _text("energy_source", "nvml-counter, or nvml-power: integrated samples", _PER_CARD),
    _number(
        "energy_epoch_joules",
        "energy of the card per epoch of training, evaluation left out; kind as "
        "epoch_seconds_kind. Measured, the median over the epochs of the last attempt",
        _PER_CARD + "; measured, and no whole epoch was of the last attempt and away from any "
        "suspension",
    ),
    _number(
        "energy_training_joules",
        "energy of the card for the whole training of all epochs, precompute and evaluation left "
        "out; kind as energy_training_kind",
        _PER_CARD,
    ),
    _text(
        "energy_training_kind",
        "measured: all steps were taken, in one attempt and none of them near a suspension; or "
        "extrapolated from those that were sampled",
        _PER_CARD,
    ),
    _number(
        "host_energy_step_joules",
        "energy of the processor packages, others' use of them included, per timed step",
        _NO_SENSOR + _ALL_NEAR,
    ),
    _text("host_energy_source", "rapl: the kernel's powercap counters", _NO_SENSOR),
    _number(
        "flops_step",
        "floating-point operations of a step's matrix products, convolutions and attention, "
        "counted as they are dispatched (a multiplication and an addition are two); "
        "element-wise work and products with a vector are not in it, what is computed again in "
        "backward is",
        _NOT_COUNTED,
    ),
    _integer(
        "operations_step",
        "operations that a step dispatches, views left out: what is launched, one by one",
        _NOT_COUNTED,
    ),
    _integer(
        "bytes_moved_step",
        "bytes of all tensors that those operations are given and return: what the step would move "
        "if no cache held anything",
        _NOT_COUNTED,
    ),
    _number(
        "matmul_flops_per_second",
        "what a large matrix product reaches at best on this device in the cell's precision, with "
        "the worker's threads; repeated until it is steady, once per run, and by up to two later "
        "cells of a run while it is not steady or contended",
        "the measurement failed",
    ),
    _number(
        "copy_bytes_per_second",
        "bytes read and written per second at best by a large copy in the device's memory; "
        "measured with the product",
        "the measurement failed",
    ),
    _flag(
        "rates_steady",
        "the best three tries of the product, and of the copy, agreed within 3 %",
        "the measurement failed, or it is of a version that measured once (up to 5)",
    ),
    _flag(
        "rates_contended",
        "others used the processors or the card while these rates were measured, which may be too "
        "low then",
        "neither could be observed, the measurement failed, or it is of a version up to 5",
    ),
    _number(
        "utilisation",
        "flops_step over the median step, as a fraction of this row's matmul_flops_per_second; "
        "tables and figures take the best such rate of the environment and precision instead",
        "one of them is null",
    ),
    _number(
        "accuracy",
        "test accuracy after the last of all epochs, 0 to 1",
        _NOT_TRAINED + ", or the training did not finish",
    ),
    _number("accuracy_best", "best test accuracy over the epochs done, 0 to 1", _NOT_TRAINED),
    _integer(
        "steps_resumed",
        "steps taken over from an earlier, stopped attempt at this run; 0: none",
        _NOT_TRAINED,
    ),
    _number(
        "wall_seconds",
        "the whole cell, from starting its process to its end; of a resumed training, its last "
        "attempt",
    ),
    Column("started_at", "timestamp", "when the cell's process was started, UTC"),
    _number("sample_seconds_median", "interval between samples, as achieved", "under two samples"),
    _number("sample_seconds_max", "the longest such interval", "under two samples"),
    _number("load_average", "the system's load over the minute before the cell", _NO_SENSOR),
    _number(
        "cpu_elsewhere",
        "processors kept busy by others than the worker with its children and kdbench itself, of "
        "those that the worker may use; what a hypervisor took away counts. Mean over the timed "
        "steps: `samples` has the single seconds",
        _NO_SENSOR + "; " + _NO_STEP + _ALL_NEAR,
    ),
    _text("cpu_governor", "the kernel's policy for the processors' clocks", _NO_SENSOR),
    _number(
        "cpu_mhz_median",
        "the mean clock of the usable processors, median over the timed steps",
        _NO_SENSOR + _NOT_CAUGHT,
    ),
    _number(
        "cpu_celsius_max",
        "the processors' highest temperature in the timed steps",
        _NO_SENSOR + _NOT_CAUGHT,
    ),
    _number(
        "cpu_throttled_seconds",
        "time of the timed steps in which a control group's quota stopped the worker's processors, "
        "summed over them, or heat slowed one",
        _NO_SENSOR,
    ),
    _number("gpu_sm_mhz_median", "the card's clock over the timed steps", _NO_NVML + _NOT_CAUGHT),
    _number(
        "gpu_celsius_max",
        "the card's highest temperature in the timed steps",
        _NO_NVML + _NOT_CAUGHT,
    ),
    _text(
        "gpu_throttled",
        "why the card slowed its clocks during the timed steps, in words; empty: it did not, or "
        "was told to",
        _NO_NVML + _NOT_CAUGHT,
    ),
    _text("cpu_model", "the processor", "the system does not tell"),
    _text("gpu_name", "the card's name", _NO_GPU),
    _text("driver_version", "NVIDIA's driver", _NO_GPU),
    _text("torch_version", "torch as installed"),
    _text("git_revision", "kdbench's own revision, -dirty with local changes", "not a checkout"),
    _text("environment", "all that is known of machine and packages, as JSON"),
    _integer("schema_version", "version of this layout"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "cells": (_KEY, *PLAN_COLUMNS, *_OUTCOME_COLUMNS),
    "phases": (
        _KEY,
        _text(
            "phase", "setup, precompute, compile, warmup, measure, train, evaluate, account, rates"
        ),
        _integer("attempt", "from 0: a resumed training keeps the phases of those before"),
        _integer("started_ns", "CLOCK_MONOTONIC at its start; shared with steps and samples"),
        _number("seconds", "wall-clock time", "the phase did not finish"),
        _integer(
            "units",
            "steps or batches timed in it (a precompute's warm-up batch is not); an epoch of a "
            "training is one phase, or several, parted by checkpoints; steps that were suspended "
            "are counted, batches are not",
            "it has none",
        ),
        _integer(
            "units_total",
            "steps or batches a whole run of it needs; precompute: more than "
            "units where the budget cut it short, or batches were suspended",
            "not known",
        ),
        _flag(
            "suspended",
            "the machine was suspended, or the process stopped, while it ran",
            "the phase did not finish",
        ),
        _integer("allocated_peak_bytes", "peak allocated in the phase", _NO_GPU),
        _integer("reserved_peak_bytes", "peak reserved in the phase", _NO_GPU),
        _integer(
            "host_peak_bytes", "peak resident memory in the phase", "the phase did not finish"
        ),
        _text("host_source", "vmhwm or polled", "the phase did not finish"),
    ),
    "epochs": (
        _KEY,
        _integer("epoch", "from 0"),
        _integer("steps", "optimizer steps in it"),
        _number(
            "train_seconds",
            "its training, evaluation left out; suspended steps are in it as the clock saw them",
        ),
        _number("train_loss", "mean loss over its steps"),
        _number("train_accuracy", "fraction of its training images classified right, as seen"),
        _number("evaluate_seconds", "its evaluation"),
        _number("test_loss", "mean cross entropy on the test images"),
        _number("test_accuracy", "fraction of the test images classified right"),
        _number("learning_rate", "at the epoch's first step"),
    ),
    "steps": (
        _KEY,
        _text("phase", "warmup, measure, account or train"),
        _integer("step", "from 0 within the phase; of a training, within the epoch"),
        _integer("epoch", "from 0", _NOT_TRAINED),
        _integer("attempt", "from 0: a resumed training keeps the steps of those before"),
        _integer(
            "started_ns",
            "CLOCK_MONOTONIC at its start; another clock than the samples' in all attempts but "
            "the last",
        ),
        _number(
            "seconds",
            "wall-clock time from asking for the step's images to the optimizer's end, the device "
            "synchronised at both ends",
            "an accounting step",
        ),
        _number(
            "device_seconds",
            "time between CUDA events at both ends",
            _NO_GPU + "; an accounting step",
        ),
        _number(
            "data_seconds",
            "of it, waiting for images, making a batch, giving back the last gradients",
            _UNTIMED,
        ),
        _number("teacher_seconds", "of it, the teacher", _UNTIMED + "; the step runs none"),
        _number("forward_seconds", "of it, the student's forward pass and the loss", _UNTIMED),
        _number("backward_seconds", "of it, backward", _UNTIMED),
        _number("optimizer_seconds", "of it, the optimizer", _UNTIMED),
        _flag(
            "suspended",
            "the machine was suspended, or the process stopped, while it ran or between it and the "
            "step before: cold, and no time to count",
        ),
        _number("loss", "the step's loss"),
        _integer("allocated_peak_bytes", "the CUDA allocator's peak in this step", _NO_GPU),
        _integer("reserved_peak_bytes", "the CUDA allocator's reserved peak", _NO_GPU),
    ),
    "samples": (
        _KEY,
        _integer("monotonic_ns", "CLOCK_MONOTONIC when the sample was taken"),
        _integer(
            "host_bytes",
            "resident memory of the worker and its children",
            "the worker was not running",
        ),
        _integer(
            "process_bytes",
            "NVML: the worker's memory on the card",
            _NO_NVML + "; not read this often",
        ),
        _integer("device_bytes", "NVML: used memory of the card or MIG instance", _NO_NVML),
        _number("power_watts", "NVML: power draw of the card", _PER_CARD + "; not read this often"),
        _number(
            "energy_joules", "NVML: the card's energy counter", _PER_CARD + "; not read this often"
        ),
        _integer(
            "gpu_percent",
            "NVML: share of time with a kernel running",
            _PER_CARD + "; not read this often",
        ),
        _integer(
            "gpu_neighbours",
            "NVML: other processes that have the card open to compute",
            _NO_NVML + "; not read this often",
        ),
        _number("gpu_sm_mhz", "NVML: the card's clock", _NO_NVML + "; not read this often"),
        _number("gpu_celsius", "NVML: its temperature", _NO_NVML + "; not read this often"),
        _integer(
            "gpu_throttle",
            "NVML: the bits of the reasons why its clocks are lowered, an idle card's and those of "
            "a setting among them; 0: they are not",
            _NO_NVML + "; not read this often",
        ),
        _number(
            "cpu_elsewhere",
            "processors kept busy by others since the last reading",
            _NO_SENSOR + "; not read this often",
        ),
        _number("cpu_mhz", "mean clock of the processors", _NO_SENSOR + "; not read this often"),
        _number(
            "cpu_celsius", "highest processor temperature", _NO_SENSOR + "; not read this often"
        ),
        _number(
            "cpu_throttled_seconds",
            "counter of the time in which a quota stopped the processors, summed over them, or "
            "heat slowed one",
            _NO_SENSOR + "; not read this often",
        ),
        _number(
            "host_energy_joules",
            "RAPL: the packages' energy counters, summed, wrap-around undone",
            _NO_SENSOR + "; not read this often",
        ),
    ),
    "memory": (
        _KEY,
        _text(
            "stage",
            "whose peak it is: steady, a step as all but the first (measured: the accounting "
            "step's); first, a training's very first step; precompute",
        ),
        _text(
            "category",
            "parameters, gradients, optimizer_state, activations, teacher, inputs, "
            "workspace or other",
        ),
        _text("module", "the module that allocated it, by dotted name", "outside any module"),
        _integer("bytes", "live bytes at that peak"),
        _integer("blocks", "how many storages those are"),
    ),
    "timeline": (
        _KEY,
        _integer(
            "moment",
            "from 0, in the order of the accounting step's allocations and frees: no time. Moment "
            "0 is the step's start, with a row for each category that ever holds something; each "
            "later one has one row, of the category that it changes",
        ),
        _text("part", "start, data, teacher, forward, backward or optimizer"),
        _text("category", "as in memory"),
        _integer("live_bytes", "bytes of this category from this moment on"),
    ),
}

#: The parts of a step that have columns, in the order in which they begin.
STEP_PARTS = ("data", "teacher", "forward", "backward", "optimizer")

MEMORY_CATEGORIES = (
    "parameters",
    "gradients",
    "optimizer_state",
    "activations",
    "teacher",
    "inputs",
    "workspace",
    "other",
)
