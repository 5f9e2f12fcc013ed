"""The same from a notebook: load, run, read."""

import pytest

import kdbench
from kdbench.common.errors import InputError

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_load_run_read(tiny, tmp_path):
    matrix = kdbench.load_matrix(tiny, only=["method=embed-kd"])
    run = kdbench.run(matrix, out=tmp_path / "here", device="cpu")
    assert run.failed == []
    assert run.folder == tmp_path / "here" / "tiny"
    assert run.results.cells["label"].tolist() == ["embed-kd/small/8px/dwarf"]
    read = kdbench.load_results(tmp_path / "here")
    assert read.cells["run_key"].tolist() == run.results.cells["run_key"].tolist()
    assert set(read.steps["phase"]) == {"warmup", "measure", "account"}


def test_errors_are_exceptions_with_the_same_message(tiny):
    with pytest.raises(InputError, match="unknown preset 'x'") as error:
        kdbench.load_matrix(tiny, preset="x")
    assert error.value.exit_code == 2
    with pytest.raises(InputError, match="cuda:9"):
        kdbench.run(tiny, device="cuda:9")


def test_what_there_is():
    assert set(dir(kdbench)) >= {"load_matrix", "load_results", "run", "__version__"}
    with pytest.raises(AttributeError, match="nothing_such"):
        kdbench.nothing_such  # noqa: B018
