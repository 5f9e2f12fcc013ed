"""What counts as memory that ran out, and what is read out of the texts that tell of it."""

import errno
import signal

import numpy as np
import pytest
import torch

from kdbench.common.errors import InputError, WorkerError
from kdbench.common.memory_limits import MemoryLimit
from kdbench.common.out_of_memory import parse_out_of_memory
from kdbench.runner import outcome
from kdbench.runner.outcome import judge_outcome
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.process.oom_killer import OomKills
from kdbench.worker import job as job_module
from kdbench.worker import out_of_memory as shortage_module
from kdbench.worker.checkpoints.files import UnusableError, read_checkpoint
from kdbench.worker.events import Events
from kdbench.worker.out_of_memory import child_died, is_shortage, shortage_behind

MIB, GIB = 2**20, 2**30
CPU = "cpu"
ASYNC = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)

# text, as its maker wrote it -> who refused, what was asked for, what was free, what there was
TEXTS = {
    "torch 2": (
        "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB "
        "of which 12.73 GiB is free. Including non-PyTorch memory, this process has 18.73 GiB "
        "memory in use. Of the allocated memory 9.08 GiB is allocated by PyTorch, and 9.35 GiB is "
        "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
        "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.",
        ("cuda", round(22.78 * GIB), round(12.73 * GIB), round(31.47 * GIB)),
    ),
    "another process has the card": (
        "CUDA out of memory. Tried to allocate 44.00 MiB. GPU 0 has a total capacity of 47.53 GiB "
        "of which 20.88 MiB is free. Process 3047950 has 47.50 GiB memory in use. Of the allocated "
        "memory 46.87 GiB is allocated by PyTorch, and 291.83 MiB is reserved by PyTorch",
        ("cuda", 44 * MIB, round(20.88 * MIB), round(47.53 * GIB)),
    ),
    "nothing free, and a typing error of torch 2.1": (
        "CUDA out of memory. Tried to allocate 1.70 GiB. GPU 0 has a total capacty of 6.00 GiB of "
        "which 0 bytes is free. Of the allocated memory 2.93 GiB is allocated by PyTorch",
        ("cuda", round(1.7 * GIB), 0, 6 * GIB),
    ),
    "torch 1": (
        "CUDA out of memory. Tried to allocate 2.26 GiB (GPU 0; 6.00 GiB total capacity; 781.59 "
        "MiB already allocated; 3.03 GiB free; 1.24 GiB reserved in total by PyTorch)",
        ("cuda", round(2.26 * GIB), round(3.03 * GIB), 6 * GIB),
    ),
    "the runtime": ("CUDA error: out of memory" + ASYNC, ("cuda", None, None, None)),
    "the runtime, newer": (
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in "
        "https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information." + ASYNC,
        ("cuda", None, None, None),
    ),
    "the driver": ("CUDA driver error: out of memory", ("cuda", None, None, None)),
    "triton": ("Triton Error [CUDA]: out of memory", ("cuda", None, None, None)),
    "cuBLAS": (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ("cuda", None, None, None),
    ),
    "cuDNN": ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", ("cuda", None, None, None)),
    "cuDNN 9": (
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ("cuda", None, None, None),
    ),
    "cuDNN 9, of the host": (
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        ("host", None, None, None),
    ),
    "torch on the CPU": (
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 116813856768 bytes. Error code 12 (Cannot allocate memory)",
        ("host", 116813856768, None, None),
    ),
    "torch on the CPU, elsewhere": (
        "[enforce fail at ..\\..\\c10\\core\\CPUAllocator.cpp:76] data. DefaultCPUAllocator: not "
        "enough memory: you tried to allocate 23592960 bytes.",
        ("host", 23592960, None, None),
    ),
    "a mapped file": (
        "unable to mmap 1073741824 bytes from file <big.safetensors>: Cannot allocate memory (12)",
        ("host", GIB, None, None),
    ),
    "numpy": (
        "Unable to allocate 512. MiB for an array with shape (134217728,) and data type int32",
        ("host", 512 * MIB, None, None),
    ),
    "arrow": ("malloc of size 1073741824 failed", ("host", GIB, None, None)),
    "C++": ("std::bad_alloc", ("host", None, None, None)),
    "oneDNN": ("could not create a memory object", ("host", None, None, None)),
    "OpenBLAS": (
        "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
        ("host", None, None, None),
    ),
    "Rust": ("Cannot allocate memory (os error 12)", ("host", None, None, None)),
    "a DataLoader's process, in torch's words": (
        "Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent "
        "call last):\nnumpy._core._exceptions._ArrayMemoryError: Unable to allocate 2.00 GiB for "
        "an array with shape (268435456,) and data type float64\n",
        ("host", 2 * GIB, None, None),
    ),
}
NONE_OF_IT = [
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a "
    "non-contiguous input.",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: an illegal memory access was encountered" + ASYNC,
    "CUDA error: device-side assert triggered" + ASYNC,
    "libgomp.so.1: cannot allocate memory in static TLS block",
    "libgomp.so.1: Cannot allocate memory in static TLS block",
    "out of resource: shared memory, Required: 147456, Hardware limit: 101376",
    "unable to allocate shared memory(shm) for file </torch_12_34>: No space left on device (28)",
    "mat1 and mat2 shapes cannot be multiplied (8x16 and 8x16)",
    "could not create a primitive descriptor for a matmul primitive",
    "",
]


@pytest.mark.parametrize("case", TEXTS)
def test_texts_of_memory_that_ran_out(case):
    text, expected = TEXTS[case]
    found = parse_out_of_memory(text)
    assert (found.source, found.asked_bytes, found.free_bytes, found.limit_bytes) == expected


@pytest.mark.parametrize("text", NONE_OF_IT)
def test_texts_of_something_else(text):
    assert parse_out_of_memory(text) is None
    assert not is_shortage(RuntimeError(text))


def chained(error, *, cause=None, context=None):
    error.__cause__, error.__context__ = cause, context
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(TEXTS["torch 2"][0]),
        torch.OutOfMemoryError("words that nobody has seen yet"),
        torch.AcceleratorError(TEXTS["the runtime"][0]),
        RuntimeError(TEXTS["cuBLAS"][0]),
        MemoryError(),
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        chained(ValueError("a checkpoint that is none"), cause=MemoryError()),
        chained(ValueError("while that was handled"), context=RuntimeError(TEXTS["oneDNN"][0])),
        chained(InputError("cannot be read"), cause=OSError(errno.ENOMEM, "mmap")),
        chained(
            RuntimeError("outermost"), cause=chained(KeyError("between"), context=MemoryError())
        ),
    ],
)
def test_errors_that_are_memory(error):
    assert is_shortage(error)


@pytest.mark.parametrize(
    "error",
    [
        # a refusal of ours, with sizes and all, is none: nothing was tried
        InputError("the embeddings of 5 images need 12 bytes, found 7 free; out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        chained(RuntimeError("a shape"), cause=KeyError("x")),
    ],
)
def test_errors_that_are_not(error):
    assert not is_shortage(error)
    assert shortage_behind(error, CPU) is None


def test_a_circle_of_causes_ends():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_shortage(one)


def test_sizes_of_real_refusals(monkeypatch):
    """Torch's and numpy's own errors, asked for more than any machine has."""
    room = MemoryLimit(7 * GIB, 8 * GIB, "control group /x", None)
    monkeypatch.setattr(shortage_module, "tightest_limit", lambda: room)
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.uint8)
    found = shortage_behind(refused.value, CPU)
    assert (found.source, found.asked_bytes) == ("host", 2**50)
    assert (found.free_bytes, found.limit_bytes) == (7 * GIB, 8 * GIB)
    with pytest.raises(MemoryError) as refused:
        np.zeros(3 * 2**47 + 1, dtype=np.float32)
    assert shortage_behind(refused.value, CPU).asked_bytes == (3 * 2**47 + 1) * 4, "to the byte"


@pytest.mark.parametrize(("least", "free"), [(GIB, GIB), (None, None)])
def test_what_was_given_back_meanwhile_was_not_free(monkeypatch, least, free):
    """No more can have been free than was asked for and refused."""
    monkeypatch.setattr(
        shortage_module, "tightest_limit", lambda: MemoryLimit(7 * GIB, 8 * GIB, "x", least)
    )
    error = RuntimeError(f"can't allocate memory: you tried to allocate {6 * GIB} bytes.")
    assert shortage_behind(error, CPU).free_bytes == free


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(11, "")])
@pytest.mark.parametrize(
    ("rooms", "memory"),
    [
        ([], False),
        ([MemoryLimit(GIB, 2 * GIB, "RLIMIT_AS")], False),
        ([MemoryLimit(MIB, GIB, "x")], True),
    ],
)
def test_a_thread_that_does_not_start(monkeypatch, error, rooms, memory):
    """There may be too many of them; it is memory where a limit leaves no room for its stack."""
    monkeypatch.setattr(shortage_module, "process_limits", lambda: rooms)
    assert is_shortage(error) == memory


def test_the_card_is_asked_what_its_error_did_not_tell(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    found = shortage_behind(torch.AcceleratorError("CUDA error: out of memory"), "cuda:0")
    assert (found.free_bytes, found.limit_bytes) == (GIB, 80 * GIB)

    def broken(device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    found = shortage_behind(torch.AcceleratorError("CUDA error: out of memory"), "cuda:0")
    assert (found.source, found.free_bytes) == ("cuda", None)


def test_a_checkpoint_that_memory_is_short_for_is_not_damaged(tmp_path, monkeypatch):
    """A damaged one is thrown away."""
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(UnusableError):
        read_checkpoint(path)

    def short(*_args, **_options):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("kdbench.worker.checkpoints.files.safe_open", short)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        read_checkpoint(path)


class NoRoom(Events):
    def emit(self, event, **values):
        raise MemoryError


def test_the_end_cannot_even_be_told(tmp_path, capfd):
    code = job_module._report_failure(NoRoom(tmp_path / "events.jsonl"), MemoryError(), CPU)
    assert code == job_module.REPORTED
    log = tmp_path / "log"
    log.write_text(capfd.readouterr().err)
    assert ended(log, returncode=code).status == "oom"


def ended(log, *events, **outcome):
    whole = {"returncode": 1, "wall_seconds": 1.0, "events": ()} | outcome
    return judge_outcome(ProcessResult(**whole), {"end": [event for event in events if event]}, log)


ABORTED = (
    "terminate called after throwing an instance of 'c10::Error'\n"
    "  what():  [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
    "memory: you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)\n"
    "Exception raised from alloc_cpu at /pytorch/c10/core/impl/alloc_cpu.cpp:127 (most recent call "
    "first):\n" + "".join(f"frame #{n}: <unknown function> + 0x{n:x}\n" for n in range(60))
)


@pytest.mark.parametrize(
    ("words", "returncode", "status", "asked"),
    [
        ("Traceback (most recent call last):\n  x\nMemoryError\n", 1, "oom", None),
        (
            "terminate called after throwing an instance of 'std::bad_alloc'\n"
            "  what():  std::bad_alloc\n",
            -signal.SIGABRT,
            "oom",
            None,
        ),
        (ABORTED, -signal.SIGABRT, "oom", 4096),
        ("Traceback:\nMemoryError\n" + "and went on\n" * 9 + "KeyError: 'x'\n", 1, "failed", None),
        ("MemoryError\n", -signal.SIGKILL, "killed", None),
        ("MemoryError\n", -signal.SIGSEGV, "killed", None),
        ("free(): invalid pointer\n", -signal.SIGABRT, "killed", None),
        ("can't start new thread\n", 1, "failed", None),
    ],
)
def test_last_words(tmp_path, monkeypatch, words, returncode, status, asked):
    monkeypatch.setattr(outcome, "process_limits", list)
    log = tmp_path / "log"
    log.write_text(words)
    end = ended(log, returncode=returncode)
    columns = end.columns()
    assert end.status == status, end.error
    assert len(end.error.splitlines()) == 1
    assert len(end.error) < 1000
    if status == "oom":
        assert (columns["oom_source"], columns["oom_asked_bytes"]) == ("host", asked)
        assert columns["oom_free_bytes"] is None


def test_a_library_that_has_no_room_under_a_limit(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.write_text("ImportError: libx.so: failed to map segment from shared object\n")
    monkeypatch.setattr(outcome, "process_limits", list)
    assert ended(log).status == "failed", "a mount that forbids it says the same"
    monkeypatch.setattr(outcome, "process_limits", lambda: [MemoryLimit(0, GIB, "RLIMIT_AS")])
    assert "1.07 GB (RLIMIT_AS)" in ended(log).error


ONE, NONE = OomKills(1, "control group /x"), OomKills(0, "control group /x")
FAILED = {"status": "failed", "error": "WorkerError: a process that decodes images died"}
DIED = FAILED | {"child_died": True}


@pytest.mark.parametrize(
    ("outcome", "told", "status"),
    [
        ({"returncode": -9, "kills": ONE}, None, "oom"),
        ({"returncode": -9, "kills": NONE}, None, "killed"),
        ({"returncode": -9, "kills": None}, None, "killed"),
        ({"returncode": -9, "kills": ONE, "problem": "its warm process was killed"}, None, "oom"),
        ({"returncode": -9, "kills": NONE, "problem": "its warm process ended"}, None, "failed"),
        # the signal was ours, whoever else was ended meanwhile
        ({"returncode": -9, "kills": ONE, "timed_out": "not done after 1 s"}, None, "timeout"),
        ({"returncode": -9, "kills": ONE, "stopped": "stopped by the user"}, None, "interrupted"),
        ({"returncode": -15, "kills": ONE}, None, "killed"),
        ({"returncode": 0, "kills": ONE}, {"status": "ok"}, "ok"),
        ({"returncode": 1, "kills": ONE}, FAILED, "failed"),
        ({"returncode": 1, "kills": ONE}, DIED, "oom"),
        ({"returncode": 1, "kills": NONE}, DIED, "failed"),
    ],
)
def test_what_the_killers_count_means(tmp_path, outcome, told, status):
    end = ended(tmp_path / "no log", told, **outcome)
    assert end.status == status, end.error
    assert end.columns().get("oom_source") == ("kernel" if status == "oom" else None)
    if told is DIED and status == "oom":
        assert "fewer data.workers" in end.error


def test_a_process_that_prepares_data_has_died():
    torchs = RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. ")
    assert child_died(torchs)
    assert child_died(chained(WorkerError("a process that decodes images died"), cause=torchs))
    assert not child_died(RuntimeError("killed"))
