"""The columns of the tables next to `cells`, in the notation of `read_columns`."""

from kdbench.store.schema.column import Column, read_columns

SERIES: dict[str, tuple[Column, ...]] = {
    "phases": read_columns("""
text phase: setup, precompute, compile, warmup, measure, train, evaluate, account, rates
integer attempt since 2: from 0: a resumed training keeps the phases of those before
integer started_ns: CLOCK_MONOTONIC at its start; shared with steps and samples
number seconds: wall-clock time [null: the phase did not finish]
integer units: steps or batches timed in it (a precompute's warm-up batch is not); an epoch of a
    training is one phase, or several, parted by checkpoints; steps that were suspended are counted,
    batches are not [null: it has none]
integer units_total: steps or batches a whole run of it needs; precompute: more than units where the
    budget cut it short, or batches were suspended [null: not known]
flag suspended since 5: the machine was suspended, or the process stopped, while it ran [null: the
    phase did not finish]
integer allocated_peak_bytes: peak allocated in the phase [null: {no_gpu}]
integer reserved_peak_bytes: peak reserved in the phase [null: {no_gpu}]
integer host_peak_bytes: peak resident memory in the phase [null: the phase did not finish]
text host_source: vmhwm or polled [null: the phase did not finish]
"""),
    "epochs": read_columns("""
integer epoch: from 0
integer steps: optimizer steps in it
number train_seconds: its training, evaluation left out; suspended steps are in it as the clock saw
    them
number train_loss: mean loss over its steps
number train_accuracy: fraction of its training images classified right, as seen
number evaluate_seconds: its evaluation
number test_loss: mean cross entropy on the test images
number test_accuracy: fraction of the test images classified right
number learning_rate: at the epoch's first step
"""),
    "steps": read_columns("""
text phase: warmup, measure, account or train
integer step: from 0 within the phase; of a training, within the epoch
integer epoch: from 0 [null: {not_trained}]
integer attempt since 2: from 0: a resumed training keeps the steps of those before
integer started_ns: CLOCK_MONOTONIC at its start; another clock than the samples' in all attempts
    but the last
number seconds: wall-clock time from asking for the step's images to the optimizer's end, the device
    synchronised at both ends [null: an accounting step]
number device_seconds since 3: time between CUDA events at both ends [null: {no_gpu}; an accounting
    step]
number data_seconds since 3: of it, waiting for images, making a batch, giving back the last
    gradients [null: {untimed}]
number teacher_seconds since 3: of it, the teacher [null: {untimed}; the step runs none]
number forward_seconds since 3: of it, the student's forward pass and the loss [null: {untimed}]
number backward_seconds since 3: of it, backward [null: {untimed}]
number optimizer_seconds since 3: of it, the optimizer [null: {untimed}]
flag suspended since 5: the machine was suspended, or the process stopped, while it ran or between
    it and the step before: cold, and no time to count
number loss: the step's loss
integer allocated_peak_bytes: the CUDA allocator's peak in this step [null: {no_gpu}]
integer reserved_peak_bytes: the CUDA allocator's reserved peak [null: {no_gpu}]
"""),
    "samples": read_columns("""
integer monotonic_ns: CLOCK_MONOTONIC when the sample was taken
integer host_bytes: resident memory of the worker and its children [null: the worker was not
    running]
integer process_bytes: NVML: the worker's memory on the card [null: {no_nvml}{not_read}]
integer device_bytes: NVML: used memory of the card or MIG instance [null: {no_nvml}]
number power_watts: NVML: power draw of the card [null: {per_card}{not_read}]
number energy_joules: NVML: the card's energy counter [null: {per_card}{not_read}]
integer gpu_percent: NVML: share of time with a kernel running [null: {per_card}{not_read}]
integer gpu_neighbours since 3: NVML: other processes that have the card open to compute
    [null: {no_nvml}{not_read}]
number gpu_sm_mhz since 3: NVML: the card's clock [null: {no_nvml}{not_read}]
number gpu_celsius since 3: NVML: its temperature [null: {no_nvml}{not_read}]
integer gpu_throttle since 3: NVML: the bits of the reasons why its clocks are lowered, an idle
    card's and those of a setting among them; 0: they are not [null: {no_nvml}{not_read}]
number cpu_elsewhere since 3: processors kept busy by others since the last reading
    [null: {no_sensor}{not_read}]
number cpu_mhz since 3: mean clock of the processors [null: {no_sensor}{not_read}]
number cpu_celsius since 3: highest processor temperature [null: {no_sensor}{not_read}]
number cpu_throttled_seconds since 3: counter of the time in which a quota stopped the processors,
    summed over them, or heat slowed one [null: {no_sensor}{not_read}]
number host_energy_joules since 3: RAPL: the packages' energy counters, summed, wrap-around undone
    [null: {no_sensor}{not_read}]
"""),
    "memory": read_columns("""
text stage since 4: whose peak it is: steady, a step as all but the first (measured: the accounting
    step's); first, a training's very first step; precompute
text category: parameters, gradients, optimizer_state, activations, teacher, inputs, workspace or
    other
text module: the module that allocated it, by dotted name [null: outside any module]
integer bytes: live bytes at that peak
integer blocks: how many storages those are
"""),
    "timeline": read_columns("""
integer moment: from 0, in the order of the accounting step's allocations and frees: no time. Moment
    0 is the step's start, with a row for each category that ever holds something; each later one
    has one row, of the category that it changes
text part: start, data, teacher, forward, backward or optimizer
text category: as in memory
integer live_bytes: bytes of this category from this moment on
"""),
}
