"""`cells`: how a run ended, what its steps took, and what was computed before them."""

from kdbench.store.schema.column import (
    ALL_NEAR,
    MEASURED,
    NO_GPU,
    NO_PIXELS,
    NO_STEP,
    NO_TIME,
    NOT_OOM,
    NOT_TOLD,
    PER_CARD,
    flag,
    integer,
    number,
    text,
)

STATUSES = ("ok", "oom", "failed", "timeout", "killed", "diverged", "interrupted")

OUTCOME_COLUMNS = (
    integer("threads", "CPU threads of the framework in the worker", "the worker did not start"),
    text(
        "runtime_settings",
        "what of the environment decides times or bytes, as NAME=value pairs: settings of torch, "
        "its allocators, its compiler and the libraries below it, as the worker was given them; "
        "`processors` is how many an affinity or a quota leaves of the machine's. How many threads "
        "OMP_NUM_THREADS and MKL_NUM_THREADS come to is in `threads`",
        "none is set; before version 6 they were not recorded",
    ),
    text("status", "ok, or how the run ended: " + ", ".join(STATUSES[1:])),
    text(
        "caveats",
        "what of a prediction is outside of what was verified, in words",
        MEASURED + "; all of it was verified",
    ),
    text("error", "what went wrong, in one line", "status is ok"),
    text(
        "oom_source",
        "who refused the memory. cuda: torch's allocator or the driver; host: an allocation in the "
        "worker failed, on a limit or for good; kernel: the system's killer ended the worker",
        NOT_OOM,
    ),
    integer(
        "oom_asked_bytes",
        "what was asked for when memory ran out; of a card as torch tells it, rounded to two "
        "decimals of KiB, MiB or GiB",
        NOT_OOM + NOT_TOLD,
    ),
    integer(
        "oom_free_bytes",
        "what was free then: on the card, rounded likewise; on the host, while the error was "
        "handled, under the tightest limit, of the system, the control group or the process",
        NOT_OOM + NOT_TOLD,
    ),
    flag(
        "unstable",
        "the timed steps changed their level, by more than 5 % and than chance would (Pettitt's "
        "test, p < 0.01), so that their median stands for no one state; where they are fewer than "
        "16, the warm-up ended before it was steady",
        "too few steps to tell",
    ),
    flag(
        "contended",
        "others used the processors or the card during the timed steps: more processors than the "
        "worker's threads left over, by a tenth of one on average, or the card at all. Times may "
        "be too long then; memory is not affected, but device_peak_bytes and energy are",
        "neither could be observed; " + NO_STEP + ALL_NEAR,
    ),
    text("contention", "who or what contended, in words", "contended is not true"),
    number("step_seconds_median", "median over the timed steps of this process", NO_TIME),
    number(
        "step_seconds_ci_low",
        "lower end of the median's 95 % interval within this process",
        "fewer than 6 steps",
    ),
    number("step_seconds_ci_high", "its upper end", "fewer than 6 steps"),
    number(
        "step_seconds_fastest",
        "the fastest timed step of this process, to which others' use of the machine adds least: "
        "what `kdbench check` compares",
        NO_TIME,
    ),
    integer("steps_measured", "timed steps behind the median, suspended ones left out"),
    integer(
        "suspended_steps",
        "timed steps that the machine was suspended or the process stopped in, or just before: "
        "rows of `steps`, and in no time or energy here",
        NO_STEP,
    ),
    integer(
        "warmup_steps",
        "steps until the series was steady, once more after each suspension: not timed",
        "mode is train",
    ),
    number(
        "step_device_seconds_median",
        "median over the timed steps of the card's own time, between two CUDA events",
        NO_GPU + "; " + NO_TIME,
    ),
    number(
        "step_data_seconds",
        "median part of a timed step: waiting for images, making the batch of them, giving back "
        "the last step's gradients. The parts are told apart on the host's clock on a CPU, by "
        "CUDA events on a card",
        NO_TIME,
    ),
    number(
        "step_teacher_seconds",
        "median part: the teacher's forward pass",
        "the step runs no teacher; " + NO_TIME,
    ),
    number("step_forward_seconds", "median part: the student's forward pass and the loss", NO_TIME),
    number("step_backward_seconds", "median part: backward", NO_TIME),
    number("step_optimizer_seconds", "median part: the optimizer", NO_TIME),
    number("epoch_seconds", "seconds of training per epoch, evaluation left out", NO_TIME),
    text(
        "epoch_seconds_kind",
        "measured (median over whole epochs without a suspended step), or extrapolated: median "
        "step times the steps of an epoch",
        NO_TIME,
    ),
    number(
        "precompute_seconds",
        "one-off cost before the first step: class or image embeddings. Of what an earlier run "
        "computed and kept, what it cost then",
        "the method precomputes nothing",
    ),
    text(
        "precompute_seconds_kind",
        "measured, or extrapolated from the batches that `phases` counts",
        "the method precomputes nothing",
    ),
    integer(
        "precompute_peak_bytes",
        "peak allocated while precomputing; source as allocated_source",
        "the method precomputes nothing",
    ),
    integer(
        "precompute_kept_bytes",
        "what the precompute leaves for the training to hold",
        "the method precomputes nothing",
    ),
    number(
        "precompute_joules",
        "energy of the card while precomputing; extrapolated like precompute_seconds",
        PER_CARD + "; the method precomputes nothing, or an earlier run had computed it",
    ),
    flag(
        "precompute_reused",
        "an earlier run had computed it, and this one read it from the cache",
        "the method precomputes nothing",
    ),
    text(
        "precompute_key",
        "content key of what was computed: rows with one key share one computation where they "
        "reused it",
        "the method precomputes nothing; mode is profile, which measures it anew",
    ),
    text(
        "teacher_revision",
        "commit that the teacher's checkpoint was read at",
        "it came from no repository",
    ),
    text(
        "teacher_preprocessing",
        "what the teacher's pixels go through: the side that images are resized to and the filter, "
        "the centre that is cut out, if one is, and the means and deviations of pixels in 0..1 "
        "that they are normalised by, in the order red, green, blue",
        NO_PIXELS,
    ),
    text(
        "teacher_preprocessing_source",
        "who says so: checkpoint (its preprocessor_config.json), matrix (the file's keys), default "
        "(CLIP's means and deviations, bilinear, nothing cut out), or the matrix over one of these",
        NO_PIXELS,
    ),
    text(
        "data_storage",
        "where the images were: device, or stream (decoded again in each epoch)",
        "setup did not finish",
    ),
)
