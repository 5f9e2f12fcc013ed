"""Results of every earlier schema version, read as today's."""

import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdbench.common.errors import UnreadableFileWarning
from kdbench.store import arrow_schema, find_stores, read_table
from kdbench.store.inspection import inspect_store
from kdbench.store.migrate import tables_in_version
from kdbench.store.schema import SCHEMA_VERSION, TABLES
from tests.support import REPOSITORY

pytestmark = pytest.mark.usefixtures("forked_workers")

FIXTURES = REPOSITORY / "tests" / "fixtures" / "schemas"
VERSIONS = range(1, SCHEMA_VERSION)


@pytest.fixture(params=VERSIONS, ids="schema {}".format)
def old(request, tmp_path):
    """Results that this version wrote, to be read and written to."""
    root = tmp_path / "results"
    shutil.copytree(FIXTURES / str(request.param), root)
    return request.param, root


def test_there_is_a_fixture_of_every_version_and_it_is_one():
    for version in VERSIONS:
        parts = [*(FIXTURES / str(version)).glob("*/*/*.parquet")]
        assert len(parts) > 30
        for part in parts:
            assert pq.read_schema(part).metadata[b"kdbench_schema_version"] == b"%d" % version
        assert {part.parent.name for part in parts} == set(tables_in_version(version))


def test_every_table_has_todays_columns_and_yesterdays_rows(old):
    _, root = old
    for store in find_stores(root):
        for table in TABLES:
            frame = read_table(store, table)
            assert pa.Table.from_pandas(frame).column_names == arrow_schema(table).names
            parts = [*(store / table).glob("*.parquet")]
            assert len(frame) == sum(pq.read_metadata(part).num_rows for part in parts)
            for part in parts:
                before = pq.ParquetFile(part).read().to_pylist()
                key = part.stem
                now = read_table(store, table)
                now = now[now["run_key"] == key].to_dict("records")
                for then, row in zip(before, now, strict=True):
                    same = {name: row[name] for name in then if then[name] is not None}
                    assert same == {name: v for name, v in then.items() if v is not None}


def test_what_an_older_version_did_not_say_is_null_or_the_only_thing_it_could_be(old):
    version, root = old
    cells = read_table(root / "tiny", "cells").set_index("label")
    trained = read_table(root / "trained", "cells").iloc[0]
    ok = cells.loc["student-only/small/8px"]
    ok = ok if ok.ndim == 1 else ok[ok["status"] == "ok"].iloc[0]
    assert (cells["optimizer_kernels"] == "auto").all()
    if version < 5:
        assert cells["suspended_steps"].isna().all()
        assert cells["oom_source"].isna().all()
        assert read_table(root / "trained", "steps")["suspended"].isna().all()
    assert (trained["steps_resumed"], trained["data_storage"]) == (0, "device")
    assert trained["precompute_reused"] is False or trained["precompute_reused"] == False  # noqa: E712
    assert set(read_table(root / "tiny", "memory")["stage"]) >= {"steady"}
    assert (read_table(root / "trained", "steps")["attempt"] == 0).all()
    if version < 3:
        assert len(read_table(root / "tiny", "timeline")) == 0
        assert pd.isna(ok["unstable"]), "it was not judged"


def test_they_are_shown_drawn_and_compared(old, kdbench, tmp_path):
    version, root = old
    shown = kdbench("show", root)
    assert (shown.code, shown.err) == (0, "")
    assert "teacher-kd/small/8px/dwarf" in shown.out
    assert kdbench("show", root, "--memory").code == 0
    drawn = kdbench("plot", root, "--out", tmp_path / "figures", "--figure", "fig4")
    assert drawn.code == 0, drawn
    assert len(drawn.out.splitlines()) >= 2
    other = FIXTURES / str(version - 1 or 2)
    said = kdbench("compare", root, other, "--only", "source=measured")
    assert said.code == 0, said
    assert "embed-kd/small/8px/dwarf" in said.out


def test_a_doctor_finds_nothing_wrong_with_them(old):
    version, root = old
    for store in find_stores(root):
        health = inspect_store(store)
        assert health.good, health
        assert health.older == {version: health.runs}


def test_a_run_of_today_stands_beside_them(old, kdbench, tiny):
    version, root = old
    before = read_table(root / "tiny", "cells")
    arguments = ("--matrix", tiny, "--device", "cpu", "--only", "method=embed-kd", "--out", root)
    said = kdbench("run", *arguments)
    assert said.code == 0, said
    assert "1 cell was measured before, otherwise (" in said.out
    after = read_table(root / "tiny", "cells")
    assert len(after) == len(before) + 1
    assert sorted(after["schema_version"].unique()) == [version, SCHEMA_VERSION]
    assert inspect_store(root / "tiny").good


@pytest.mark.parametrize(
    ("version", "column"), [(1, "epochs"), (1, "teacher_checkpoint"), (3, "energy_training_kind")]
)
def test_a_column_that_came_late_in_its_version_may_be_missing(version, column, tmp_path):
    root = copied(version, tmp_path)
    drop(root / "tiny", "cells", column)
    assert read_table(root / "tiny", "cells")[column].isna().all()


def test_a_column_that_its_version_has_is_missed(tmp_path):
    root = copied(3, tmp_path)
    count = drop(root / "tiny", "cells", "status")
    with pytest.warns(UnreadableFileWarning, match="it has no column 'status'") as caught:
        assert len(read_table(root / "tiny", "cells")) == 0
    assert len(caught) == count


def copied(version, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(FIXTURES / str(version), root)
    return root


def drop(store, table, column):
    """Take a column out of every part of a table; returns how many there are."""
    parts = [*(store / table).glob("*.parquet")]
    for part in parts:
        pq.write_table(pq.ParquetFile(part).read().drop_columns(column), part)
    return len(parts)
