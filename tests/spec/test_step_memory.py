"""What a step was found to need, held against a limit and against a record."""

import math
from dataclasses import replace

import pytest

from kdbench.common.errors import InputError
from kdbench.pytest_plugin.recorded import Record
from kdbench.spec.step_memory import StepMemory

USED = StepMemory(
    peak_bytes=1000,
    source="ledger",
    device="cpu",
    held={("activations", "model.0"): 600, ("parameters", "model.0"): 300, ("inputs", None): 100},
    flops=50,
    operations=7,
    bytes_moved=4000,
    reserved_bytes=None,
    torch_version="2.13.0",
)
GROWN = replace(USED, peak_bytes=1040, held={**USED.held, ("activations", "model.0"): 640})


# --- a limit


@pytest.mark.parametrize(
    ("limit", "tolerance"),
    [(1000, 0), ("1 kB", 0), (1e3, 0), (999, 0.01), ("900 B", "100 B"), (900, "100 B")],
)
def test_up_to_the_limit_and_its_tolerance(limit, tolerance):
    USED.assert_at_most(limit, tolerance=tolerance)


@pytest.mark.parametrize(
    ("limit", "tolerance"), [(999, 0), ("0.99 kB", 0.01), (900, "99 B"), (1, 1)]
)
def test_beyond_them(limit, tolerance):
    with pytest.raises(AssertionError, match=r"the step's peak is 1,000 B"):
        USED.assert_at_most(limit, tolerance=tolerance)


def test_a_failure_tells_by_how_much_and_what_holds_it():
    with pytest.raises(AssertionError) as raised:
        USED.assert_at_most(800)
    lines = str(raised.value).splitlines()
    assert "200 B (200 B) or 25.00% above the limit of 800 B" in lines[0]
    assert [line.split() for line in lines[1:]] == [
        ["by", "category:"],
        ["activations", "600", "B"],
        ["parameters", "300", "B"],
        ["inputs", "100", "B"],
        ["by", "module:"],
        ["model.0", "(activations)", "600", "B"],
        ["model.0", "(parameters)", "300", "B"],
    ]


def test_ten_modules_are_named_and_the_rest_summed_up():
    held = {("activations", f"model.{n:02}"): 100 + n for n in range(14)}
    with pytest.raises(AssertionError) as raised:
        replace(USED, held=held, peak_bytes=sum(held.values()) + 5).assert_at_most(1)
    told = [line.split() for line in str(raised.value).splitlines()]
    assert ["unattributed", "5", "B"] in told
    assert [line[0] for line in told if "(activations)" in line] == [
        f"model.{n:02}" for n in range(13, 3, -1)
    ]
    assert ["4", "more", "406", "B"] in told


@pytest.mark.parametrize("limit", [0, -1, True, None, "", "many", "0 B", math.nan, math.inf])
def test_no_limit(limit):
    with pytest.raises(InputError, match="kd_memory: limit: expected a"):
        USED.assert_at_most(limit)


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, True, None, "5 %", math.nan])
def test_no_tolerance(tolerance):
    with pytest.raises(InputError, match="kd_memory: tolerance: expected a"):
        USED.assert_at_most(2000, tolerance=tolerance)


# --- a record


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path / "test_train.py", "cpu")
    record.update("test_it", USED)
    return record


def test_the_file_is_beside_the_test(record, tmp_path):
    assert record.path == tmp_path / "test_train.kd_memory.cpu.txt"
    assert Record(tmp_path / "test_train.py", "cuda:1").path.name == "test_train.kd_memory.cuda.txt"
    text = record.path.read_text()
    assert "metric test_it allocated_peak_bytes 1000\n" in text
    assert "memory test_it activations model.0 steady=600\n" in text
    assert "pytest --kd-memory-update writes it anew" in text
    assert "kdbench check" not in text


def test_the_same_step_holds(record):
    told = record.compare("test_it", USED, 0)
    assert (told.failure, told.note) == ("", "")


def test_one_byte_more_fails_and_names_what_grew(record):
    failure = record.compare("test_it", GROWN, 0.039).failure
    assert "allocated_peak_bytes regressed" in failure
    assert "activations +40 B: model.* +40 B" in failure
    assert failure.endswith("pytest --kd-memory-update")
    assert record.compare("test_it", GROWN, 0.04).failure == ""
    assert record.compare("test_it", GROWN, "40 B").failure == ""
    assert record.compare("test_it", GROWN, "39 B").failure


@pytest.mark.parametrize("figure", ["flops", "operations", "bytes_moved"])
def test_more_work_fails_and_a_size_allows_none(record, figure):
    more = replace(USED, **{figure: getattr(USED, figure) + 1})
    assert f"{figure}_step regressed" in record.compare("test_it", more, 0).failure
    assert record.compare("test_it", more, "1 MB").failure
    assert record.compare("test_it", more, 0.2).failure == ""


def test_less_passes_and_is_told(record):
    record.update("test_it", GROWN)
    told = record.compare("test_it", USED, 0)
    assert told.failure == ""
    assert "improved" in told.note
    assert "--kd-memory-update tightens test_train.kd_memory.cpu.txt" in told.note


def test_a_step_that_was_not_recorded_fails(record):
    failure = record.compare("another", USED, 0).failure
    assert "not in the baseline; --kd-memory-update adds it" in failure


def test_another_torch_fails_rather_than_being_compared(record):
    failure = record.compare("test_it", replace(USED, torch_version="2.14.0"), 0).failure
    assert "torch_version was 2.13.0 and is 2.14.0" in failure


def test_a_record_of_another_torch_is_replaced_whole(record):
    record.update("another", USED)
    newer = replace(USED, torch_version="2.14.0")
    record.update("test_it", newer)
    assert record.compare("test_it", newer, 0).failure == ""
    assert "not in the baseline" in record.compare("another", newer, 0).failure


def test_a_damaged_record_fails_and_is_written_anew(record):
    record.path.write_text(record.path.read_text().replace("end ", "and "))
    with pytest.raises(InputError, match=r"cut off; restore it, or write it anew: --kd-memory-upd"):
        record.compare("test_it", USED, 0)
    record.update("test_it", USED)
    assert record.compare("test_it", USED, 0).failure == ""


def test_a_file_of_somebody_else_is_not_replaced(record):
    record.path.write_text("somebody's notes\n")
    with pytest.raises(InputError, match="not a baseline"):
        record.update("test_it", USED)
    assert record.path.read_text() == "somebody's notes\n"
