"""`kdbench predict` on a terminal: Ctrl-C is reported, and a stream that is none sees no bar."""

import pytest

from kdbench.cli import STOPPED
from kdbench.runner import prediction


@pytest.fixture
def stopped(monkeypatch):
    def stop(matrix, *, profile, fits_bytes, tell):
        tell(None)
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "predict_matrix", stop)


@pytest.mark.usefixtures("stopped")
def test_ctrl_c_says_that_nothing_is_kept(kdbench, tiny, tmp_path):
    done = kdbench("predict", tiny, "--out", tmp_path / "results")
    assert (done.code, done.out) == (STOPPED, "")
    assert done.err == "interrupted; no prediction is kept\n"
    assert not (tmp_path / "results").exists()
