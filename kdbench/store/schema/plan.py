"""`cells`: what a cell is, before anything runs."""

from kdbench.store.schema.column import flag, integer, number, text

# What a cell is, before anything runs: `--only` filters on these.
PLAN_COLUMNS = (
    text("cell_id", "hash of all that decides what a step computes, and its result"),
    text(
        "label",
        "the cell's axes in words, unique within its matrix file; results of a file that was "
        "changed, or run with --set, can hold several cell_ids under one label",
    ),
    text("matrix", "the matrix's name"),
    text("mode", "profile: steps are timed; train: trained for all its epochs and evaluated"),
    text(
        "method",
        "how the teacher is used: teacher-kd, embed-kd, cached-kd, vanilla-kd, "
        "student-only, or a plug-in's name",
    ),
    text("student", "the student's name in the matrix file"),
    flag("student_inferred", "the student's shape is inferred, not published"),
    integer("image_size", "side of the student's input, in pixels"),
    text("teacher", "the teacher's name in the matrix file", "the method has no teacher"),
    text("teacher_weights", "random, pretrained or fitted", "the method has no teacher"),
    text(
        "teacher_checkpoint",
        "the published checkpoint that its shape, or its weights too, are of",
        "the matrix file names none",
    ),
    text("dataset", "the data set's name"),
    integer("batch_size", "images per step"),
    integer("epochs", "epochs of a whole training; the learning rate's schedule goes by them"),
    text(
        "precision",
        "arithmetic of training and evaluation: fp32; tf32: matrix products and convolutions in "
        "it; bf16, fp16: under autocast, fp16 with the loss scaled",
    ),
    text("attention", "the student's attention: eager (plain products) or sdpa (torch's choice)"),
    text("loss", "paper or published-code"),
    number("alpha1", "weight of the classification loss"),
    number("alpha2", "weight of the distillation loss"),
    text("optimizer", "the optimizer's name"),
    text(
        "optimizer_kernels",
        "how it works through the parameters: single, foreach or fused; auto: torch's choice, "
        "foreach on CUDA and single on a CPU",
    ),
    number("learning_rate", "the optimizer's initial learning rate"),
    flag(
        "compile",
        "the student is compiled by torch for its training; no evaluation is, and no ledger sees "
        "into it: `memory` and `timeline` have no rows of it",
    ),
    flag("checkpointing", "activations within the student's blocks are recomputed in backward"),
    integer("seed", "seed of weights, data order and dropout"),
    integer("repeat", "number of the repeat, from 0; each repeat is a process of its own"),
    text("device", "cpu or cuda:N"),
    text(
        "launch",
        "spawn: a fresh process; fork: a fork of a warm one, where repeats share what makes "
        "processes differ",
    ),
    text("source", "measured, predicted or reported (by the paper)"),
    text("profile", "the device profile that a prediction is for", "source is not predicted"),
)
