"""What a column is, and what several tables say of their nulls."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

Dtype = Literal["string", "int64", "float64", "bool", "timestamp"]


@dataclass(frozen=True)
class Column:
    """One column: its name, meaning, when it is null (None: never), and its Arrow type."""

    name: str
    doc: str
    null_when: str | None = None
    dtype: Dtype = field(kw_only=True)


text = partial(Column, dtype="string")
integer = partial(Column, dtype="int64")
number = partial(Column, dtype="float64")
flag = partial(Column, dtype="bool")

KEY = text("run_key", "joins all tables: one run of one cell")
NO_STEP = "no step finished"
NO_TIME = NO_STEP + ", or all that did were suspended"
ALL_NEAR = "; all timed steps were within a second of a suspension"
NO_GPU = "not on a CUDA device"
NO_NVML = "no NVML, or the driver does not tell it"
NOT_TRAINED = "mode is profile"
NO_PIXELS = (
    "the method has no teacher; setup did not finish; predicted, and the checkpoint is on the hub"
)
UNTIMED = "an accounting step"
NOT_COUNTED = "no accounting step finished; compiled"
NO_SENSOR = "the system does not tell it"
MEASURED = "source is not predicted"
NOT_OOM = "status is not oom"
NOT_TOLD = "; whoever refused did not tell"
NOT_CAUGHT = "; the timed steps were too short to meet a reading, one a second"
PER_CARD = NO_NVML + "; a MIG instance, for which it is not told"
