"""The sweeps: cells of a few milliseconds, so that nearly all moments are those between phases."""

from dataclasses import dataclass

_HEAD = """
name = "tiny"
mode = "{mode}"
launch = "{launch}"
threads = 1
seeds = {seeds}
repeats = {repeats}

[axes]
method = {methods}
student = ["small"]
image_size = [8]
teacher = ["dwarf"]

[students.small]
patch_size = 4
width = 16
depth = 1
heads = 2

[teachers.dwarf]
patch_size = 8
width = 24
depth = 1
heads = 2
image_size = 16
"""

_PROFILE = """
[data]
source = "synthetic"
name = "noise"
classes = 5
image_size = 8
train_images = 64
test_images = 16

[training]
batch_size = 8
images_per_class = 8

[budget]
warmup_steps = 1
warmup_seconds = 0.1
min_steps = 2
max_steps = 3
measure_seconds = 1
precompute_seconds = 1
timeout_seconds = 300
"""

# A checkpoint after every step, so that each has its moment to be torn in.
_TRAIN = """
[data]
source = "digits"
name = "digits"
classes = 10
image_size = 8
train_images = 128
test_images = 64
flip = false

[training]
batch_size = 32
epochs = 4
learning_rate = 3e-3
images_per_class = 4

[budget]
checkpoint_seconds = 1e-9
timeout_seconds = 300
"""


@dataclass(frozen=True)
class Sweep:
    """A matrix, and how long its parts take on an idle machine.

    Attributes:
        mode, launch: of its cells.
        methods, seeds, repeats: its runs are their product.
        start_seconds: until the first cell runs.
        cell_seconds: of one cell.
        compared: with an undisturbed run, which takes its time.
    """

    mode: str
    launch: str
    methods: tuple
    seeds: int
    repeats: int
    start_seconds: float
    cell_seconds: float
    compared: bool = True

    @property
    def runs(self):
        return len(self.methods) * self.seeds * self.repeats

    @property
    def text(self):
        head = _HEAD.format(
            mode=self.mode,
            launch=self.launch,
            seeds=list(range(self.seeds)),
            repeats=self.repeats,
            methods=str(list(self.methods)).replace("'", '"'),
        )
        return head + (_PROFILE if self.mode == "profile" else _TRAIN)


# "sabotaged" is the student alone, with what a fault makes of it: tests/chaos/sabotaged.py
SWEEPS = {
    "profile-fork": Sweep(
        "profile", "fork", ("student-only", "embed-kd", "sabotaged"), 2, 3, 4.0, 0.7
    ),
    "profile-spawn": Sweep(
        "profile", "spawn", ("student-only", "embed-kd", "sabotaged"), 2, 2, 0.5, 4.0
    ),
    "train-fork": Sweep("train", "fork", ("student-only", "embed-kd", "sabotaged"), 2, 2, 4.0, 2.0),
    "train-spawn": Sweep("train", "spawn", ("embed-kd", "sabotaged"), 2, 2, 0.5, 5.0),
    # for continuous integration: one warm process is soon there
    "short": Sweep(
        "profile", "fork", ("student-only", "sabotaged"), 2, 2, 2.0, 0.6, compared=False
    ),
    "short-train": Sweep("train", "fork", ("sabotaged",), 2, 1, 2.0, 1.5),
}
