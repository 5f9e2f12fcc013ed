"""The axes of one training's arithmetic, from a matrix file to its rows."""

import pandas as pd
import pytest

from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("forked_workers")

# Five of the sixteen cells are enough to see each value beside another; tf32 needs a GPU.
SWEEP = TINY.replace('method = ["teacher-kd", "embed-kd"]', 'method = ["student-only"]').replace(
    'teacher = ["dwarf"]\n',
    """
precision = ["tf32", "fp32", "bf16", "fp16"]
attention = ["eager", "sdpa"]
checkpointing = [false, true]

[[exclude]]
attention = "eager"
checkpointing = true

[[exclude]]
attention = "sdpa"
checkpointing = false

[[exclude]]
precision = ["tf32", "bf16", "fp16"]
attention = "eager"
""",
)


def test_one_matrix_asks_what_each_buys(kdbench, tiny, tmp_path):
    tiny.write_text(SWEEP)
    said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--set", "budget.max_steps=2")
    assert said.code == 1, said
    tables = {
        name: pd.read_parquet(tmp_path / "results/tiny" / name)
        for name in ("cells", "steps", "phases", "memory")
    }
    cells = tables["cells"].assign(axes=tables["cells"]["label"].str.partition("8px/")[2])
    lean = "attention=sdpa/checkpointing=true"
    plain = "precision=fp32/attention=eager/checkpointing=false"
    cells = cells.set_index("axes")
    assert cells["status"].to_dict() == {
        plain: "ok",
        f"precision=fp32/{lean}": "ok",
        f"precision=bf16/{lean}": "ok",
        f"precision=fp16/{lean}": "ok",
        f"precision=tf32/{lean}": "failed",
    }
    for axes, cell in cells.iterrows():
        told = (cell["precision"], cell["attention"], str(cell["checkpointing"]).lower())
        assert axes == "precision={}/attention={}/checkpointing={}".format(*told)
    assert cells["cell_id"].is_unique
    # tf32: refused in one line, and before anything was computed
    refused = cells.loc[f"precision=tf32/{lean}"]
    assert refused["error"] == (
        "InputError: training.precision: tf32 is a mode of CUDA devices, found the device cpu; "
        'on a CPU: "fp32", "bf16" or "fp16"'
    )
    phases = tables["phases"]
    assert phases[phases["run_key"] == refused["run_key"]]["phase"].tolist() == ["setup"]
    # what the others cost
    cells = cells[cells["status"] == "ok"]
    assert cells["parameter_bytes"].nunique() == 1, "autocast keeps the weights in float32"
    allocated = cells["allocated_peak_bytes"]
    assert (allocated.drop(plain) < allocated[plain]).all()
    split = tables["memory"].groupby("run_key")["bytes"].sum()
    assert split.to_dict() == cells.set_index("run_key")["allocated_peak_bytes"].to_dict()
    # and what they compute: a first step has the same images, weights and dropout in all of them
    steps = tables["steps"]
    first = steps[(steps["phase"] == "warmup") & (steps["step"] == 0)]
    losses = cells["run_key"].map(first.set_index("run_key")["loss"])
    fp32 = losses[f"precision=fp32/{lean}"]
    assert losses[plain] == pytest.approx(fp32, rel=2**-20)
    assert losses[f"precision=bf16/{lean}"] == pytest.approx(fp32, rel=2**-7)
    assert losses[f"precision=fp16/{lean}"] == pytest.approx(fp32, rel=2**-10)
    assert losses.drop(plain).nunique() == 3
