"""fp32, tf32, bf16 and fp16: what is switched, and what the numbers are."""

import json

import pytest
import torch

from kdbench.common.errors import InputError
from kdbench.worker.events import Events
from kdbench.worker.measure import measure_cell
from kdbench.worker.training import precision, session
from kdbench.worker.training.train import evaluate
from tests.support.models import CPU, tiny_run, tiny_session

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _as_torch_has_it():
    yield
    precision.set_precision("fp32", CPU)


def tf32_flags():
    """Both of torch's sets of flags: matrix products, convolutions."""
    return {
        "matmul": (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cuda.matmul.fp32_precision == "tf32",
            torch.get_float32_matmul_precision() == "high",
        ),
        "convolution": (
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.conv.fp32_precision == "tf32",
        ),
    }


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_only_tf32_computes_in_tf32(tmp_path, monkeypatch, name):
    monkeypatch.setattr(precision, "_computes_tf32", lambda device: True)
    precision.set_precision("tf32", CUDA)
    assert tf32_flags() == {"matmul": (True, True, True), "convolution": (True, True)}
    tiny_session(tmp_path, "student-only", f'training.precision="{name}"')
    assert tf32_flags() == {"matmul": (False, False, False), "convolution": (False, False)}


def test_tf32_needs_a_card_that_has_it(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"training\.precision: tf32 is a mode of CUDA devices"):
        tiny_session(tmp_path, "student-only", 'training.precision="tf32"')
    monkeypatch.setattr(precision, "_computes_tf32", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    with pytest.raises(InputError, match=r"training\.precision: Old Card does not compute in tf32"):
        precision.set_precision("tf32", CUDA)


def losses(session, steps=6):
    draws = session.draws(0)
    return [session.timed_step(next(draws))[0]["loss"] for _ in range(steps)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "digits"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_half_precision_agrees_with_fp32_within_its_digits(tmp_path, name, digits, attention):
    settings = ("training.learning_rate=1e-3", f'training.attention="{attention}"')
    exact = losses(tiny_session(tmp_path, "teacher-kd", *settings))
    rounded = losses(
        tiny_session(tmp_path, "teacher-kd", *settings, f'training.precision="{name}"')
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2 * digits)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "method", ["teacher-kd", "embed-kd", "cached-kd", "vanilla-kd", "student-only"]
)
def test_every_method_computes_its_loss_in_float32(tmp_path, method, name):
    settings = [f'training.precision="{name}"']
    if method == "vanilla-kd":
        settings.append("data.classes=24")  # as many scores as the dwarf teacher is wide
    session = tiny_session(tmp_path, method, *settings)
    result, _ = session.step(next(session.draws(0)))
    assert result.loss.dtype == torch.float32
    assert torch.isfinite(result.loss)
    assert result.logits.dtype in (torch.bfloat16, torch.float16)


def test_the_teacher_in_the_step_runs_under_autocast_too(tmp_path):
    session = tiny_session(tmp_path, "teacher-kd", 'training.precision="bf16"')
    seen = []
    for part in session.teacher.modules():
        if isinstance(part, torch.nn.Linear):
            part.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    session.step(next(session.draws(0)))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_evaluation_is_in_the_trainings_precision(tmp_path, name, dtype):
    session = tiny_session(tmp_path, "student-only", f'training.precision="{name}"')
    seen = []
    session.student.classifier.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    assert 0 <= evaluate(session)["test_accuracy"] <= 1
    assert set(seen) == {dtype}
    assert session.student.training


def test_only_fp16_has_a_scaler(tmp_path):
    scalers = [
        tiny_session(tmp_path, "student-only", f'training.precision="{name}"').scaler
        for name in ("fp32", "bf16", "fp16")
    ]
    assert scalers[:2] == [None, None]
    assert scalers[2].state_dict()["scale"] == 65536


def test_a_step_that_overflows_is_skipped_and_the_next_ones_recover(tmp_path):
    usual = losses(tiny_session(tmp_path, "student-only"), steps=1)
    session = tiny_session(tmp_path, "student-only", 'training.precision="fp16"')
    session.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: value.clone() for name, value in session.student.state_dict().items()}
    draws = session.draws(0)
    assert [session.timed_step(next(draws))[0]["loss"]] == pytest.approx(usual, rel=1e-3)
    assert session.scaler.get_scale() == 2.0**39
    assert not session.optimizer.state, "the optimizer did nothing"
    assert all(torch.equal(before[n], v) for n, v in session.student.state_dict().items())
    for epoch in range(1, 6):
        for draw in session.draws(epoch):
            session.step(draw)
    assert session.optimizer.state
    assert session.scaler.get_scale() < 2.0**39
    assert all(torch.isfinite(value).all() for value in session.student.state_dict().values())
    assert not torch.equal(before["classifier.weight"], session.student.classifier.weight)


def test_warming_up_goes_on_until_a_step_is_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        session, "make_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**40)
    )
    run = tiny_run(tmp_path, "student-only", 'training.precision="fp16"', "budget.max_steps=2")
    measure_cell(run, events=Events(tmp_path / "events"), cache=tmp_path, machine={})
    told = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    steps = [event for event in told if event["event"] == "step"]
    warm = [step for step in steps if step["phase"] == "warmup"]
    assert 5 < len(warm) < 60
    (phase,) = [e for e in told if e["event"] == "phase" and e["phase"] == "warmup"]
    assert phase["units"] == len(warm)
    # AdamW has its moments, so the last step was a whole one
    kept = {event["category"]: event["bytes"] for event in told if event["event"] == "memory"}
    assert kept["optimizer_state"] > 0
