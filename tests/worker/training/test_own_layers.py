"""A method's own layers: trained, counted, kept and predicted as the student is, or refused."""

from importlib.metadata import EntryPoint

import pytest
import torch

from kdbench.common.errors import InputError
from kdbench.predict.cell import predict
from kdbench.spec import method as registry
from kdbench.spec.device_profile import load_profile
from kdbench.worker.checkpoints.files import read_checkpoint
from kdbench.worker.models.student import Student
from kdbench.worker.probes.account import account_step
from tests.support.consistency import check_results
from tests.support.models import CPU, session_of, tiny_run, tiny_session
from tests.support.own_methods import METHODS
from tests.support.trainings import KEY, attempt, cell_of, one_thread, result_of, training_run
from tests.worker.training.test_train import digits_text

CPU_PROFILE = load_profile("cpu")
LINEAR = 16 * 24 + 24
# parameters of each method's own, and the names that they go under at the peak
RIGHT = {
    "owned": (LINEAR, {"projector"}),
    "moved": (LINEAR + 1 + 32 + 256 + 32, {"", "layers.0", "layers.1", "layers.2", "last"}),
    "attached": (LINEAR + 1, {"", "projector"}),
    "module": (LINEAR, {"step.projector"}),
    "bound": (LINEAR, {"step.projector"}),
    "inside": (LINEAR, {"distiller.projector"}),
    "averaged": (2 * LINEAR, {"average", "projector"}),
    "constant": (1, {""}),
    "of-images": (LINEAR, {"projector"}),
}
WRONG = {
    "hidden": r"parameters that no optimizer trains \(2\), of shape \[24, 16\], \[24\]; give",
    "hidden-tensor": r"parameters that no optimizer trains \(1\), of shape \[24\];",
    "lazy": "parameters that no optimizer trains",
    "late": "the layer 'projector' comes too late to be trained",
    "sizeless": "has no size before it is used; parts.student.width",
    "replaced": "the method changed the student.*'classifier', 'classifier.bias'",
    "deepened": "the method changed the student.*'blocks.2'",
    "buffered": "the method changed the student.*'queue'",
    "tied": "the layer 'both' has parameters of the student",
    "twice": "that is not taken, found 'projector'",
    "tensor": "expected a module or a parameter as 'projector', found a plain tensor",
}


@pytest.fixture(autouse=True)
def _declared(monkeypatch):
    """Have the methods installed, as far as this process knows."""
    points = [
        EntryPoint(
            name, f"tests.support.own_methods:{name.upper().replace('-', '_')}", registry.GROUP
        )
        for name in METHODS
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry._plugged.cache_clear()
    yield
    monkeypatch.undo()
    registry._plugged.cache_clear()


def weights(session):
    return {name: value.detach().clone() for name, value in session.layers.named_parameters()}


def test_all_of_them_are_tried():
    assert METHODS.keys() == RIGHT.keys() | WRONG.keys()


@pytest.mark.parametrize("method", RIGHT)
def test_they_are_trained_counted_and_predicted_to_the_byte(method, tmp_path):
    run = tiny_run(tmp_path, method)
    torch.set_num_threads(1)
    session = session_of(run.cell, CPU, tmp_path)
    start = weights(session)
    draws = session.draws(0)
    for _ in range(2):
        session.step(next(draws))
    for name, value in weights(session).items():
        assert torch.equal(value, start[name]) == name.startswith("average."), name
    account = account_step(session, next(draws))
    made = predict(run, CPU_PROFILE)
    number, names = RIGHT[method]
    student = sum(p.numel() for p in session.student.parameters())
    buffers = sum(buffer.nbytes for buffer in session.layers.buffers())
    assert made.columns["student_parameters"] == student
    assert made.columns["method_parameters"] == number
    assert made.columns["parameter_bytes"] == 4 * (student + number) + buffers
    assert made.columns["allocated_peak_bytes"] == account.ledger.peak_bytes()
    held = split(share.row() for share in account.ledger.shares())
    assert held == split(row for row in made.memory if row["stage"] == "steady")
    own = {module for category, module in held if category == "parameters" and "method" in module}
    assert own == {f"method.{name}".rstrip(".") for name in names}
    state = held["optimizer_state", "optimizer"]
    trained = [p for m in session.trained.values() for p in m.parameters() if p.requires_grad]
    assert state == sum(2 * p.nbytes + 4 for p in trained)


def split(rows):
    """Bytes by category and module."""
    total = {}
    for row in rows:
        key = row["category"], row["module"] or ""
        total[key] = total.get(key, 0) + row["bytes"]
    return total


@pytest.mark.parametrize(
    "setting",
    [
        *('precision="bf16"', 'precision="fp16"', "checkpointing=true"),
        *('optimizer_kernels="foreach"', 'optimizer_kernels="fused"'),
    ],
)
def test_under_other_settings(setting, tmp_path):
    run = tiny_run(tmp_path, "owned", f"training.{setting}")
    session = session_of(run.cell, CPU, tmp_path)
    start, draws = weights(session), session.draws(0)
    for _ in range(4):  # fp16 may overflow first
        session.step(next(draws))
    assert all(not torch.equal(value, start[name]) for name, value in weights(session).items())
    account = account_step(session, next(session.draws(1)))
    assert predict(run, CPU_PROFILE).columns["allocated_peak_bytes"] == account.ledger.peak_bytes()


@pytest.mark.parametrize("profile", ["h100", "t4"])
def test_a_card_holds_them_too(profile, tmp_path):
    columns = predict(tiny_run(tmp_path, "moved"), load_profile(profile)).columns
    assert columns["method_parameters"] == RIGHT["moved"][0]


def test_their_gradients_are_zeroed_and_their_steps_are_adamws(tmp_path):
    session = tiny_session(tmp_path, "constant", "training.weight_decay=0.5")
    expected = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.AdamW([expected], session.cell.training.learning_rate, weight_decay=0.5)
    for draw in session.draws(0):
        session.step(draw)
        expected.grad = torch.ones(())
        optimizer.step()
        assert session.layers.offset.grad == 1
        assert torch.equal(session.layers.offset, expected)


def test_the_student_is_the_same_for_every_method(tmp_path):
    sessions = {name: tiny_session(tmp_path, name) for name in ("student-only", "attached")}
    plain, other = (session.student.state_dict() for session in sessions.values())
    assert plain.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in plain.items())


def test_without_them_nothing_is_drawn_after_the_student(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd").cell
    tiny_session(tmp_path, "embed-kd")
    state = torch.get_rng_state()
    torch.manual_seed(0)
    Student(cell.student, image_size=8, classes=5, teacher_width=24, attention="eager")
    assert torch.equal(torch.get_rng_state(), state)


def test_they_are_evaluated_with_the_student_and_trained_as_they_were(tmp_path):
    session = tiny_session(tmp_path, "averaged")
    with session.evaluating():
        assert not any(part.training for m in session.trained.values() for part in m.modules())
    assert session.student.blocks[0].training
    assert session.layers.projector.training
    assert not session.layers.average.training, "its author had frozen it"


@pytest.mark.parametrize("method", ["moved", "attached", "averaged"])
def test_a_training_goes_on_to_the_bit(method, tmp_path):
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(digits_text())
    settings = ('teachers.dwarf.weights="random"', "budget.checkpoint_seconds=1e-9")
    run = training_run(matrix, method, *settings)
    attempt(run, tmp_path / "whole")
    for stop in (3, 25):
        attempt(run, tmp_path / "stopped", stop_after=stop)
    _, tensors = read_checkpoint(tmp_path / "stopped/checkpoints" / KEY / "last.safetensors")
    with one_thread():
        own = session_of(run.cell, CPU, tmp_path).layers
    trained = {name for name, value in own.named_parameters() if value.requires_grad}
    kept = {name for name in tensors if name.startswith(("method.", "optimizer.method."))}
    assert kept == {
        *(f"method.{name}" for name, _ in (*own.named_parameters(), *own.named_buffers())),
        *(f"optimizer.method.{n}.{key}" for n in trained for key in ("exp_avg", "exp_avg_sq")),
        *(f"optimizer.method.{name}.step" for name in trained),
    }
    attempt(run, tmp_path / "stopped")
    assert check_results(tmp_path / "stopped") == 1
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")
    cell = cell_of(tmp_path / "stopped")
    assert cell["steps_resumed"] == 28
    assert cell["method_parameters"] == sum(p.numel() for p in own.parameters())


def test_a_compiled_student_may_have_them_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kdbench.worker.training.session.compile_lazily",
        lambda student: student.compile(dynamic=False, backend="eager"),
    )
    torch._dynamo.reset()
    session = tiny_session(tmp_path, "attached", "training.compile=true")
    session.compile()
    start = weights(session)
    for draw in session.draws(0):
        session.step(draw)
    assert all(not torch.equal(value, start[name]) for name, value in weights(session).items())
    torch._dynamo.reset()


@pytest.mark.parametrize("method", WRONG)
def test_what_cannot_be_trained_is_refused(method, tmp_path):
    run = tiny_run(tmp_path, method)
    where = rf"tests\.support\.own_methods:{method.replace('-', '_')}: "
    with pytest.raises(InputError, match=where + ".*" + WRONG[method]):
        steps(session_of(run.cell, CPU, tmp_path))
    if method == "sizeless":  # no stand-in can be made of it
        return
    with pytest.raises(InputError, match=where + ".*" + WRONG[method]):
        predict(run, CPU_PROFILE)


def steps(session):
    for draw in session.draws(0):
        session.step(draw)
