"""The gate, through the command line: what fails it, what it cannot tell, and what it says."""

import json

import pytest

import kdbench as library
from kdbench.common.units import parse_size
from kdbench.matrix.file import load_matrix
from kdbench.spec.gated_metrics import GATED_METRICS, Tolerances
from kdbench.store.schema import SCHEMA_VERSION
from tests.cli.test_imports import HEAVY, imported_by
from tests.conftest import TINY
from tests.support.gated import EMBED, MB, TEACHER


def test_nothing_changed_holds(predicted):
    done = predicted()
    assert done.code == 0
    assert done.out.splitlines() == [
        f"tiny: predicted for cpu, against {predicted.path}",
        "",
        "held: 14 held; 2 cells",
    ]


def test_one_byte_more_fails_and_names_what_grew(predicted, predictor):
    predictor.memory = {TEACHER: {"activations": 50 * MB + 1}}
    done = predicted()
    assert done.code == 1
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert TEACHER in lines
    assert EMBED not in lines
    assert "regressed allocated_peak_bytes 70.0 MB → 70.0 MB +1 B +<0.01%" in lines
    assert "activations +1 B: student.blocks.*.mlp +1 B" in lines
    assert lines[-1] == "regressed: 1 regressed, 13 held; 2 cells"


def test_layers_of_one_kind_are_told_together_and_shrinking_ones_not_at_all(predicted, predictor):
    layers = {f"activations {n}": 2 * MB for n in range(1, 6)}
    predictor.memory = {TEACHER: {**layers, "activations": 50 * MB, "parameters": 19 * MB}}
    done = predicted()
    assert done.code == 1
    told = [line.strip() for line in done.out.splitlines() if "mlp" in line]
    assert told == ["activations +10,000,000 B: student.blocks.*.mlp +10,000,000 B (5 of them)"]
    report = json.loads(predicted("--format", "json").out)
    (found,) = [f for f in report["findings"] if f["metric"] == "allocated_peak_bytes"][:1]
    changes = [(part["category"], part["after"] - part["before"]) for part in found["growth"]]
    assert changes == [*[("activations", 2 * MB)] * 5, ("parameters", -MB)]


def test_growth_that_no_category_explains_is_said_to_be_so(predicted, predictor):
    predictor.changes = {EMBED: {"allocated_peak_bytes": 71 * MB}}
    assert "no category grew: it lies in the allocator" in predicted().out


@pytest.mark.parametrize(
    "metric", ["flops_step", "operations_step", "bytes_moved_step", "precompute_peak_bytes"]
)
def test_more_work_fails_as_more_bytes_do(predicted, predictor, metric):
    predictor.changes = {EMBED: {metric: 10**12}}
    done = predicted()
    assert done.code == 1
    assert f"regressed  {metric}" in done.out


def test_an_improvement_passes_and_asks_for_a_tighter_baseline(predicted, predictor):
    predictor.memory = {TEACHER: {"activations": 40 * MB}}
    done = predicted()
    assert done.code == 0
    assert "improved  allocated_peak_bytes" in done.out
    assert "-10,000,000 B  -14.29%" in done.out
    assert "--update tightens the baseline" in done.out
    assert predicted("--update").code == 0
    predictor.memory = {}
    assert predicted().code == 1


@pytest.mark.parametrize(
    ("tolerance", "grown", "code"),
    [
        ('"1 MiB"', 2**20, 0),
        ('"1 MiB"', 2**20 + 1, 1),
        ("0.1", 7 * MB, 0),
        ("0.1", 7 * MB + 1, 1),
        ('"off"', 10**9, 0),
    ],
)
def test_tolerances_are_kept_to_the_byte(predicted, predictor, tolerance, grown, code):
    predictor.changes = {TEACHER: {"allocated_peak_bytes": 70 * MB + grown}}
    done = predicted("--set", f"tolerances.allocated_peak_bytes={tolerance}")
    assert done.code == code
    off = "not compared, by [tolerances]: allocated_peak_bytes"
    assert (off in done.out) == (tolerance == '"off"')


def test_growth_within_tolerance_is_measured_from_the_baseline_each_time(predicted, predictor):
    for grown, code in ((MB, 0), (2 * MB, 0), (3 * MB, 1)):
        predictor.changes = {TEACHER: {"allocated_peak_bytes": 70 * MB + grown}}
        done = predicted("--set", 'tolerances.allocated_peak_bytes="2 MB"')
        assert done.code == code


def test_a_changed_setting_is_compared_and_named(predicted):
    done = predicted("--set", "training.batch_size=16")
    assert done.code == 0
    assert done.out.count("changed: batch_size 8 → 16") == 0  # nothing to tell: all held
    report = json.loads(predicted("--format", "json", "--set", "training.batch_size=16").out)
    assert report["changed_settings"][TEACHER] == {"batch_size": {"before": "8", "after": "16"}}


def test_a_changed_setting_without_a_column_is_named_too(predicted, predictor):
    predictor.changes = {TEACHER: {"allocated_peak_bytes": 80 * MB}}
    done = predicted("--set", "training.weight_decay=0.2")
    assert done.code == 1
    assert "changed: settings that have no column (cell_id" in done.out


# ----------------------------------------------------------------- what cannot be compared


def test_cells_that_one_side_has_alone(predicted):
    done = predicted("--preset", "control")
    assert done.code == 3
    assert "student-only/small/8px\n  not comparable: not in the baseline; --update adds it" in (
        done.out
    )
    assert predicted("--preset", "control", "--update").code == 0
    done = predicted()
    assert done.code == 3
    assert "not comparable: in the baseline, and not there now" in done.out


def test_a_renamed_cell_is_found_again(predicted, tiny):
    tiny.write_text(tiny.read_text().replace("dwarf", "dwarfs"))
    done = predicted()
    assert done.code == 3
    assert f"did you mean '{TEACHER}s'" in done.out


def test_only_leaves_the_others_out_of_both_sides(predicted, predictor):
    done = predicted("--only", "method=embed-kd")
    assert done.code == 0
    assert done.out.endswith("held: 8 held; 1 cell\n")


def test_only_by_a_changed_setting_still_compares(predicted):
    done = predicted("--set", "training.batch_size=16", "--only", "batch_size=16")
    assert (done.code, "2 cells" in done.out) == (0, True)


def test_another_torch_is_not_compared_and_another_build_of_it_is(predicted, predictor):
    predictor.every = {"torch_version": "2.14.0+cpu"}
    done = predicted()
    assert done.code == 3
    assert "exact figures: torch_version was 2.13.0+cpu and is 2.14.0+cpu" in done.out
    predictor.every = {"torch_version": "2.13.0"}
    done = predicted()
    assert done.code == 0
    assert "another build of torch: torch_version was 2.13.0+cpu and is 2.13.0" in done.out


def test_profiles_are_not_mixed(predicted, predictor):
    done = predicted("--profile", "h100")
    assert done.code == 3
    assert "the baseline is for the profile 'cpu', this for 'h100'" in done.out
    predictor.every = {"environment": json.dumps({"profile_digest": "other"})}
    done = predicted()
    assert done.code == 3
    assert "the profile 'cpu' says other things than it did" in done.out


def test_the_baselines_profile_is_the_default(predicted, predictor):
    assert predicted("--profile", "h100", "--update").code == 0
    assert predicted().code == 0
    assert predictor.asked == [None, "h100", "h100"]
    assert "metric " + TEACHER + " reserved_peak_bytes 80000000" in predicted.path.read_text()


def test_reserved_bytes_of_a_prediction_are_exact(predicted, predictor):
    predicted("--profile", "h100", "--update")
    predictor.every = {"reserved_peak_bytes": 82 * MB}
    done = predicted()
    assert done.code == 1
    assert "regressed  reserved_peak_bytes" in done.out


def test_another_schema_is_not_compared(predicted):
    text = predicted.path.read_text()
    now = f"about schema_version {SCHEMA_VERSION}"
    assert now in text
    predicted.path.write_text(text.replace(now, "about schema_version 3"))
    done = predicted()
    assert done.code == 3
    assert "the baseline is of schema version 3, this kdbench's is" in done.out


def test_a_figure_that_is_gone_or_new_is_not_passed_over(predicted, predictor):
    predictor.changes = {EMBED: {"flops_step": None}}
    done = predicted()
    assert done.code == 3
    assert "in the baseline, and without a value now" in done.out
    assert predicted("--update").code == 0
    predictor.changes = {}
    done = predicted()
    assert done.code == 3
    assert "not in the baseline; --update adds it" in done.out


def test_a_figure_of_a_later_kdbench_is_told(predicted):
    text = predicted.path.read_text().replace(f"metric {EMBED} flops_step", f"metric {EMBED} new")
    predicted.path.write_text(text)
    done = predicted()
    assert done.code == 3
    assert "a figure that this kdbench does not know" in done.out


def test_a_gate_that_compares_nothing_never_passes(predicted):
    off = [f'--set=tolerances.{name}="off"' for name in GATED_METRICS]
    done = predicted(*off)
    assert done.code == 3
    assert "no figure that could be compared" in done.out


def test_a_regression_counts_more_than_what_cannot_be_told(predicted, predictor):
    predictor.memory = {TEACHER: {"activations": 60 * MB}}
    assert predicted("--preset", "control").code == 1


# ----------------------------------------------------------------- failures


def test_a_failed_cell_fails_with_its_error(predicted, predictor):
    predictor.changes = {EMBED: {"status": "failed", "error": "no such kernel"}}
    done = predicted()
    assert done.code == 1
    assert "failed: failed: no such kernel" in done.out
    assert "in the baseline, and not there now" not in done.out
    assert done.out.rstrip().endswith("failed: 1 failed, 6 held; 2 cells")


def test_nothing_is_written_where_a_cell_failed(predicted, predictor):
    before = predicted.path.read_bytes()
    predictor.changes = {EMBED: {"status": "oom", "error": "out of memory"}}
    done = predicted("--update")
    assert done.code == 1
    assert f"failed: {EMBED}: oom: out of memory" in done.err
    assert "the baseline stays as it was: a cell failed" in done.err
    assert predicted.path.read_bytes() == before


def test_caveats_are_told(predicted, predictor):
    predictor.every = {"caveats": "convolution workspaces"}
    done = predicted()
    assert done.code == 0
    assert f"outside of what was verified, convolution workspaces: {TEACHER}, {EMBED}" in done.out


# ----------------------------------------------------------------- updates


def test_an_update_says_what_changed_and_leaves_the_rest_alone(predicted, predictor):
    before = predicted.path.read_text()
    stamp = predicted.path.stat().st_mtime_ns
    done = predicted("--update")
    assert (done.code, done.err) == (0, "the baseline stays as it was: nothing changed\n")
    assert predicted.path.stat().st_mtime_ns == stamp
    predictor.memory = {TEACHER: {"activations": 60 * MB}}
    done = predicted("--update")
    assert done.code == 0
    assert "regressed  allocated_peak_bytes" in done.out
    assert done.err == "the baseline is written: 2 lines added, 2 removed\n"
    after = predicted.path.read_text()
    assert len(set(after.splitlines()) - set(before.splitlines())) == 2
    assert predicted().code == 0


def test_an_update_of_some_cells_keeps_the_lines_of_the_others(predicted, predictor):
    before = predicted.path.read_text()
    predictor.memory = {TEACHER: {"activations": 60 * MB}, EMBED: {"activations": 60 * MB}}
    assert predicted("--update", "--only", "method=embed-kd").code == 0
    after = predicted.path.read_text()
    kept = [line for line in before.splitlines() if TEACHER in line]
    assert kept
    assert [line for line in after.splitlines() if TEACHER in line] == kept
    assert f"metric {EMBED} allocated_peak_bytes 80000000" in after
    predictor.every = {"torch_version": "2.14.0"}
    done = predicted("--update", "--only", "method=embed-kd")
    assert done.code == 2
    assert "the other 1 cells of the baseline were predicted for cpu under torch" in done.err


def test_a_file_that_is_no_baseline_is_never_replaced(kdbench, predictor, tiny, tmp_path):
    done = kdbench("check", "--matrix", tiny, "--baseline", tiny, "--update")
    assert done.code == 2
    assert "not a baseline" in done.err
    assert tiny.read_text() == TINY
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert kdbench("check", "--matrix", tiny, "--baseline", empty, "--update").code == 0
    whole = empty.read_text()
    empty.write_text(whole[:-30])
    done = kdbench("check", "--matrix", tiny, "--baseline", empty, "--update")
    assert done.code == 0
    assert "the old baseline could not be read, and all is new: " in done.err
    assert empty.read_text() == whole


# ----------------------------------------------------------------- usage and broken input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--baseline", "b.txt"], "nothing to check; --matrix FILE predicts"),
        (["--baseline", "b.txt", "--preset", "x"], "these are laid over a matrix file"),
        (["results", "--baseline", "b.txt", "--profile", "cpu"], "a profile is of predictions"),
        (
            ["--matrix", "tiny.toml", "--baseline", "b.txt", "--environment", "x"],
            "an environment is of results",
        ),
        (["--matrix", "tiny.toml", "--baseline", "b.txt"], "b.txt: no baseline there; the same"),
        (["--matrix", "none.toml", "--baseline", "b.txt"], "cannot read the matrix file"),
        (
            ["--matrix", "tiny.toml", "--baseline", "b.txt", "--format", "jsn"],
            "found 'jsn'; did you mean 'json'?",
        ),
        (["results", "--baseline", "b.txt"], "b.txt: no baseline there"),
        (
            ["--matrix", "tiny.toml", "--baseline", "b.txt", "--update", "--profile", "h1000"],
            "no device profile 'h1000'",
        ),
    ],
)
def test_usage_is_told_and_nothing_is_written(kdbench, tiny, tmp_path, arguments, expected):
    before = sorted(tmp_path.iterdir())
    done = kdbench("check", *arguments)
    assert done.code == 2
    assert expected in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("allocated_peak_byte=0", "no figure of this name; did you mean 'allocated_peak_bytes'"),
        ("step_seconds_median=0.1", "no figure of this name; did you mean 'step_seconds'"),
        ("step_seconds=0", "expected more than 0"),
        ("step_seconds='1 MiB'", 'expected a fraction up to 1 (0.05: 5 %), or "off"'),
        ("flops_step=5", 'expected a fraction up to 1 (0.05: 5 %), or "off", found 5'),
        ("flops_step=true", "found True"),
        ("flops_step=nan", "found nan"),
        ("parameter_bytes='1 MX'", "expected a size such as '24 GiB'"),
        ("parameter_bytes=-0.1", 'or a size in quotes ("1 MiB"), or "off", found -0.1'),
        ("parameter_bytes={}", "found {}"),
    ],
)
def test_a_tolerance_that_none_can_have_is_told(kdbench, tiny, assignment, expected):
    done = kdbench("cells", "--matrix", tiny, "--set", f"tolerances.{assignment}")
    assert done.code == 2
    assert f"tolerances.{assignment.partition('=')[0]}: " in done.err
    assert expected in done.err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512 B", 512),
        ("24GiB", 24 * 2**30),
        (" 1.5 MB ", 1_500_000),
        ("0.1 KiB", 102),
        ("1 TB", 10**12),
        ("1 mb", 10**6),
        ("24gib", 24 * 2**30),
        ("16G", 16 * 10**9),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "MiB", "1 m B", "-1 B", "1e3 B", "nan B", "1_0 B", "1 B B"]
)
def test_what_is_no_size_is_told(text):
    with pytest.raises(ValueError, match="expected a size such as '24 GiB'"):
        parse_size(text)


def test_tolerances_are_no_part_of_what_is_computed(kdbench, tiny):
    plain = kdbench("cells", "--matrix", tiny).out
    assert kdbench("cells", "--matrix", tiny, "--set", "tolerances.step_seconds=0.2").out == plain


# ----------------------------------------------------------------- the real thing


# a student alone needs no transformers, whose import takes seconds
ALONE = ("--preset", "control", "--only", "method=student-only")


def test_a_real_prediction_holds_to_the_byte_and_catches_a_larger_batch(kdbench, tiny, tmp_path):
    path = tmp_path / "baseline.txt"
    arguments = ("check", "--matrix", tiny, *ALONE, "--baseline", path)
    assert kdbench(*arguments, "--update").code == 0
    first = path.read_bytes()
    again = kdbench(*arguments, "--update")
    assert (again.code, path.read_bytes()) == (0, first)
    assert again.err == "the baseline stays as it was: nothing changed\n"
    done = kdbench(*arguments, "--set", "training.batch_size=16", "--format", "json")
    assert done.code == 1
    report = json.loads(done.out)
    (found,) = [f for f in report["findings"] if f["metric"] == "allocated_peak_bytes"]
    assert found["outcome"] == "regressed"
    grown = {}
    for part in found["growth"]:
        change = part["after"] - part["before"]
        grown[part["category"]] = grown.get(part["category"], 0) + change
    assert max(grown, key=grown.get) == "activations"
    assert grown.get("parameters", 0) == 0


def test_the_gate_loads_no_torch(tiny, tmp_path, finished):
    code, modules = imported_by("check", "--help")
    assert (code, set(HEAVY) & set(modules)) == (0, set())
    measured = [finished, "--baseline", tmp_path / "measured.txt"]
    for arguments, expected in (
        (["--matrix", tiny, *ALONE, "--baseline", tmp_path / "predicted.txt", "--update"], 0),
        ([*measured, "--update"], 0),
        (measured, 3),  # one process can tell nothing of time
    ):
        code, modules = imported_by("check", *arguments)
        assert not {"torch", "transformers", "matplotlib"} & set(modules)
        assert code == expected


def test_the_library_checks_as_the_command_line_does(predictor, tiny, tmp_path):
    asked = library.Gate(baseline=tmp_path / "baseline.txt", matrix=load_matrix(tiny))
    assert library.update_baseline(asked).written
    report = library.check(asked)
    assert (report.exit_code, report.outcome) == (0, "held")
    assert asked.tolerances == Tolerances()
