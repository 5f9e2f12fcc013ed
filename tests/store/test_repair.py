"""`kdbench doctor RESULTS`: what is wrong is named, and moved away without losing anything."""

import os

import pyarrow.parquet as pq
import pytest

from kdbench.store import Store, arrow_schema, inspection, read_table
from kdbench.store.inspection import inspect_store
from kdbench.store.schema import TABLES
from tests.support.analysis_fixtures import cell_row, commit, paper_rows
from tests.support.stores import statuses

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture
def results(tmp_path):
    """Four good runs."""
    step = {"phase": "measure", "step": 0, "started_ns": 1, "seconds": 2.0}
    commit(tmp_path / "results" / "fig4", paper_rows(), steps=[step])
    return tmp_path / "results"


def newer(part):
    schema = arrow_schema(part.parent.name).with_metadata({"kdbench_schema_version": "99"})
    pq.write_table(schema.empty_table(), part)


def test_good_results_are_good(results, kdbench):
    said = kdbench("doctor", results)
    assert said.code == 0, said
    assert f"{results}/fig4: 4 whole runs" in said.out.splitlines()
    assert inspect_store(results / "fig4").good


def test_what_is_wrong_is_named_and_moved_away(results, kdbench):
    root = results / "fig4"
    good = statuses(root)
    (root / "cells" / "0bad.parquet").write_bytes(b"PAR1 not quite")
    (root / "steps" / "0foreign.parquet").write_bytes(
        next(p for p in (root / "steps").glob("*.parquet") if p.stem != "empty").read_bytes()
    )
    newer(root / "samples" / "0newer.parquet")
    (root / "memory" / "notes.txt").write_text("mine")
    os.mkfifo(root / "epochs" / "0pipe.parquet")
    problems = {
        "cells/0bad.parquet": "damaged: ",
        "steps/0foreign.parquet": "foreign: expected the run that it is named after",
        "samples/0newer.parquet": "a newer kdbench wrote it: schema version 99",
        "memory/notes.txt": "foreign: expected parquet files alone here",
        "epochs/0pipe.parquet": "foreign: expected a file, found a link or something else",
    }
    said = kdbench("doctor", results)
    assert said.code == 1
    assert "kdbench doctor" in said.err
    assert "--repair moves these files away, and keeps them" in said.err
    assert "update kdbench to read what a newer one wrote" in said.err
    for name, problem in problems.items():
        assert any(line.startswith(f"  {root}/{name}: {problem}") for line in said.out.splitlines())
        assert (root / name).exists(), "looking changes nothing"
    mended = kdbench("doctor", results, "--repair")
    assert mended.code == 0, mended
    for name in problems:
        assert f"moved {root}/{name} to {root}/.set-aside/{name.partition('/')[0]}/" in mended.out
        assert not (root / name).exists()
    assert len(list((root / ".set-aside").glob("*/*"))) == len(problems)
    assert statuses(root) == good
    again = kdbench("doctor", results)
    assert (again.code, again.err) == (0, "")


def test_a_run_that_goes_on_is_left_alone(results, kdbench):
    store = Store(results / "fig4")
    store.spool("a" * 16)
    (store.root / "cells" / f".{'a' * 16}.parquet.1").write_bytes(b"half")
    with store.writing():
        said = kdbench("doctor", results)
        assert said.code == 0, "what it has begun is no damage"
        assert "4 whole runs; a run is going on" in said.out
        said = kdbench("doctor", results, "--repair")
        assert said.code == 2
        assert "another run is writing here" in said.err
    said = kdbench("doctor", results)
    assert said.code == 1
    assert said.out.count("left behind by a run that was killed") == 2
    assert kdbench("doctor", results, "--repair").code == 0
    assert inspect_store(store.root).good


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(results, kdbench):
    os.mkfifo(results / "fig4" / ".lock")
    assert kdbench("doctor", results).code == 0


def test_a_folder_that_looks_like_a_temporary_file_is_in_nobodys_way(results, kdbench):
    (results / "fig4" / "cells" / ".x.parquet.y").mkdir()
    assert kdbench("doctor", results).code == 0
    assert kdbench("doctor", results, "--repair").code == 0


def test_a_run_that_replaces_its_rows_meanwhile_lacks_nothing(results):
    store = Store(results / "fig4")
    key = next(iter(statuses(store.root)))
    with store.writing():
        for table in ("steps", "memory"):  # as a run does, its commit first
            (store.root / table / f"{key}.parquet").unlink()
        health = inspect_store(store.root)
    assert health.writing
    assert health.good
    assert set(inspect_store(store.root).missing_tables) == {key}


def test_a_part_that_goes_while_it_is_looked_at_is_no_damage(results, monkeypatch):
    store, read = Store(results / "fig4"), inspection.read_versioned
    gone = iter(sorted(statuses(store.root)))

    def reading(part, table):
        found = read(part, table)
        if table == "cells" and part.name != "empty.parquet":
            store.supersede(next(gone))
        return found

    monkeypatch.setattr(inspection, "read_versioned", reading)
    with store.writing():
        assert inspect_store(store.root).damage == ()


def test_rows_without_a_commit_are_kept_aside(results, kdbench):
    root = results / "fig4"
    (part,) = [p for p in (root / "cells").glob("*.parquet") if p.stem != "empty"][:1]
    (root / ".superseded" / "cells").mkdir(parents=True)
    part.rename(root / ".superseded" / "cells" / "half-way.parquet")
    said = kdbench("doctor", results)
    assert said.code == 1
    assert said.out.count("left behind") == len(TABLES) - 1
    assert kdbench("doctor", results, "--repair").code == 0
    assert len(read_table(root, "cells")) == 3
    for table in TABLES:
        assert len(list((root / ".superseded" / table).iterdir())) == 1


def test_many_files_are_counted(results, kdbench):
    for number in range(30):
        (results / "fig4" / "cells" / f"0{number}.parquet").write_bytes(b"")
    said = kdbench("doctor", results)
    assert "  ... and 10 damaged or foreign files more" in said.out


def test_escapes_in_names_do_not_reach_the_terminal(results, kdbench):
    (results / "fig4" / "cells" / "\x1b[31mred.parquet").write_bytes(b"")
    for arguments in (["doctor", results], ["doctor", results, "--repair"], ["show", results]):
        said = kdbench(*arguments)
        assert "\x1b" not in said.out + said.err


def test_repair_needs_results(kdbench, tmp_path):
    for arguments, told in (([], "it needs the results folder"), ([tmp_path], "not a results fo")):
        said = kdbench("doctor", *arguments, "--repair")
        assert said.code == 2
        assert told in said.err
    said = kdbench("doctor", tmp_path)
    assert said.code == 0, "a folder to write to, with no results yet"


def test_readers_name_what_they_leave_out_once(results, kdbench, tmp_path):
    root = results / "fig4"
    commit(tmp_path / "other" / "fig4", [cell_row(seed=n) for n in range(3)])
    (root / "cells" / "0bad.parquet").write_bytes(b"not parquet")
    for arguments in (
        ["show", results],
        ["show", results, "--format", "json"],
        ["plot", results, "--figure", "fig4", "--out", tmp_path / "figures"],
        ["compare", results, tmp_path / "other"],
    ):
        said = kdbench(*arguments)
        assert said.code == 0, said
        (line,) = said.err.splitlines()
        assert line.startswith(f"kdbench: left out {root}/cells/0bad.parquet: damaged: ")
        assert line.endswith("`kdbench doctor RESULTS --repair` moves it away")
