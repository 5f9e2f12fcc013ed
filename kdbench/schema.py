"""The tables of the store: every column with its type, unit and meaning.

The documentation page of the columns is written from here, so what a figure means is said once.
Missing is null everywhere, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA_VERSION = 2

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
_NO_GPU = "not on a CUDA device"
_NO_NVML = "no NVML, or the driver does not tell it"
_NOT_TRAINED = "mode is profile"

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
    _number("learning_rate", "the optimizer's initial learning rate"),
    _flag(
        "compile",
        "the student is compiled by torch for its training; no evaluation is, and no ledger sees "
        "into it: `memory` has no rows of it",
    ),
    _flag("checkpointing", "activations within the student's blocks are recomputed in backward"),
    _integer("seed", "seed of weights, data order and dropout"),
    _integer("repeat", "number of the repeat, from 0; each repeat is a process of its own"),
    _text("device", "cpu or cuda:N"),
    _text("launch", "spawn: a fresh process"),
    _text("source", "measured, predicted or reported (by the paper)"),
)

_OUTCOME_COLUMNS = (
    _integer("threads", "CPU threads of the framework in the worker", "the worker did not start"),
    _text("status", "ok, or how the run ended: " + ", ".join(STATUSES[1:])),
    _text("error", "what went wrong, in one line", "status is ok"),
    _flag("unstable", "the step time never settled", "not judged yet"),
    _flag("contended", "others used the machine at the same time", "not judged yet"),
    _number("step_seconds_median", "median over the timed steps of this process", _NO_STEP),
    _number(
        "step_seconds_ci_low",
        "lower end of the median's 95 % interval within this process",
        "fewer than 6 steps",
    ),
    _number("step_seconds_ci_high", "its upper end", "fewer than 6 steps"),
    _integer("steps_measured", "timed steps behind the median"),
    _number("epoch_seconds", "seconds of training per epoch, evaluation left out", _NO_STEP),
    _text(
        "epoch_seconds_kind",
        "measured (median over whole epochs), or extrapolated: median step "
        "times the steps of an epoch",
        _NO_STEP,
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
        "data_storage",
        "where the images were: device, or stream (decoded again in each epoch)",
        "setup did not finish",
    ),
    _integer(
        "parameter_bytes",
        "parameters and buffers held during a step: the student's, and the "
        "teacher's where the step runs it. No gradients, optimizer state or activations: "
        "this is the figure that the paper's Figure 4 shows",
        "setup did not finish",
    ),
    _integer("student_parameters", "number of the student's parameters", "setup did not finish"),
    _integer(
        "allocated_peak_bytes",
        "peak of a step in the framework's allocator",
        _NO_STEP + "; compiled, on a CPU",
    ),
    _text(
        "allocated_source",
        "cuda-allocator: exact, the highest of the timed steps; ledger: exact "
        "for all that passes through dispatch, one accounting step",
        _NO_STEP + "; compiled, on a CPU",
    ),
    _integer("reserved_peak_bytes", "peak that the CUDA caching allocator held", _NO_GPU),
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
        "host_peak_bytes",
        "peak resident memory of the worker over the timed steps, "
        "interpreter and libraries included; of a resumed training, over all its attempts where "
        "the source is vmhwm",
        _NO_STEP,
    ),
    _text(
        "host_source",
        "vmhwm: the kernel's exact high-water mark; polled: highest sample, a lower bound",
        _NO_STEP,
    ),
    _integer(
        "unattributed_bytes",
        "allocator's peak minus the ledger's: never folded into a category",
        "no second source to hold the ledger against",
    ),
    _number("energy_step_joules", "energy of the card per timed step", _NO_NVML),
    _text("energy_source", "nvml-counter, or nvml-power: integrated samples", _NO_NVML),
    _number("flops_step", "floating-point operations per step", "not counted yet"),
    _number("utilisation", "achieved fraction of the machine's own rate", "not measured yet"),
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
        _text("phase", "setup, precompute, compile, warmup, measure, account, train, evaluate"),
        _integer("attempt", "from 0: a resumed training keeps the phases of those before"),
        _integer("started_ns", "CLOCK_MONOTONIC at its start; shared with steps and samples"),
        _number("seconds", "wall-clock time", "the phase did not finish"),
        _integer(
            "units",
            "steps or batches timed in it (a precompute's warm-up batch is not); an epoch of a "
            "training is one phase, or several, parted by checkpoints",
            "it has none",
        ),
        _integer(
            "units_total",
            "steps or batches a whole run of it needs; precompute: more than "
            "units where the budget cut it short",
            "not known",
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
        _number("train_seconds", "its training, evaluation left out"),
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
            "seconds", "wall-clock time, the device synchronised at both ends", "an accounting step"
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
        _integer("process_bytes", "NVML: the worker's memory on the card", _NO_NVML),
        _integer("device_bytes", "NVML: used memory of the card", _NO_NVML),
        _number("power_watts", "NVML: power draw of the card", _NO_NVML + "; not read this often"),
        _number(
            "energy_joules", "NVML: the card's energy counter", _NO_NVML + "; not read this often"
        ),
        _integer(
            "gpu_percent",
            "NVML: share of time with a kernel running",
            _NO_NVML + "; not read this often",
        ),
    ),
    "memory": (
        _KEY,
        _text(
            "category",
            "parameters, gradients, optimizer_state, activations, teacher, inputs, "
            "workspace or other",
        ),
        _text("module", "the module that allocated it, by dotted name", "outside any module"),
        _integer("bytes", "live bytes at the peak of the accounting step"),
        _integer("blocks", "how many storages those are"),
    ),
}

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
