"""A compiled student: the same training, compiled once, and no figure of an uncompiled one."""

import pandas as pd
import pytest
import torch

from kdbench.worker.probes.account import account_step
from kdbench.worker.training import session as session_module
from kdbench.worker.training.session import parameter_bytes
from kdbench.worker.training.train import evaluate
from tests.support.models import tiny_session


@pytest.fixture
def traced(monkeypatch):
    """Compile by torch's tracer alone, without its code generator: seconds instead of a minute."""

    def lazily(student):
        student.compile(dynamic=False, backend="aot_eager")

    monkeypatch.setattr(session_module, "compile_lazily", lazily)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


# with all that can go with it, and a last batch of the evaluation that is smaller than the others
TOGETHER = (
    *("training.checkpointing=true", 'training.precision="fp16"', 'training.attention="sdpa"'),
    *("students.small.depth=1", "data.test_images=300"),
)


def test_it_is_compiled_once_before_the_first_step(tmp_path, traced):
    plain = tiny_session(tmp_path, "embed-kd", *TOGETHER)
    compiled = tiny_session(tmp_path, "embed-kd", *TOGETHER, "training.compile=true")
    assert list(compiled.student.state_dict()) == list(plain.student.state_dict())
    assert parameter_bytes(compiled.student) == parameter_bytes(plain.student)
    before, state = graphs(), torch.get_rng_state()
    compiled.compile()
    assert graphs() == before + 1
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in plain.student.state_dict().items():
        assert torch.equal(compiled.student.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in compiled.student.parameters())
    losses = {}
    for session in (plain, compiled):
        torch.manual_seed(1)
        # what would have to be compiled again is an error, in training; evaluation compiles nothing
        with torch.compiler.set_stance("fail_on_recompile"):
            found = [session.step(draw)[0].loss for draw in session.draws(0)]
        found.append(evaluate(session)["test_loss"])
        with torch.compiler.set_stance("fail_on_recompile"):
            found += [session.step(draw)[0].loss for draw in session.draws(1)]
        losses[session is compiled] = [float(loss) for loss in found]
    assert graphs() == before + 1
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)


def test_no_ledger_counts_the_uncompiled_student_in_its_place(tmp_path):
    session = tiny_session(tmp_path, "student-only", "training.compile=true")
    with pytest.raises(RuntimeError, match="no ledger"):
        account_step(session, next(session.draws(0)))


# Small enough that its code takes torch half a minute, where it finds none that it made before; on
# a busy machine four times that.
SMALLEST = (
    *("--only", "method=student-only", "--preset", "control", "--device", "cpu"),
    *("--set", "budget.timeout_seconds=600"),
    *("--set", "students.small.depth=1", "--set", "students.small.width=8"),
    *("--set", 'training.attention="sdpa"'),
)


def test_a_compiled_cell(kdbench, tiny, tmp_path):
    said = kdbench("run", "--matrix", tiny, *SMALLEST, "--set", "axes.compile=true")
    assert said.code == 0, said
    tables = {
        name: pd.read_parquet(tmp_path / "results/tiny" / name)
        for name in ("cells", "steps", "phases", "memory", "timeline")
    }
    (cell,) = tables["cells"].to_dict("records")
    assert (cell["status"], cell["compile"]) == ("ok", True)
    assert cell["label"] == "student-only/small/8px/compile=true"
    # what needs the ledger is missing; the peak, which does not, is there
    assert cell["allocated_source"] == "profiler"
    assert 3 * cell["parameter_bytes"] < cell["allocated_peak_bytes"] < 1e6
    assert pd.isna(cell["unattributed_bytes"])
    assert pd.isna(cell["flops_step"])
    assert tables["memory"].empty
    assert tables["timeline"].empty
    assert cell["host_peak_bytes"] > 50e6
    assert cell["parameter_bytes"] == 4 * cell["student_parameters"]
    # the compiler's seconds are in a phase of their own: no step has them
    phases, steps = tables["phases"].set_index("phase"), tables["steps"]
    assert sorted(phases.index) == [
        *("account", "compile", "measure", "rates", "setup", "setup", "warmup")
    ]
    assert len(steps) == cell["warmup_steps"] + cell["steps_measured"]
    assert steps["seconds"].max() < phases.loc["compile", "seconds"] / 2
    shown = kdbench("show", tmp_path / "results")
    assert shown.code == 0, shown
    assert "compile=true" in shown.out


def test_without_a_compiler_the_cell_fails_in_one_line(kdbench, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "nothing-compiled-yet"))
    said = kdbench("run", "--matrix", tiny, *SMALLEST, "--set", "training.compile=true")
    assert said.code == 1, said
    (cell,) = pd.read_parquet(tmp_path / "results/tiny/cells").to_dict("records")
    assert cell["status"] == "failed"
    assert cell["error"].startswith("InputError: training.compile: torch cannot compile")
    assert "InvalidCxxCompiler" in cell["error"]
    assert cell["error"].endswith("install g++, or name yours in CXX")
    assert pd.isna(cell["step_seconds_median"])
