"""The columns of `cells`, in the notation of `read_columns`."""

from kdbench.store.schema.column import read_columns

# What a cell is, before anything runs: `--only` filters on these.
PLAN_COLUMNS = read_columns("""
text cell_id: hash of all that decides what a step computes, and its result
text label: the cell's axes in words, unique within its matrix file; results of a file that was
    changed, or run with --set, can hold several cell_ids under one label
text matrix: the matrix's name
text mode: profile: steps are timed; train: trained for all its epochs and evaluated
text method: how the teacher is used: teacher-kd, embed-kd, cached-kd, vanilla-kd, student-only, or
    a plug-in's name
text student: the student's name in the matrix file
flag student_inferred: the student's shape is inferred, not published
integer image_size: side of the student's input, in pixels
text teacher: the teacher's name in the matrix file [null: the method has no teacher]
text teacher_weights: random, pretrained or fitted [null: the method has no teacher]
text teacher_checkpoint: the published checkpoint that its shape, or its weights too, are of
    [null: the matrix file names none]
text dataset: the data set's name
integer batch_size: images per step
integer epochs: epochs of a whole training; the learning rate's schedule goes by them
text precision: arithmetic of training and evaluation: fp32; tf32: matrix products and convolutions
    in it; bf16, fp16: under autocast, fp16 with the loss scaled
text attention: the student's attention: eager (plain products) or sdpa (torch's choice)
text loss: paper or published-code
number alpha1: weight of the classification loss
number alpha2: weight of the distillation loss
text optimizer: the optimizer's name
text optimizer_kernels since 4: how it works through the parameters: single, foreach or fused; auto:
    torch's choice, foreach on CUDA and single on a CPU
number learning_rate: the optimizer's initial learning rate
flag compile: the student is compiled by torch for its training; no evaluation is, and no ledger
    sees into it: `memory` and `timeline` have no rows of it
flag checkpointing: activations within the student's blocks are recomputed in backward
integer seed: seed of weights, data order and dropout
integer repeat: number of the repeat, from 0; each repeat is a process of its own
text device: cpu or cuda:N
text launch: spawn: a fresh process; fork: a fork of a warm one, where repeats share what makes
    processes differ
text source: measured, predicted or reported (by the paper)
text profile since 4: the device profile that a prediction is for [null: source is not predicted]
""")

# How a run ended, what its steps took, and what was computed before them.
_OUTCOME = read_columns("""
integer threads: CPU threads of the framework in the worker [null: the worker did not start]
text runtime_settings since 6: what of the environment decides times or bytes, as NAME=value pairs:
    settings of torch, its allocators, its compiler and the libraries below it, as the worker was
    given them; `processors` is how many an affinity or a quota leaves of the machine's. How many
    threads OMP_NUM_THREADS and MKL_NUM_THREADS come to is in `threads` [null: none is set; before
    version 6 they were not recorded]
text status: ok, or how the run ended: oom, failed, timeout, killed, diverged, interrupted
text caveats since 4: what of a prediction is outside of what was verified, in words
    [null: {measured}; all of it was verified]
text error: what went wrong, in one line [null: status is ok]
text oom_source since 5: who refused the memory. cuda: torch's allocator or the driver; host: an
    allocation in the worker failed, on a limit or for good; kernel: the system's killer ended the
    worker [null: {not_oom}]
integer oom_asked_bytes since 5: what was asked for when memory ran out; of a card as torch tells
    it, rounded to two decimals of KiB, MiB or GiB [null: {not_oom}{not_told}]
integer oom_free_bytes since 5: what was free then: on the card, rounded likewise; on the host,
    while the error was handled, under the tightest limit, of the system, the control group or the
    process [null: {not_oom}{not_told}]
flag unstable: the timed steps changed their level, by more than 5 % and than chance would
    (Pettitt's test, p < 0.01), so that their median stands for no one state; where they are fewer
    than 16, the warm-up ended before it was steady [null: too few steps to tell]
flag contended: others used the processors or the card during the timed steps: more processors than
    the worker's threads left over, by a tenth of one on average, or the card at all. Times may be
    too long then; memory is not affected, but device_peak_bytes and energy are [null: neither could
    be observed; {no_step}{all_near}]
text contention since 3: who or what contended, in words [null: contended is not true]
number step_seconds_median: median over the timed steps of this process [null: {no_time}]
number step_seconds_ci_low: lower end of the median's 95 % interval within this process [null: fewer
    than 6 steps]
number step_seconds_ci_high: its upper end [null: fewer than 6 steps]
number step_seconds_fastest since 4: the fastest timed step of this process, to which others' use of
    the machine adds least: what `kdbench check` compares [null: {no_time}]
integer steps_measured: timed steps behind the median, suspended ones left out
integer suspended_steps since 5: timed steps that the machine was suspended or the process stopped
    in, or just before: rows of `steps`, and in no time or energy here [null: {no_step}]
integer warmup_steps since 3: steps until the series was steady, once more after each suspension:
    not timed [null: mode is train]
number step_device_seconds_median since 3: median over the timed steps of the card's own time,
    between two CUDA events [null: {no_gpu}; {no_time}]
number step_data_seconds since 3: median part of a timed step: waiting for images, making the batch
    of them, giving back the last step's gradients. The parts are told apart on the host's clock on
    a CPU, by CUDA events on a card [null: {no_time}]
number step_teacher_seconds since 3: median part: the teacher's forward pass [null: the step runs no
    teacher; {no_time}]
number step_forward_seconds since 3: median part: the student's forward pass and the loss
    [null: {no_time}]
number step_backward_seconds since 3: median part: backward [null: {no_time}]
number step_optimizer_seconds since 3: median part: the optimizer [null: {no_time}]
number epoch_seconds: seconds of training per epoch, evaluation left out [null: {no_time}]
text epoch_seconds_kind: measured (median over whole epochs without a suspended step), or
    extrapolated: median step times the steps of an epoch [null: {no_time}]
number precompute_seconds: one-off cost before the first step: class or image embeddings. Of what an
    earlier run computed and kept, what it cost then [null: {no_precompute}]
text precompute_seconds_kind: measured, or extrapolated from the batches that `phases` counts
    [null: {no_precompute}]
integer precompute_peak_bytes: peak allocated while precomputing; source as allocated_source
    [null: {no_precompute}]
integer precompute_kept_bytes: what the precompute leaves for the training to hold [null: the method
    precomputes nothing]
number precompute_joules since 3: energy of the card while precomputing; extrapolated like
    precompute_seconds [null: {per_card}; the method precomputes nothing, or an earlier run had
    computed it]
flag precompute_reused since 2: an earlier run had computed it, and this one read it from the cache
    [null: {no_precompute}]
text precompute_key since 2: content key of what was computed: rows with one key share one
    computation where they reused it [null: {no_precompute}; mode is profile, which measures it
    anew]
text teacher_revision since 2: commit that the teacher's checkpoint was read at [null: it came from
    no repository]
text teacher_preprocessing since 6: what the teacher's pixels go through: the side that images are
    resized to and the filter, the centre that is cut out, if one is, and the means and deviations
    of pixels in 0..1 that they are normalised by, in the order red, green, blue [null: {no_pixels}]
text teacher_preprocessing_source since 6: who says so: checkpoint (its preprocessor_config.json),
    matrix (the file's keys), default (CLIP's means and deviations, bilinear, nothing cut out), or
    the matrix over one of these [null: {no_pixels}]
text data_storage since 2: where the images were: device, or stream (decoded again in each epoch)
    [null: setup did not finish]
""")

# Parameters and memory, each figure under its own name.
_MEMORY = read_columns("""
integer parameter_bytes: parameters and buffers held during a step: the student's, the method's own,
    and the teacher's where the step runs it. No gradients, optimizer state or activations: this is
    the figure that the paper's Figure 4 shows [null: setup did not finish]
integer student_parameters: number of the student's parameters [null: setup did not finish]
integer method_parameters since 6: number of the parameters of the method's own layers, which are
    trained with the student [null: the method has none; setup did not finish]
integer allocated_peak_bytes: peak of a step in the framework's allocator; predicted, of a steady
    one [null: {no_step}]
text allocated_source: cuda-allocator: exact, the highest of the timed steps; ledger: exact for all
    that passes through dispatch, one accounting step; profiler: exact, torch's own record of the
    CPU allocator in a compiled student's accounting step; trace: predicted, exact bytes of what
    passes through dispatch; simulation: predicted, that trace replayed through a model of the CUDA
    caching allocator [null: {no_step}]
integer reserved_peak_bytes: peak that the CUDA caching allocator held [null: {no_gpu}]
integer first_allocated_peak_bytes since 4: peak allocated in a training's very first step, which
    finds no gradients and no optimizer state, and makes both [null: {measured}]
integer first_reserved_peak_bytes since 4: peak that the CUDA caching allocator holds until that
    step's end [null: {measured}; {no_gpu}]
integer process_peak_bytes: highest NVML sample of the worker's memory: a lower bound of the peak
    [null: {no_nvml}]
text process_source: nvml-polled [null: {no_nvml}]
integer device_peak_bytes: highest NVML sample of the card's used memory minus its idle baseline: a
    lower bound, and others on the card are in it [null: {no_nvml}]
text device_source: nvml-polled [null: {no_nvml}]
integer device_idle_bytes since 3: used memory of the card, or of the MIG instance, before the
    worker was started [null: {no_nvml}]
integer gpu_neighbours since 3: most other processes that had the card open to compute at once, up
    to a second before and after the timed steps; in a container that hides its own numbers, at
    least so many [null: {no_nvml}]
integer host_peak_bytes: peak resident memory of the worker over the timed steps, interpreter and
    libraries included; of a resumed training, over all its attempts where the source is vmhwm. A
    forked worker's has in it what it shares with the process that it was forked from, and not the
    pages of libraries that it never touched: it is lower than a fresh one's, and not to be compared
    with it [null: {no_step}]
text host_source: vmhwm: the kernel's exact high-water mark; polled: highest sample, a lower bound
    [null: {no_step}]
integer unattributed_bytes: peak of the accounting step as a second source tells it, minus the
    ledger's: never folded into a category. CPU: torch's profiler, so what operations take below
    dispatch, and scalars. CUDA: the allocator, so also libraries' workspaces, and its rounding of
    each block up to 512 bytes or more [null: {not_counted}]
integer unattributed_scratch_bytes since 6: of unattributed_bytes, how much higher the peak is for
    what operations take and give back within themselves, as torch's profiler tells: oneDNN's
    scratch and copies in other layouts, columns of a convolution. It is the processor's and the
    libraries' to decide; the rest of unattributed_bytes is not [null: {not_counted}; not on a CPU]
""")

# Energy, work, accuracy, and what the run was measured on.
_CONDITION = read_columns("""
number energy_step_joules: energy of the card, others' use of it included, per timed step
    [null: {per_card}{all_near}]
text energy_source: nvml-counter, or nvml-power: integrated samples [null: {per_card}]
number energy_epoch_joules since 3: energy of the card per epoch of training, evaluation left out;
    kind as epoch_seconds_kind. Measured, the median over the epochs of the last attempt
    [null: {per_card}; measured, and no whole epoch was of the last attempt and away from any
    suspension]
number energy_training_joules since 3: energy of the card for the whole training of all epochs,
    precompute and evaluation left out; kind as energy_training_kind [null: {per_card}]
text energy_training_kind since 3: measured: all steps were taken, in one attempt and none of them
    near a suspension; or extrapolated from those that were sampled [null: {per_card}]
number host_energy_step_joules since 3: energy of the processor packages, others' use of them
    included, per timed step [null: {no_sensor}{all_near}]
text host_energy_source since 3: rapl: the kernel's powercap counters [null: {no_sensor}]
number flops_step: floating-point operations of a step's matrix products, convolutions and
    attention, counted as they are dispatched (a multiplication and an addition are two);
    element-wise work and products with a vector are not in it, what is computed again in backward
    is [null: {not_counted}]
integer operations_step since 4: operations that a step dispatches, views left out: what is
    launched, one by one [null: {not_counted}]
integer bytes_moved_step since 4: bytes of all tensors that those operations are given and return:
    what the step would move if no cache held anything [null: {not_counted}]
number matmul_flops_per_second since 3: what a large matrix product reaches at best on this device
    in the cell's precision, with the worker's threads; repeated until it is steady, once per run,
    and by up to two later cells of a run while it is not steady or contended [null: the measurement
    failed]
number copy_bytes_per_second since 3: bytes read and written per second at best by a large copy in
    the device's memory; measured with the product [null: the measurement failed]
flag rates_steady since 6: the best three tries of the product, and of the copy, agreed within 3 %
    [null: the measurement failed, or it is of a version that measured once (up to 5)]
flag rates_contended since 6: others used the processors or the card while these rates were
    measured, which may be too low then [null: neither could be observed, the measurement failed, or
    it is of a version up to 5]
number utilisation: flops_step over the median step, as a fraction of this row's
    matmul_flops_per_second; tables and figures take the best such rate of the environment and
    precision instead [null: one of them is null]
number accuracy: test accuracy after the last of all epochs, 0 to 1 [null: {not_trained}, or the
    training did not finish]
number accuracy_best: best test accuracy over the epochs done, 0 to 1 [null: {not_trained}]
integer steps_resumed since 2: steps taken over from an earlier, stopped attempt at this run; 0:
    none [null: {not_trained}]
number wall_seconds: the whole cell, from starting its process to its end; of a resumed training,
    its last attempt
timestamp started_at: when the cell's process was started, UTC
number sample_seconds_median since 3: interval between samples, as achieved [null: under two
    samples]
number sample_seconds_max since 3: the longest such interval [null: under two samples]
number load_average since 3: the system's load over the minute before the cell [null: {no_sensor}]
number cpu_elsewhere since 3: processors kept busy by others than the worker with its children and
    kdbench itself, of those that the worker may use; what a hypervisor took away counts. Mean over
    the timed steps: `samples` has the single seconds [null: {no_sensor}; {no_step}{all_near}]
text cpu_governor since 3: the kernel's policy for the processors' clocks [null: {no_sensor}]
number cpu_mhz_median since 3: the mean clock of the usable processors, median over the timed steps
    [null: {no_sensor}{not_caught}]
number cpu_celsius_max since 3: the processors' highest temperature in the timed steps
    [null: {no_sensor}{not_caught}]
number cpu_throttled_seconds since 3: time of the timed steps in which a control group's quota
    stopped the worker's processors, summed over them, or heat slowed one [null: {no_sensor}]
number gpu_sm_mhz_median since 3: the card's clock over the timed steps
    [null: {no_nvml}{not_caught}]
number gpu_celsius_max since 3: the card's highest temperature in the timed steps
    [null: {no_nvml}{not_caught}]
text gpu_throttled since 3: why the card slowed its clocks during the timed steps, in words; empty:
    it did not, or was told to [null: {no_nvml}{not_caught}]
text cpu_model: the processor [null: the system does not tell]
text gpu_name: the card's name [null: {no_gpu}]
text driver_version: NVIDIA's driver [null: {no_gpu}]
text torch_version: torch as installed
text git_revision: kdbench's own revision, -dirty with local changes [null: not a checkout]
text environment: all that is known of machine and packages, as JSON
integer schema_version: version of this layout
""")

CELLS = (*PLAN_COLUMNS, *_OUTCOME, *_MEMORY, *_CONDITION)
