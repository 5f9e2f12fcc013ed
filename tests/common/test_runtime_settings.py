"""What of the environment decides figures: recorded, part of a run's key, and never mixed."""

import pandas as pd
import pytest

from kdbench.analysis.environments import Environment
from kdbench.common.runtime_settings import (
    PRECISION,
    THREADS,
    changed_settings,
    memory_settings,
    processor_limit,
    requested_threads,
    runtime_settings,
)
from kdbench.gate.baseline import read_baseline, render
from kdbench.gate.comparability import check_comparability
from kdbench.gate.snapshot import About, Entry, Snapshot
from kdbench.runner.process.launcher import worker_environment
from tests.conftest import ALONE, TINY

DECIDING = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "CUBLASLT_WORKSPACE_SIZE": "4096",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "CUDA_LAUNCH_BLOCKING": "1",
    "CUDA_MODULE_LOADING": "EAGER",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "KMP_AFFINITY": "granularity=fine,compact,1,0",
    "KMP_BLOCKTIME": "0",
    "MKL_CBWR": "AVX2",
    "MKL_DYNAMIC": "FALSE",
    "OMP_PROC_BIND": "close",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTORCH_ALLOC_CONF": "max_split_size_mb:64",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_HIP_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    "TORCH_BLAS_PREFER_CUBLASLT": "1",
    "TORCH_CUBLAS_WORKSPACE_CACHE": "0",
    "TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT": "5",
}
FINDING = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "CUDA_HOME": "/cuda",
    "CUDA_VERSION": "12.9",
    "CUDA_VISIBLE_DEVICES": "GPU-1",
    "DNNL_VERBOSE": "1",
    "KMP_WARNINGS": "0",
    "OMP_DISPLAY_ENV": "TRUE",
    "PYTORCH_VERSION": "2",
    "TORCHINDUCTOR_CACHE_DIR": "/cache",
    "TORCH_HOME": "/torch",
    "TORCH_LOGS": "dynamo",
    "XDG_CACHE_HOME": "/cache",
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_decides_reaches_the_worker_and_is_recorded(name):
    passed = worker_environment({name: DECIDING[name]}, network=False)
    assert passed[name] == DECIDING[name]
    assert runtime_settings(passed) == f"{name}={DECIDING[name]}"


@pytest.mark.parametrize("name", FINDING)
def test_what_finds_things_is_no_setting(name):
    passed = worker_environment({name: FINDING[name]}, network=False)
    assert runtime_settings(passed) is None


@pytest.mark.parametrize(
    "name", [*PRECISION, "PYTORCH_HUB_TOKEN", "CUDA_API_KEY", "TORCH_SECRET", "MKL_PASSWORD"]
)
def test_what_is_kept_from_the_worker_is_no_setting(name):
    assert name not in worker_environment({name: "1"}, network=False)
    assert runtime_settings({name: "1"}) is None


@pytest.mark.parametrize("name", THREADS)
def test_threads_are_told_by_their_number(name):
    assert runtime_settings({name: "2"}) is None


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_value_sets_nothing(empty):
    assert runtime_settings({"KMP_AFFINITY": empty}) is None


def test_settings_are_one_text_whatever_their_order_and_spaces():
    told = {"PYTORCH_ALLOC_CONF": "a:1, b:2\x1b", "KMP_BLOCKTIME": " 0 "}
    written = "KMP_BLOCKTIME=0 PYTORCH_ALLOC_CONF=a:1,b:2\\x1b processors=1.5"
    assert runtime_settings(told, "1.5") == written
    assert runtime_settings(dict(reversed(told.items())), "1.5") == written
    assert memory_settings(written) == "PYTORCH_ALLOC_CONF=a:1,b:2\\x1b"
    assert changed_settings(written, "KMP_BLOCKTIME=1") == (
        "KMP_BLOCKTIME=1, PYTORCH_ALLOC_CONF is not set, processors is not set"
    )


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "torch's default for 8 processors"),
        ({"OMP_NUM_THREADS": "2"}, "2"),
        ({"MKL_NUM_THREADS": "2"}, "2"),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, "2"),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "4"}, "OMP_NUM_THREADS=2, MKL_NUM_THREADS=4"),
        ({"OMP_NUM_THREADS": " 4,2 "}, "4"),
        ({"OMP_NUM_THREADS": "many"}, "torch's default for 8 processors"),
        ({"OMP_NUM_THREADS": "0"}, "torch's default for 8 processors"),
    ],
)
def test_how_many_threads_are_asked_for(environment, told):
    assert requested_threads(environment, 8) == told


@pytest.mark.parametrize(
    ("files", "usable", "told"),
    [
        ({}, 8, None),
        ({}, 3, "3"),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 8, "1.5"),
        ({"sys/fs/cgroup/a/cpu.max": "400000 100000"}, 3, "3"),
        ({"sys/fs/cgroup/a/cpu.max": "900000 100000"}, 8, None),
        (
            {
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            8,
            "0.5",
        ),
    ],
)
def test_fewer_processors_than_the_machine_has_are_told(files, usable, told, tmp_path):
    group = "4:cpu,cpuacct:/a" if any("cpuacct" in name for name in files) else "0::/a"
    for name, text in {"proc/self/cgroup": group, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor_limit(usable, 8, tmp_path) == told


def test_other_threads_and_settings_are_other_runs(kdbench, tmp_path, monkeypatch, forked_workers):
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("threads = 1\n", ""))
    command = ("run", "--matrix", path, "--device", "cpu", "--out", tmp_path / "out", *ALONE)

    def run(**settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        said = kdbench(*command)
        assert said.code == 0, said.err
        return " ".join((said.out + said.err).split())

    assert "measured before" not in run(OMP_NUM_THREADS="1")
    assert "otherwise (other threads: 1 then, 2 now: 1)" in run(OMP_NUM_THREADS="2")
    changed = run(CUBLAS_WORKSPACE_CONFIG=":16:8", NVIDIA_TF32_OVERRIDE="1")
    assert "(other runtime settings: CUBLAS_WORKSPACE_CONFIG=:16:8: 1)" in changed
    assert "NVIDIA_TF32_OVERRIDE is kept from the cells" in changed
    assert "1 cell is there already" in run()

    cells = pd.read_parquet(tmp_path / "out/tiny/cells").sort_values("started_at")
    assert cells["threads"].tolist() == [1, 2, 2]
    settings = cells["runtime_settings"].fillna("").tolist()
    assert ["CUBLAS_WORKSPACE_CONFIG=:16:8" in told for told in settings] == [False, False, True]
    rows = cells.astype(object).where(cells.notna(), None).to_dict("records")
    assert len({Environment.of(row) for row in rows}) == 3
    shown = kdbench("show", tmp_path / "out/tiny")
    assert shown.out.count("student-only/small/8px") >= 3, "one table for each"
    assert "with CUBLAS_WORKSPACE_CONFIG=:16:8" in " ".join(shown.out.split())


ABOUT = About(
    matrix="tiny",
    source="measured",
    schema_version=6,
    torch_version="2",
    device="cuda:0",
    threads=2,
    cpu_model="a",
)


def about(settings):
    return About(**{**vars(ABOUT), "runtime_settings": settings})


@pytest.mark.parametrize(
    ("settings", "barred"),
    [
        (None, set()),
        ("processors=2", {"time", "advisory"}),
        ("CUBLAS_WORKSPACE_CONFIG=:16:8", {"time", "advisory", "exact"}),
    ],
)
def test_a_gate_does_not_compare_across_settings(settings, barred):
    found = check_comparability(ABOUT, about(settings))
    assert set(found.reasons) == barred
    assert all("runtime_settings" in why for why in found.reasons.values())


def test_a_baseline_keeps_settings_and_says_nothing_of_none(tmp_path):
    path = tmp_path / "baseline.txt"
    for settings in (None, "A=1 B=2"):
        text = render(Snapshot(about(settings), {"a": Entry({}, {"step_seconds": (1.0,)})}))
        assert ("runtime_settings" in text) == (settings is not None)
        path.write_text(text)
        assert read_baseline(path).about.runtime_settings == settings
