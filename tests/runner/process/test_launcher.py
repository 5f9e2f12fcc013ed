"""The launcher: what a worker is told, and that it always ends, whatever it or its parent does.

The workers here are real processes of `python -m kdbench.worker`, but where they would import
torch, they do what the test says instead.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from kdbench.runner.device import ResolvedDevice
from kdbench.runner.matrix_runner import run_matrix
from kdbench.runner.process import launcher
from kdbench.runner.process.child import Spawned
from kdbench.runner.process.launcher import launch, uses_hub, worker_environment
from kdbench.runner.process.stop_request import StopRequest
from kdbench.runner.progress import Progress
from kdbench.runner.spool import EventTail, last_line, read_lines
from kdbench.spec.settings import Data, Teacher
from tests.support import REPOSITORY
from tests.support.models import tiny_matrix, tiny_run
from tests.support.stores import statuses

# No machine is so slow; a test that waits this long has failed.
LONG = 200

STAND_IN = '''
import sys

class InsteadOfTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            exec(BEHAVIOUR, {})

if "kdbench.worker" in sys.orig_argv:
    sys.meta_path.insert(0, InsteadOfTorch)

BEHAVIOUR = """
import json, os, pathlib, signal, subprocess, sys, time
spool = pathlib.Path(sys.argv[1]).parent
def emit(event, **values):
    with (spool / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, **values}) + chr(10))
""" + open(__file__.replace("sitecustomize.py", "behaviour")).read()
'''


@pytest.fixture
def behave(tmp_path, monkeypatch):
    """Have every worker run these lines."""
    folder = tmp_path / "stand-in"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def call(lines):
        (folder / "behaviour").write_text(dedent(lines))

    return call


@pytest.fixture
def spool(tmp_path):
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def started(spool, tmp_path):
    """Launch a job; `seen` is called with each event, and may want it to stop."""

    def call(*, seen=lambda event, stop: None, run=None, on_start=lambda pid: None):
        stop = StopRequest()

        def tick(events):
            for event in events:
                seen(event, stop)

        return launch(
            "cell",
            run or tiny_run(tmp_path),
            spool=spool,
            log=tmp_path / "worker.log",
            cache=tmp_path / "cache",
            machine={},
            on_start=on_start,
            on_tick=tick,
            stop=stop,
        )

    return call


def stop_at(name):
    """Want it to stop as soon as the worker tells of an event."""

    def seen(event, stop):
        if event["event"] == name:
            stop.order("stopped by a test")

    return seen


def alive(pid):
    with suppress(psutil.NoSuchProcess):
        # an orphan that nobody reaps has ended all the same
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def ends(pid):
    deadline = time.monotonic() + LONG
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


# --- the environment


SECRETS = {
    "HF_TOKEN": "secret-1",
    "HUGGING_FACE_HUB_TOKEN": "secret-2",
    "AWS_ACCESS_KEY_ID": "secret-3",
    "AWS_SECRET_ACCESS_KEY": "secret-4",
    "GITHUB_TOKEN": "secret-5",
    "NVIDIA_API_KEY": "secret-6",
    "WANDB_API_KEY": "secret-7",
    "HTTPS_PROXY": "http://user:secret-8@proxy",
    "DATABASE_URL": "postgres://secret-9",
}
NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LD_LIBRARY_PATH": "/lib",
    "CUDA_VISIBLE_DEVICES": "1",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "LC_ALL": "C",
    "XDG_CACHE_HOME": "/cache",
    "HF_HOME": "/cache/hf",
    "HF_DATASETS_CACHE": "/cache/data",
}


def test_no_secret_passes_where_no_hub_is_used():
    passed = worker_environment({**SECRETS, **NEEDED}, network=False)
    assert "secret" not in str(passed)
    assert NEEDED.items() <= passed.items()
    assert (passed["HF_HUB_OFFLINE"], passed["HF_DATASETS_OFFLINE"]) == ("1", "1")


def test_the_hub_is_given_what_it_needs_and_no_more():
    passed = worker_environment({**SECRETS, **NEEDED}, network=True)
    assert (passed["HF_TOKEN"], passed["HTTPS_PROXY"]) == (
        SECRETS["HF_TOKEN"],
        SECRETS["HTTPS_PROXY"],
    )
    assert not {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"} & set(passed)
    for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "NVIDIA_API_KEY", "WANDB_API_KEY"):
        assert name not in passed


def test_a_user_who_is_offline_stays_so():
    assert worker_environment({"HF_HUB_OFFLINE": "1"}, network=True)["HF_HUB_OFFLINE"] == "1"
    # and a cell that needs no network has none, whatever the user set
    assert worker_environment({"HF_HUB_OFFLINE": "0"}, network=False)["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("own", [None, "", "/mine:/yours"])
def test_the_worker_finds_this_very_package_first(own):
    passed = worker_environment({} if own is None else {"PYTHONPATH": own}, network=False)
    first, *rest = passed["PYTHONPATH"].split(os.pathsep)
    assert Path(first, "kdbench", "runner", "process", "launcher.py").samefile(launcher.__file__)
    # an empty entry would be the current folder, whatever lies there
    assert rest == (own.split(":") if own else [])


@pytest.fixture
def typed():
    """Words on this process's standard input, which a worker must leave alone."""
    before = os.dup(0)
    read, write = os.pipe()
    os.write(write, b"typed by the user")
    os.close(write)
    os.dup2(read, 0)
    os.close(read)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.usefixtures("typed")
def test_what_a_worker_really_sees(behave, started, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HTTPS_PROXY")
    # a folder of the user's that happens to hold a package of our name
    (tmp_path / "kdbench").mkdir()
    (tmp_path / "kdbench" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    behave("""
        import kdbench
        emit("told", environ=dict(os.environ), stdin=sys.stdin.read(), package=kdbench.__file__)
        raise SystemExit(0)
        """)
    (told,) = started().events
    assert "secret" not in json.dumps(told["environ"])
    assert told["environ"]["HF_HUB_OFFLINE"] == "1"
    assert told["stdin"] == "", "nothing asks the user in the middle of a measurement"
    assert Path(told["package"]).samefile(REPOSITORY / "kdbench" / "__init__.py")


TEACHER = Teacher(patch_size=8, width=24, depth=1, heads=2, image_size=16)
DATA = Data(name="noise", classes=5, train_images=64, test_images=16)


@pytest.mark.parametrize(
    ("teacher", "data", "expected"),
    [
        ({}, {}, False),
        (None, {}, False),
        ({"weights": "pretrained", "checkpoint": "google/vit"}, {}, True),
        ({"weights": "pretrained", "checkpoint": "{folder}"}, {}, False),
        # what is not read is not fetched
        ({"weights": "random", "checkpoint": "google/vit"}, {}, False),
        ({"weights": "fitted"}, {"source": "digits"}, False),
        (None, {"source": "datasets", "path": "uoft-cs/cifar100"}, True),
        (None, {"source": "datasets", "path": "{folder}"}, False),
        (None, {"source": "synthetic", "path": "uoft-cs/cifar100"}, False),
        (
            {"weights": "pretrained", "checkpoint": "{folder}"},
            {"source": "datasets", "path": "uoft-cs/cifar100"},
            True,
        ),
    ],
)
def test_a_hub_is_used_by_what_is_no_local_folder(teacher, data, expected, tmp_path):
    def here(changes):
        return {name: value.format(folder=tmp_path) for name, value in changes.items()}

    run = tiny_run(tmp_path)
    cell = run.cell.model_copy(
        update={
            "teacher": None if teacher is None else TEACHER.model_copy(update=here(teacher)),
            "data": DATA.model_copy(update=here(data)),
        }
    )
    assert uses_hub(run.model_copy(update={"cell": cell})) is expected


# --- a job that ends by itself


def test_a_job_from_start_to_end(behave, started, spool, tmp_path):
    behave("""
        emit("started", pid=os.getpid(), parent=json.loads((spool / "job.json").read_text()))
        print("to stdout")
        print("to stderr", file=sys.stderr)
        emit("end", status="ok")
        with (spool / "events.jsonl").open("a") as file:
            file.write('{"event": "half a li')
        sys.stdout.flush()
        os._exit(7)
        """)
    seen, pids, sessions = [], [], []

    def on_start(pid):
        pids.append(pid)
        sessions.append(os.getsid(pid))

    outcome = started(seen=lambda event, _: seen.append(event), on_start=on_start)
    assert outcome.returncode == 7
    assert (outcome.timed_out, outcome.stopped, outcome.problem) == (None, None, None)
    # all of them, in order and once, also those of the last instant; the half line is dropped
    assert [event["event"] for event in outcome.events] == ["started", "end"]
    assert list(outcome.events) == seen
    assert outcome.events[0]["pid"] == pids[0]
    job = outcome.events[0]["parent"]
    assert (job["task"], job["parent"]) == ("cell", os.getpid())
    assert job["run"] == tiny_run(tmp_path).model_dump(mode="json")
    assert (tmp_path / "worker.log").read_text().split("\n")[:2] == ["to stdout", "to stderr"]
    # Ctrl-C on the terminal reaches the runner alone, which then ends the worker in order.
    assert sessions != [os.getsid(0)]


@pytest.mark.parametrize("kind", ["missing", "forbidden"])
def test_where_the_kernel_has_no_pidfd(kind, behave, started, monkeypatch):
    def forbidden(pid):
        raise OSError(1, "Operation not permitted")

    if kind == "missing":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)
    behave("emit('end', status='ok'); raise SystemExit(0)")
    outcome = started()
    assert (outcome.returncode, len(outcome.events)) == (0, 1)


def test_only_a_missing_pidfd_is_waited_for_otherwise(behave, spool, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(9, "Bad file descriptor")

    behave("time.sleep(1000)")
    environment = worker_environment(os.environ, network=False)
    child = Spawned(spool / "job.json", tmp_path / "worker.log", environment=environment)
    monkeypatch.setattr(select, "select", broken)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            child.wait(0)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child._process.wait()


GRANDCHILD = """
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
         "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
         "time.sleep(1000)"],
        stdout=subprocess.PIPE,
    )
    child.stdout.readline()
    emit("ready", grandchild=child.pid, pid=os.getpid())
    """


@pytest.mark.parametrize("end", ["raise SystemExit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_worker_started_goes_with_it(end, behave, started):
    behave(dedent(GRANDCHILD) + end)
    (ready,) = started().events
    assert ends(ready["grandchild"])


# --- a job that has to be ended


@pytest.mark.parametrize(
    ("ignored", "last", "grace"),
    [
        ([], signal.SIGINT, LONG),
        (["SIGINT"], signal.SIGTERM, 1.5),
        (["SIGINT", "SIGTERM"], signal.SIGKILL, 0.2),
    ],
    ids=["interrupt", "terminate", "kill"],
)
def test_the_ladder_ends_every_worker(ignored, last, grace, behave, started, monkeypatch):
    monkeypatch.setattr(launcher, "_HASTY_SECONDS", grace)
    ignore = "".join(f"signal.signal(signal.{name}, signal.SIG_IGN)\n" for name in ignored)
    behave(f"{ignore}{dedent(GRANDCHILD)}time.sleep(1000)")
    outcome = started(seen=stop_at("ready"))
    assert (outcome.stopped, outcome.timed_out) == ("stopped by a test", None)
    assert outcome.returncode == -last
    (ready,) = outcome.events
    assert not alive(ready["pid"])
    assert ends(ready["grandchild"])


def test_a_job_that_takes_too_long(behave, started, spool, monkeypatch, tmp_path):
    monkeypatch.setattr(launcher, "_GRACE_SECONDS", LONG)
    pids = []
    run = tiny_run(tmp_path, "embed-kd", "budget.timeout_seconds=0.3")
    behave("(spool / 'asleep').touch(); time.sleep(1000)")

    def on_start(pid):
        # an interpreter that is interrupted while it starts ends in ways of its own
        deadline = time.monotonic() + LONG
        while not (spool / "asleep").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pids.append(pid)

    outcome = started(run=run, on_start=on_start)
    told = r"not done after \d+ s, in the phase start \(budget.timeout_seconds\)"
    assert re.fullmatch(told, outcome.timed_out)
    assert (outcome.stopped, outcome.returncode) == (None, -signal.SIGINT)
    assert not alive(pids[0])


def test_an_error_in_the_display_leaves_no_orphan(behave, started):
    behave("emit('ready'); time.sleep(1000)")
    pids = []

    def broken(event, stop):
        raise BrokenPipeError("nobody reads any more")

    with pytest.raises(BrokenPipeError):
        started(seen=broken, on_start=pids.append)
    assert not alive(pids[0])


def test_a_bare_interrupt_leaves_no_orphan(behave, started):
    # Where no handler could be set, as outside of the main thread, it is raised anywhere.
    behave("time.sleep(1000)")
    pids = []

    def on_start(pid):
        pids.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        started(on_start=on_start)
    assert not alive(pids[0])


PARENT = """
import json, sys
from pathlib import Path
from kdbench.spec.cell import CellRun
from kdbench.runner.process.launcher import launch
from kdbench.runner.process.stop_request import StopRequest

folder = Path(sys.argv[1])

def tick(events):
    for event in events:
        print(event["pid"], flush=True)

launch(
    "cell", CellRun.model_validate_json((folder / "run.json").read_text()),
    spool=folder, log=folder / "log", cache=folder, machine={},
    on_start=lambda pid: None, on_tick=tick, stop=StopRequest(),
)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_worker_dies_with_its_parent(behave, spool, tmp_path):
    behave("""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        emit("ready", pid=os.getpid())
        time.sleep(1000)
        """)
    (spool / "run.json").write_text(tiny_run(tmp_path).model_dump_json())
    path = os.pathsep.join([str(REPOSITORY), os.environ["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(spool)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        try:
            worker = int(parent.stdout.readline())
            assert alive(worker)
        finally:
            parent.kill()
    assert ends(worker)


def test_a_worker_whose_parent_is_gone_already_does_nothing(behave, spool, tmp_path):
    # The parent died between starting it and its asking to be told: no signal will come.
    behave("emit('ran'); raise SystemExit(0)")
    job = {"task": "cell", "run": {}, "cache": "", "parent": os.getppid()}
    (spool / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "kdbench.worker", str(spool / "job.json")],
        env=worker_environment(os.environ, network=False),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    if sys.platform == "linux":
        assert done.returncode == 1
        assert "is gone" in done.stderr
        assert not (spool / "events.jsonl").exists()


# --- Ctrl-C is never lost


def test_an_interrupt_when_the_worker_has_ended(behave, started, monkeypatch):
    # All its events come with the last look, after its end: the interrupt comes then, too.
    monkeypatch.setattr(launcher, "_TICK_SECONDS", LONG)
    behave("emit('end', status='ok'); raise SystemExit(0)")
    outcome = started(seen=stop_at("end"))
    assert outcome.stopped
    assert (outcome.returncode, len(outcome.events)) == (0, 1)


class StopAtEnd(Progress):
    """The user presses Ctrl-C when a cell has just told that it is done."""

    def __init__(self, times):
        self.times = times

    def tick(self, events, sample):
        if any(event["event"] == "end" for event in events):
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("tick", [0.02, 2], ids=["while it ends", "after its end"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_at_the_end_of_a_cell_stops_the_run(
    times, tick, behave, tmp_path, monkeypatch
):
    # The cell is done, and its rows stay; but the next one must not be started.
    monkeypatch.setattr(launcher, "_TICK_SECONDS", tick)
    behave("emit('end', status='ok'); time.sleep(0.2); os._exit(0)")
    matrix, device = tiny_matrix(tmp_path), ResolvedDevice("cpu", None)
    summary = run_matrix(matrix, out=tmp_path / "out", device=device, progress=StopAtEnd(times))
    assert (summary.done, summary.interrupted, summary.exit_code, summary.failed) == (
        1,
        True,
        130,
        [],
    )
    assert list(statuses(summary.folder).values()) == ["ok"]
    again = run_matrix(matrix, out=tmp_path / "out", device=device, progress=Progress())
    assert (again.done, again.skipped, again.exit_code) == (2, 1, 0)


# --- the spool


def test_a_tail_reads_every_line_once_and_waits_for_the_rest_of_a_half(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == [], "the worker has not begun"
    with path.open("ab", buffering=0) as file:
        file.write(b'{"n": 1}\n{"n": 2}\n{"n"')
        assert tail.read() == [{"n": 1}, {"n": 2}]
        assert tail.read() == []
        file.write(b": 3}\n")
        assert tail.read() == [{"n": 3}]
        file.write(b'torn \xff\n[1]\n5\n\n{"n": 4}\n')
        assert tail.read() == [{"n": 4}], "a line that is no object is passed over"
    assert read_lines(path) == [{"n": n} for n in (1, 2, 3, 4)]
    assert read_lines(tmp_path / "nothing") == []


def test_the_last_line_of_a_file_that_grows(tmp_path):
    path = tmp_path / "samples.jsonl"
    assert last_line(path) is None
    path.write_bytes(b'{"n": ')
    assert last_line(path) is None
    lines = [json.dumps({"n": n, "pad": "x" * 50}) for n in range(1000)]
    path.write_text("\n".join(lines) + '\n{"n": 10')
    assert last_line(path)["n"] == 999
