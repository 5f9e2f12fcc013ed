"""`cells`: parameters and memory, each figure under its own name."""

from kdbench.store.schema.column import (
    MEASURED,
    NO_GPU,
    NO_NVML,
    NO_STEP,
    NOT_COUNTED,
    integer,
    text,
)

MEMORY_COLUMNS = (
    integer(
        "parameter_bytes",
        "parameters and buffers held during a step: the student's, the method's own, and the "
        "teacher's where the step runs it. No gradients, optimizer state or activations: "
        "this is the figure that the paper's Figure 4 shows",
        "setup did not finish",
    ),
    integer("student_parameters", "number of the student's parameters", "setup did not finish"),
    integer(
        "method_parameters",
        "number of the parameters of the method's own layers, which are trained with the student",
        "the method has none; setup did not finish",
    ),
    integer(
        "allocated_peak_bytes",
        "peak of a step in the framework's allocator; predicted, of a steady one",
        NO_STEP,
    ),
    text(
        "allocated_source",
        "cuda-allocator: exact, the highest of the timed steps; ledger: exact "
        "for all that passes through dispatch, one accounting step; profiler: exact, torch's own "
        "record of the CPU allocator in a compiled student's accounting step; trace: predicted, "
        "exact bytes of what passes through dispatch; simulation: predicted, that trace replayed "
        "through a model of the CUDA caching allocator",
        NO_STEP,
    ),
    integer("reserved_peak_bytes", "peak that the CUDA caching allocator held", NO_GPU),
    integer(
        "first_allocated_peak_bytes",
        "peak allocated in a training's very first step, which finds no gradients and no optimizer "
        "state, and makes both",
        MEASURED,
    ),
    integer(
        "first_reserved_peak_bytes",
        "peak that the CUDA caching allocator holds until that step's end",
        MEASURED + "; " + NO_GPU,
    ),
    integer(
        "process_peak_bytes",
        "highest NVML sample of the worker's memory: a lower bound of the peak",
        NO_NVML,
    ),
    text("process_source", "nvml-polled", NO_NVML),
    integer(
        "device_peak_bytes",
        "highest NVML sample of the card's used memory minus its idle "
        "baseline: a lower bound, and others on the card are in it",
        NO_NVML,
    ),
    text("device_source", "nvml-polled", NO_NVML),
    integer(
        "device_idle_bytes",
        "used memory of the card, or of the MIG instance, before the worker was started",
        NO_NVML,
    ),
    integer(
        "gpu_neighbours",
        "most other processes that had the card open to compute at once, up to a second before "
        "and after the timed steps; in a container that hides its own numbers, at least so many",
        NO_NVML,
    ),
    integer(
        "host_peak_bytes",
        "peak resident memory of the worker over the timed steps, "
        "interpreter and libraries included; of a resumed training, over all its attempts where "
        "the source is vmhwm. A forked worker's has in it what it shares with the process that it "
        "was forked from, and not the pages of libraries that it never touched: it is lower than "
        "a fresh one's, and not to be compared with it",
        NO_STEP,
    ),
    text(
        "host_source",
        "vmhwm: the kernel's exact high-water mark; polled: highest sample, a lower bound",
        NO_STEP,
    ),
    integer(
        "unattributed_bytes",
        "peak of the accounting step as a second source tells it, minus the ledger's: never folded "
        "into a category. CPU: torch's profiler, so what operations take below dispatch, and "
        "scalars. CUDA: the allocator, so also libraries' workspaces, and its rounding of each "
        "block up to 512 bytes or more",
        NOT_COUNTED,
    ),
    integer(
        "unattributed_scratch_bytes",
        "of unattributed_bytes, how much higher the peak is for what operations take and give back "
        "within themselves, as torch's profiler tells: oneDNN's scratch and copies in other "
        "layouts, columns of a convolution. It is the processor's and the libraries' to decide; "
        "the rest of unattributed_bytes is not",
        NOT_COUNTED + "; not on a CPU",
    ),
)
