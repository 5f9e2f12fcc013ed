"""The script that gathers evidence on a GPU, rehearsed on the CPU with the tiny matrix."""

import gzip
import json
import subprocess
import sys
import tarfile

from tests.support import REPOSITORY


def test_rehearsal(tiny, tmp_path):
    archive = tmp_path / "evidence.tar.gz"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.gpu",
            "--device",
            "cpu",
            "--matrix",
            str(tiny),
            "--out",
            str(tmp_path / "reference"),
            "--archive",
            str(archive),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        files = [name for name in names if name.startswith("cpu/histories/")]
        predicted = json.loads(packed.extractfile("cpu/predicted-tiny.json").read())
        told = [json.loads(gzip.decompress(packed.extractfile(name).read())) for name in files]
    for name in ("doctor.txt", "run.txt", "show.txt", "plot.txt", "tiny/figures/fig4.png"):
        assert f"cpu/{name}" in names
    assert sorted(cell["label"].split("/")[0] for cell in told) == ["embed-kd", "teacher-kd"]
    for cell in told:
        scratch = cell["scratch_bytes"]
        assert 0 <= cell["second_peak_bytes"] - scratch - cell["ledger_peak_bytes"] <= 4096
        assert cell["steps"] is None, "no card, no history"
    assert {row["metric"] for row in predicted} == {"allocated_peak_bytes", "precompute_peak_bytes"}
    assert {row["difference"] for row in predicted} == {0}, "on a CPU, to the byte"
    assert sum(name.startswith("cpu/tiny/cells/") for name in names) == 3  # two runs, one empty


def test_what_fails_is_told_and_packed(tmp_path):
    archive = tmp_path / "evidence.tar.gz"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.gpu",
            "--device",
            "cpu",
            "--matrix",
            "nowhere.toml",
            "--out",
            str(tmp_path),
            "--archive",
            str(archive),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "failed: allocations, run, show, plot, predict, predicted" in done.stdout
    with tarfile.open(archive) as packed:
        assert "cpu/run.txt" in packed.getnames()
