"""Somebody else's step under the ledger: every byte counted by hand, however it is written."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from kdbench.common.errors import InputError
from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.oracle import HostRecord, renew_gradients, storage_bytes
from kdbench.worker.probes.user_step import measure_step
from tests.support.models import tiny_session

FLOAT = 4
# A linear layer from 8 to 3 over 5 examples.
WEIGHT, BIAS = 8 * 3 * FLOAT, 3 * FLOAT
PARAMETERS = WEIGHT + BIAS
IMAGES = 5 * 8 * FLOAT
OUTPUT = 5 * 3 * FLOAT


class Training:
    """A linear layer and its step; `made` is built as a user's own code would build it."""

    def __init__(self, optimizer=torch.optim.SGD):
        self.model = nn.Linear(8, 3)
        self.images = torch.ones(5, 8)
        self.optimizer = optimizer(self.model.parameters(), lr=0.1)

    def __call__(self):
        self.optimizer.zero_grad()
        loss = self.model(self.images).sum()
        loss.backward()
        self.optimizer.step()

    @property
    def named(self):
        return {"model": self.model, "optimizer": self.optimizer, "inputs": [self.images]}


def categories(used):
    return {name: size for name, size in used.categories.items() if size}


# --- hand counts


def test_a_linear_layer_under_plain_gradient_descent():
    training = Training()
    used = measure_step(training, **training.named)
    # At the end of backward: the loss, its gradient (made before autograd sets out, and so taken
    # for an activation), and both gradients of the layer.
    assert categories(used) == {
        "parameters": PARAMETERS,
        "gradients": PARAMETERS,
        "inputs": IMAGES,
        "activations": 2 * FLOAT,
    }
    assert used.peak_bytes == 2 * PARAMETERS + IMAGES + 2 * FLOAT
    assert (used.source, used.device, used.reserved_bytes) == ("ledger", "cpu", None)
    assert used.unattributed_bytes == 0


def test_a_linear_layer_under_adamw():
    training = Training(torch.optim.AdamW)
    used = measure_step(training, **training.named)
    # While the weight is updated: the root of its second moment, and that over the correction.
    assert categories(used) == {
        "parameters": PARAMETERS,
        "gradients": PARAMETERS,
        "optimizer_state": 2 * PARAMETERS + 2 * FLOAT,  # and a count of steps for each tensor
        "inputs": IMAGES,
        "activations": FLOAT,
        "workspace": 2 * WEIGHT,
    }
    assert used.modules == {
        "model": 2 * PARAMETERS,
        "optimizer": 2 * PARAMETERS + 2 * FLOAT,
        None: IMAGES + FLOAT + 2 * WEIGHT,
    }


def test_the_work_of_a_linear_layer():
    used = measure_step(Training())
    forward = 2 * 5 * 8 * 3
    assert used.flops == 2 * forward  # and as much for the weight's gradient; none of the images
    assert used.operations > 0
    assert used.bytes_moved > used.peak_bytes


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_what_nobody_named_counts_all_the_same(optimizer):
    named, unnamed = Training(optimizer), Training(optimizer)
    told, found = measure_step(named, **named.named), measure_step(unnamed)
    assert found.peak_bytes == told.peak_bytes
    assert categories(found) == categories(told)
    assert ("parameters", "Linear") in found.held


def test_what_is_named_counts_though_the_step_does_not_use_it():
    training, unused = Training(), {"x": [torch.ones(100)], "y": (torch.ones(7), "text")}
    used = measure_step(training, **{**training.named, "inputs": [training.images, unused]})
    assert used.categories["inputs"] == IMAGES + 107 * FLOAT
    spare = nn.Linear(20, 30)
    two = measure_step(training, model={"student": training.model, "spare": spare})
    assert two.held["parameters", "spare"] == (20 * 30 + 30) * FLOAT
    assert two.held["parameters", "student"] == PARAMETERS


def test_the_very_first_step_has_nothing_of_a_step_before():
    training = Training(torch.optim.SGD)
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1, momentum=0.9)

    def without_dropping():
        training.model(training.images).sum().backward()
        training.optimizer.step()

    first = measure_step(without_dropping, **training.named, warmup=0)
    later = measure_step(without_dropping, **training.named, warmup=0)
    # nothing drops the gradients: the new ones are added to the old
    assert later.categories["gradients"] == first.categories["gradients"] == PARAMETERS
    assert later.categories["optimizer_state"] == PARAMETERS
    assert later.peak_bytes > first.peak_bytes


# --- other sources


@pytest.mark.parametrize("method", ["teacher-kd", "embed-kd", "student-only"])
def test_kdbenchs_own_step_comes_to_what_kdbench_accounts_for(tmp_path, method):
    session = tiny_session(tmp_path, method)
    draws = session.draws(0)
    session.timed_step(next(draws))
    account = account_step(session, next(draws))
    draw = next(draws)
    used = measure_step(
        lambda: session.step(draw),
        model={"student": session.student},
        teacher=session.teacher,
        optimizer=session.optimizer,
        inputs=[session.data.tensors(), draw.tensors()],
    )
    own = account.ledger.peak_bytes()
    # a scalar that autograd keeps is seen here when it is used
    assert own <= used.peak_bytes <= account.second_peak_bytes
    shares = {}
    for share in account.ledger.shares():
        shares[share.category] = shares.get(share.category, 0) + share.size
    for category in ("parameters", "gradients", "optimizer_state"):
        assert used.categories.get(category, 0) == shares.get(category, 0), category
    # where backward begins, the gradient of the loss is made before autograd is at work
    assert shares["workspace"] - used.categories["workspace"] == FLOAT
    assert (used.flops, used.operations) == (account.work.flops, account.work.operations)


def test_torchs_profiler_sees_the_same_peak_to_within_scalars():
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(32, 64), torch.arange(32) % 10

    def step():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    used = measure_step(step)
    with HostRecord(torch.device("cpu")) as record:
        renew_gradients(model)
        state = [value for one in optimizer.state.values() for value in one.values()]
        gradients = [p.grad for p in model.parameters()]
        held = storage_bytes([*model.parameters(), *state, *gradients, images, labels])
        del gradients
        record.begin()
        step()
    assert 0 <= held + record.growth().peak_bytes - used.peak_bytes <= 16


# --- other steps


def test_a_teacher_is_told_apart():
    training, teacher = Training(), nn.Sequential(nn.Linear(8, 40), nn.Linear(40, 3))

    def step():
        training.optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher(training.images)
        loss = (training.model(training.images) - wanted).square().sum()
        loss.backward()
        training.optimizer.step()

    used = measure_step(step, **training.named, teacher=teacher)
    weights = storage_bytes(teacher.parameters())
    # the peak is in the teacher, between its layers
    assert used.categories["teacher"] == weights + 5 * 40 * FLOAT + OUTPUT
    assert used.held["teacher", "teacher.0"] == (8 * 40 + 40 + 5 * 40) * FLOAT
    assert used.categories["parameters"] == PARAMETERS


def test_a_step_without_modules():
    weight = torch.ones(8, 3, requires_grad=True)
    images = torch.ones(5, 8)

    def step():
        hidden = images @ weight
        for _ in range(10):
            hidden = hidden.sigmoid()  # keeps its result
        hidden.sum().backward()
        with torch.no_grad():
            weight.sub_(weight.grad)
        weight.grad = None

    used = measure_step(step)
    # In the second sigmoid's backward: all ten results, the last one held by the step itself, the
    # loss and its gradient; the gradient that goes in and the one that comes out. Weight and images
    # are plain tensors that nobody named.
    assert categories(used) == {
        "inputs": WEIGHT + IMAGES,
        "activations": 10 * OUTPUT + 2 * FLOAT,
        "workspace": 2 * OUTPUT,
    }


def test_several_batches_in_one_step():
    training = Training()

    def step():
        training.optimizer.zero_grad()
        for _ in range(3):
            training.model(training.images).exp().sum().backward()
        training.optimizer.step()

    used = measure_step(step, **training.named)
    assert used.categories["gradients"] == PARAMETERS
    assert used.categories["activations"] > 0
    assert set(used.categories) <= {"parameters", "gradients", "inputs", "activations", "workspace"}


def test_what_is_made_between_the_parts_is_other():
    training = Training()
    average = [p.detach().clone() for p in training.model.parameters()]
    kept = []

    def step():
        training()
        kept[:] = [torch.stack([a, a]) for a in average for _ in range(3)]

    used = measure_step(step, **training.named)
    assert used.categories["other"] >= 6 * PARAMETERS


def test_a_checkpoint_computes_activations_again():
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4)))
    images = torch.randn(16, 32)

    def step(run):
        layers.zero_grad()
        hidden = images
        for layer in layers:
            hidden = run(layer, hidden)
        hidden.sum().backward()

    plain = measure_step(lambda: step(lambda layer, x: layer(x)), model=layers)
    saving = measure_step(lambda: step(lambda layer, x: checkpoint(layer, x, use_reentrant=False)))
    assert saving.categories["activations"] < plain.categories["activations"]
    assert saving.peak_bytes < plain.peak_bytes
    assert saving.flops > plain.flops


# --- nothing stays behind


def nothing_is_left():
    return (
        _get_current_dispatch_mode() is None
        and not module_hooks._global_forward_hooks
        and not module_hooks._global_forward_pre_hooks
        and not optimizer_hooks._global_optimizer_pre_hooks
        and not optimizer_hooks._global_optimizer_post_hooks
        and gc.isenabled()
    )


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer", "before"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_step_that_raises_leaves_nothing_behind(place, warmup, monkeypatch):
    training = Training()
    steps = []

    def fail(*_):
        raise OSError("the test's own")

    if place == "forward":
        training.model.register_forward_pre_hook(fail)
    elif place == "backward":
        training.model.weight.register_hook(fail)
    elif place == "optimizer":
        training.optimizer.register_step_pre_hook(fail)

    def step():
        steps.append(1)
        if len(steps) > warmup or place != "before":
            if place == "before":
                fail()
            training()

    with pytest.raises(OSError, match="the test's own"):
        measure_step(step, **training.named, warmup=warmup)
    assert nothing_is_left()
    training = Training()
    measure_step(training, **training.named)
    assert nothing_is_left()


def test_nothing_is_kept_alive():
    training = Training(torch.optim.AdamW)
    used = measure_step(training, **training.named)
    assert used.peak_bytes
    model, storage = weakref.ref(training.model), weakref.ref(training.images)
    del training
    gc.collect()
    assert model() is None
    assert storage() is None


def test_garbage_collection_that_was_off_stays_off():
    gc.disable()
    try:
        measure_step(Training())
        assert not gc.isenabled()
    finally:
        gc.enable()


# --- what cannot be measured


def compiled_model(training):
    training.model.compile(backend="eager")


def wrapped_model(training):
    training.model = torch.compile(training.model, backend="eager")


def compiled_function(training):
    plain = training.model.forward
    training.model.forward = torch.compile(plain, backend="eager")
    training()  # and long since compiled


@pytest.mark.parametrize("way", [compiled_model, wrapped_model, compiled_function])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_code_is_refused(way, named, warmup):
    training = Training()
    way(training)
    with pytest.raises(InputError, match="no ledger sees into compiled code"):
        measure_step(training, **(training.named if named else {}), warmup=warmup)
    assert nothing_is_left()


def test_compiled_code_stays_compiled():
    """Under any dispatch mode torch would give it up for good."""
    ran = []

    def backend(graph, _):
        return lambda *given: ran.append(1) or graph(*given)

    double = torch.compile(lambda x: x.sin() * 2, backend=backend)
    images = torch.ones(3)
    double(images)
    with pytest.raises(InputError, match="compiled"):
        measure_step(lambda: double(images), warmup=0)
    double(images)
    assert len(ran) == 2


def test_a_step_that_does_nothing_is_not_measured():
    training = Training()
    with pytest.raises(InputError, match="used no memory on cpu"):
        measure_step(lambda: None, **training.named)
    with pytest.raises(InputError, match="used no memory on meta"):
        measure_step(training, device="meta")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"step": 3}, "kd_memory: step: expected a function that runs one training step, found 3"),
        ({"warmup": -1}, "kd_memory: warmup: expected a number of steps from 0, found -1"),
        ({"warmup": True}, "warmup: expected a number of steps from 0, found True"),
        ({"model": [nn.Linear(1, 1)]}, "model: expected a torch.nn.Module, or several in a dict"),
        ({"teacher": {"a": 1}}, "teacher: expected a torch.nn.Module, or several in a dict"),
        ({"optimizer": "adam"}, "optimizer: expected a torch.optim.Optimizer, or a list of them"),
        ({"device": "gpu"}, "device: expected a device of torch's, such as 'cuda:0', found 'gpu'"),
    ],
)
def test_wrong_arguments(arguments, told):
    with pytest.raises(InputError) as raised:
        measure_step(**{"step": Training(), **arguments})
    assert told in str(raised.value)


def test_parts_on_several_devices():
    model = {"a": nn.Linear(1, 1, device="meta"), "b": nn.Linear(1, 1)}
    training = Training()
    # the host beside another device is how trainings are
    with pytest.raises(InputError, match="used no memory on meta"):
        measure_step(training, model=model)
