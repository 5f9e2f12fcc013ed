"""The store: typed parts, a commit that is one rename, and readers that never see half of it."""

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.common.errors import InputError, UnreadableFileWarning
from kdbench.store import Store, arrow_schema, find_stores, read_table, writing
from kdbench.store.inspection import inspect_store
from kdbench.store.parts import DamagedPartError, is_whole, read_part
from kdbench.store.schema import SCHEMA_VERSION, TABLES
from tests.support import REPOSITORY
from tests.support.stores import statuses

STARTED = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "results" / "tiny")
    made.prepare()
    return made


def rows(**cell):
    """A run's rows: one row per table, all but a few columns null."""
    return {
        "cells": [{"status": "ok", "started_at": STARTED, "schema_version": 1, **cell}],
        "phases": [{"phase": "measure", "started_ns": 1}],
        "epochs": [{"epoch": 0}],
        "steps": [{"phase": "measure", "step": n, "seconds": 0.5} for n in range(3)],
        "samples": [{"monotonic_ns": 1}, {"monotonic_ns": 2, "host_bytes": 3}],
        "memory": [{"category": "other", "bytes": 1, "blocks": 1}],
        "timeline": [{"moment": 0, "part": "start", "category": "other", "live_bytes": 1}],
    }


def parts(store, table):
    return sorted(p.name for p in (store.root / table).iterdir())


def duck(store, table, what="count(*)"):
    with duckdb.connect() as connection:
        (value,) = connection.execute(
            f"select {what} from read_parquet('{store.root / table}/*.parquet')"
        ).fetchone()
    return value


@pytest.mark.parametrize("table", TABLES)
def test_every_table_can_be_read_before_the_first_run(table, store):
    names = [column.name for column in TABLES[table]]
    assert list(pd.read_parquet(store.root / table).columns) == names
    assert duck(store, table) == 0
    frame = read_table(store.root, table)
    assert (list(frame.columns), len(frame)) == (names, 0)


@pytest.mark.parametrize("table", TABLES)
def test_a_part_of_nulls_has_the_types_of_its_table(table, store):
    # Without an explicit schema pyarrow writes an all-null column as type null, and the data set
    # cannot be put together with a part that has values there.
    store.commit(KEY, {table: [{}], "cells": [{}]})
    assert pq.read_schema(store.root / table / f"{KEY}.parquet").equals(
        arrow_schema(table), check_metadata=True
    )
    store.commit("f" * 16, rows())
    assert len(pd.read_parquet(store.root / table)) == len(read_table(store.root, table))
    types = {"int64": "BIGINT", "float64": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN"}
    for column in TABLES[table]:
        seen = duck(store, table, f"any_value(typeof({column.name}))")
        assert seen == types.get(column.dtype, "TIMESTAMP WITH TIME ZONE"), column.name


def test_a_table_without_rows_has_its_part_too(store):
    store.commit(KEY, {"cells": [{"status": "failed"}]})
    for table in TABLES:
        assert f"{KEY}.parquet" in parts(store, table)
    assert len(read_table(store.root, "steps")) == 0


def test_preparing_again_keeps_what_is_there(store):
    store.commit(KEY, rows())
    store.prepare()
    assert statuses(store.root) == {KEY: "ok"}


def test_missing_stays_null_and_integers_stay_integers(store):
    store.commit(KEY, rows(allocated_peak_bytes=2**53 + 1, error=None))
    store.commit("f" * 16, rows(allocated_peak_bytes=None, error="said nothing"))
    frame = read_table(store.root, "cells").set_index("run_key")
    # 2**53 + 1 is the first integer that a float64 cannot hold
    assert frame["allocated_peak_bytes"].dtype == pd.Int64Dtype()
    assert frame.loc[KEY, "allocated_peak_bytes"] == 2**53 + 1
    assert frame.loc["f" * 16, "allocated_peak_bytes"] is pd.NA
    assert frame.loc[KEY, "error"] is pd.NA
    assert frame.loc[KEY, "started_at"].to_pydatetime() == STARTED


VALUES = {
    # text that Arrow can hold: any but lone surrogates
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "timestamp": st.datetimes(
        min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - hypothesis wants it naive
        max_value=datetime(2200, 1, 1),  # noqa: DTZ001
        timezones=st.just(UTC),
    ),
}


def any_row(table):
    columns = {
        column.name: st.none() | VALUES[column.dtype]
        for column in TABLES[table]
        if column.name != "run_key"
    }
    return st.fixed_dictionaries(columns)


@pytest.mark.parametrize("table", ["cells", "phases", "samples"])
@given(data=st.data())
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_rows_survive_the_round_trip(table, store, data):
    # a run has one row in `cells`
    written = data.draw(st.lists(any_row(table), max_size=1 if table == "cells" else 4))
    store.commit(KEY, {table: written})
    frame = read_table(store.root, table)
    names = [column.name for column in TABLES[table]]
    found = [dict(zip(names, values, strict=True)) for values in frame.itertuples(index=False)]
    read = [{name: None if pd.isna(v) else v for name, v in row.items()} for row in found]
    assert read == [{"run_key": KEY, **row} for row in written]


def test_one_row_is_not_packed_and_many_are(store):
    seconds = [step / 7 for step in range(500)]
    steps = [{"step": step, "seconds": value} for step, value in enumerate(seconds)]
    store.commit(KEY, {"cells": [{"status": "ok"}], "steps": steps})
    packed = {}
    for table in ("cells", "steps"):
        group = pq.read_metadata(store.root / table / f"{KEY}.parquet").row_group(0)
        packed[table] = {group.column(n).compression for n in range(group.num_columns)}
    assert packed == {"cells": {"UNCOMPRESSED"}, "steps": {"ZSTD"}}
    assert read_table(store.root, "steps")["seconds"].tolist() == seconds


def full_at(table, monkeypatch):
    """Have the disk be full when a table's part is flushed, which is the last of writing it."""
    before, files = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            files.append(descriptor)
            if len(files) == 1 + [*WRITTEN].index(table):
                raise OSError(28, "No space left on device")
        before(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


# in this order the parts of a run are written
WRITTEN = ("cells", *(table for table in TABLES if table != "cells"))


@pytest.mark.parametrize("table", TABLES)
def test_a_full_disk_leaves_what_was_there_before(table, store, monkeypatch):
    store.commit(KEY, rows(status="failed"))
    full_at(table, monkeypatch)
    with pytest.raises(InputError, match="no space left on device"):
        store.commit(KEY, rows())
    monkeypatch.undo()
    assert statuses(store.root) == {KEY: "failed"}
    assert not any((store.root / ".superseded").iterdir())
    assert inspect_store(store.root).good


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("threads", 2**70),
        ("threads", "one"),
        ("label", {"a": 1}),
        ("label", "\ud800"),
        ("started_at", "today"),
    ],
)
def test_a_value_that_no_table_holds_changes_nothing(column, wrong, store):
    store.commit(KEY, rows(status="failed"))
    with pytest.raises(ValueError, match="a row that 'cells' cannot hold"):
        store.commit(KEY, rows(**{column: wrong}))
    assert statuses(store.root) == {KEY: "failed"}
    assert inspect_store(store.root).good


@pytest.mark.parametrize("broken", TABLES)
def test_a_crash_between_tables_commits_nothing(broken, store, monkeypatch):
    # The rows go to the disk table by table; the write of one of them fails.
    (store.spool(KEY) / "events.jsonl").write_text("{}\n")
    full_at(broken, monkeypatch)
    with pytest.raises(InputError, match=r"no space left on device.*\.spool") as caught:
        store.commit(KEY, rows())
    assert str(store.root) in str(caught.value)
    monkeypatch.undo()
    assert statuses(store.root) == {}, "cells is the last: without it there is no commit"
    assert parts(store, broken) == ["empty.parquet"], "neither half a part nor its temporary file"
    for table in TABLES:
        assert duck(store, table) == len(pd.read_parquet(store.root / table))
    assert (store.root / ".spool" / KEY / "events.jsonl").exists(), "the measured lines are kept"
    store.commit(KEY, rows())
    assert statuses(store.root) == {KEY: "ok"}
    assert len(read_table(store.root, "steps")) == 3


def test_temporary_files_are_hidden_and_in_place_before_the_commit(store, monkeypatch):
    # What a reader could see just before each part is put in place, and in which order they are.
    seen, put = [], Store._put

    def look(own, unfinished, part):
        seen.append(part.parent.name)
        waiting = [path for table in TABLES for path in (own.root / table).glob(".*")]
        assert len(waiting) == len(TABLES) + 1 - len(seen), "all are on the disk by then"
        assert unfinished in waiting, "pandas and duckdb skip such names"
        assert not unfinished.match("*.parquet")
        for table in TABLES:
            duck(store, table)
            pd.read_parquet(store.root / table)
        assert statuses(store.root) == {}
        put(own, unfinished, part)

    monkeypatch.setattr(Store, "_put", look)
    store.commit(KEY, rows())
    assert sorted(seen) == sorted(TABLES)
    assert seen[-1] == "cells"
    for table in TABLES:
        assert parts(store, table) == [f"{KEY}.parquet", "empty.parquet"]


def test_a_commit_drops_its_spool_alone(store):
    for key in (KEY, "other"):
        (store.spool(key) / "events.jsonl").write_text("{}\n")
    store.commit(KEY, rows())
    assert [p.name for p in (store.root / ".spool").iterdir()] == ["other"]


def test_a_spool_begins_empty(store):
    # The events of a run that was killed must not be taken for those of its successor.
    (store.spool(KEY) / "events.jsonl").write_text("{}\n")
    assert list(store.spool(KEY).iterdir()) == []


def test_a_second_commit_takes_the_place_of_the_first(store):
    store.commit(KEY, rows(status="failed"))
    store.commit(KEY, rows())
    assert statuses(store.root) == {KEY: "ok"}
    (aside,) = (store.root / ".superseded" / "cells").iterdir()
    assert pq.read_table(aside)["status"].to_pylist() == ["failed"]
    assert len(read_table(store.root, "cells")) == 1
    assert duck(store, "steps") == 3


def test_supersede_hides_the_commit_first_and_keeps_the_rows(store, monkeypatch):
    store.commit(KEY, rows(status="failed"))
    before = {table: read_table(store.root, table) for table in TABLES}
    moved = []
    rename = Path.rename

    def stop_after_the_first(path, target):
        if moved:
            raise OSError(5, "the machine stopped here")
        moved.append(path.parent.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop_after_the_first)
    with pytest.raises(InputError, match="stopped here"):
        store.supersede(KEY)
    monkeypatch.undo()
    assert moved == ["cells"]
    assert statuses(store.root) == {}
    store.supersede(KEY)
    for table in TABLES:
        assert parts(store, table) == ["empty.parquet"]
        (aside,) = (store.root / ".superseded" / table).iterdir()
        assert aside.name.startswith(KEY)
        kept = pq.read_table(aside).to_pandas()
        assert len(kept) == len(before[table]) > 0


def test_superseding_twice_keeps_both(store):
    for status in ("failed", "oom"):
        store.commit(KEY, rows(status=status))
        store.supersede(KEY)
    aside = store.root / ".superseded" / "cells"
    kept = [pq.read_table(part)["status"][0].as_py() for part in sorted(aside.iterdir())]
    assert sorted(kept) == ["failed", "oom"]
    store.supersede("not there")  # nothing to set aside is no error


def test_a_part_that_is_set_aside_while_it_is_read_is_no_damage(store, monkeypatch):
    # A reader lists the folder, and a run that goes on supersedes a part before it is opened.
    store.commit(KEY, rows())
    store.commit("f" * 16, rows())
    read, superseded = pq.ParquetFile, []

    def late(part, **options):
        if not superseded:
            superseded.append(store.supersede("f" * 16))
        return read(part, **options)

    monkeypatch.setattr("kdbench.store.parts.pq.ParquetFile", late)
    assert statuses(store.root) == {KEY: "ok"}


WRITER = """
import sys, pathlib
from kdbench.store import Store
store = Store(pathlib.Path(sys.argv[1]))
for n in range(int(sys.argv[2])):
    steps = [{"phase": "measure", "step": s} for s in range(5)]
    for run in (f"a{n}", "again"):
        if run == "again" and n:
            store.supersede(run)
        store.commit(run, {"cells": [{"status": "ok"}], "steps": steps})
"""


def test_tables_are_whole_at_every_moment_of_another_process(store):
    runs = 25
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root), str(runs)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as writer:
        try:
            while writer.poll() is None:
                cells = read_table(store.root, "cells")
                # read after cells: every committed run has its other parts by now...
                steps = read_table(store.root, "steps", columns=["run_key", "step"])
                assert cells["run_key"].is_unique
                counts = steps["run_key"].value_counts()
                for key in set(cells["run_key"]) - {"again"}:  # ...unless it was set aside since
                    assert counts[key] == 5, key
        finally:
            writer.kill()
    assert writer.returncode == 0
    assert len(statuses(store.root)) == runs + 1


def test_other_readers_see_whole_tables_while_runs_are_committed(store):
    # They list the folder themselves, so they can only promise this while nothing is superseded.
    done = threading.Event()

    def write():
        try:
            for n in range(25):
                store.commit(f"{n:016x}", rows())
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            assert len(pd.read_parquet(store.root / "steps")) % 3 == 0
            assert duck(store, "steps") % 3 == 0
    finally:
        writer.join()
    assert duck(store, "cells") == len(pd.read_parquet(store.root / "cells")) == 25


# --- what cannot be read is left out and named


def foreign(part):
    pd.DataFrame({"a": [1]}).to_parquet(part)


def other_version(part):
    schema = arrow_schema("cells").with_metadata({"kdbench_schema_version": "99"})
    pq.write_table(schema.empty_table(), part)


def no_version(part):
    schema = arrow_schema("cells").with_metadata({"kdbench_schema_version": "-1e9"})
    pq.write_table(schema.empty_table(), part)


def other_table(part):
    write(part, arrow_schema("steps"), {})


def other_types(part):
    schema = arrow_schema("cells")
    index = schema.get_field_index("threads")
    write(part, schema.set(index, pa.field("threads", pa.string())), {"threads": "many"})


def without_a_column(part):
    schema = arrow_schema("cells")
    write(part, schema.remove(schema.get_field_index("status")), {})


def truncated(part):
    write(part, arrow_schema("cells"), {})
    part.write_bytes(part.read_bytes()[:-20])


def flipped(part):
    """Change a byte of the rows: what they then say would be believed without a checksum."""
    write(part, arrow_schema("cells"), {"label": "x" * 1000})
    content = bytearray(part.read_bytes())
    content[content.index(b"x" * 50) + 10] = ord("y")
    part.write_bytes(content)


def of_another_run(part):
    write(part, arrow_schema("cells"), {"run_key": KEY})


def too_many(part):
    schema = arrow_schema("cells")
    rows = [{"run_key": part.stem}] * 2
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)


def a_bomb(part):
    """A kilobyte that says the same text ten million times: terabytes when it is unpacked."""
    schema = arrow_schema("cells")
    one = pa.array(["x" * 100_000])
    text = pa.DictionaryArray.from_arrays(pa.nulls(10_000_000, pa.int32()).fill_null(0), one)
    rest = pa.schema([pa.field("run_key", text.type)], metadata=schema.metadata)
    pq.write_table(pa.Table.from_arrays([text], schema=rest), part, store_schema=True)


def a_pipe(part):
    os.mkfifo(part)


def a_link(part):
    part.symlink_to("/dev/zero")


def write(part, schema, row):
    row = {"run_key": part.stem, **row}
    content = pa.Table.from_pylist([row], schema=schema)
    pq.write_table(content, part, compression="none", write_page_checksum=True)


def no_text(part):
    schema = arrow_schema("cells")
    content = pa.Table.from_pylist([{"run_key": part.stem}], schema=schema)
    buffers = pa.array([b"\xff\xfe"], pa.binary()).buffers()
    label = pa.Array.from_buffers(pa.string(), 1, buffers)
    place = schema.get_field_index("label")
    pq.write_table(content.set_column(place, schema.field(place), label), part)


def dated(text):
    def make(part):
        started = datetime.fromisoformat(text).replace(tzinfo=UTC)
        write(part, arrow_schema("cells"), {"started_at": started})

    return make


def a_list(part):
    schema = arrow_schema("cells").append(pa.field("extra", pa.list_(pa.int64())))
    write(part, schema, {"extra": [1]})


DAMAGE = {
    "empty": (lambda part: part.write_bytes(b""), "damaged: "),
    "noise": (lambda part: part.write_bytes(b"not parquet" * 100), "damaged: "),
    "truncated": (truncated, "damaged: "),
    "flipped": (flipped, "damaged: .*(checksum|CRC)"),
    "encoding": (no_text, "damaged: .*UTF8"),
    "far future": (dated("9999-12-31T23:59:59.999999"), "no run has such a date in 'started_at'"),
    "past": (dated("1969-12-31T23:59:59"), "foreign: no run has such a date in 'started_at'"),
    "list": (a_list, "foreign: the column 'extra' is of the type list<"),
    "foreign": (foreign, "foreign: expected a schema version of kdbench's, found none"),
    "no version": (no_version, "foreign: expected a schema version of kdbench's, found '-1e9'"),
    "newer": (other_version, "a newer kdbench wrote it: schema version 99, this one reads up to "),
    "table": (other_table, "not a part of the table 'cells': it has no column 'cell_id'"),
    "column": (without_a_column, "not a part of the table 'cells': it has no column 'status'"),
    "types": (other_types, "damaged: .*many"),
    "another run": (of_another_run, f"expected the run that it is named after, found '{KEY}'"),
    "two rows": (too_many, "foreign: expected at most 1 rows, found 2"),
    "bomb": (a_bomb, "foreign: expected at most 1 rows, found 10,000,000"),
    "pipe": (a_pipe, "foreign: expected a file, found a link or something else"),
    "link": (a_link, "foreign: expected a file, found a link or something else"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_part_that_is_none_is_named_and_the_rest_is_read(damage, store):
    store.commit(KEY, rows())
    part = store.root / "cells" / "deadbeef.parquet"
    make, told = DAMAGE[damage]
    make(part)
    with pytest.warns(UnreadableFileWarning, match=told) as caught:
        assert read_table(store.root, "cells")["run_key"].tolist() == [KEY]
    (warning,) = caught
    said = str(warning.message)
    assert said.startswith(f"left out {part}: ")
    assert said.endswith("update kdbench to read it" if damage == "newer" else "moves it away")
    assert len(said.splitlines()) == 1


def a_hidden_bomb(part):
    """The same text four thousand times, in a file that says of itself that it is small."""
    schema, count = arrow_schema("steps"), 4000
    text = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["x" * (1 << 20)])
    columns = [text if f.name == "run_key" else pa.nulls(count, f.type) for f in schema]
    told = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    how = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 22, "store_schema": False}
    with pq.ParquetWriter(part, pa.table(columns, schema.names).schema, **how) as writer:
        writer.write_table(pa.table(columns, schema.names))
        writer.add_key_value_metadata(told)
    content = part.read_bytes()
    (chunk,) = (c for c in columns_of(part) if c.path_in_schema == "run_key")
    true = varint(chunk.total_uncompressed_size)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert true in content[footer:]
    part.write_bytes(content[:footer] + content[footer:].replace(true, varint(100, len(true))))


def columns_of(part):
    group = pq.read_metadata(part).row_group(0)
    return [group.column(number) for number in range(group.num_columns)]


def varint(value, length=0):
    """An integer as parquet's footer has it; longer than it need be, if that is asked."""
    left, found = value << 1, []
    while left or len(found) < length:
        found.append(left & 127)
        left >>= 7
    return bytes([*(digit | 128 for digit in found[:-1]), found[-1]])


@pytest.mark.parametrize(
    ("bomb", "told"),
    [
        (a_bomb, "the column 'run_key' is of the type dictionary"),
        (a_hidden_bomb, "it would unpack to more than any run writes"),
    ],
)
def test_a_bomb_in_a_table_of_many_rows_is_not_unpacked(bomb, told, store):
    part = store.root / "steps" / "deadbeef.parquet"
    bomb(part)
    before = pa.default_memory_pool().max_memory()
    with pytest.warns(UnreadableFileWarning, match=told):
        assert len(read_table(store.root, "steps")) == 0
    assert pa.default_memory_pool().max_memory() < max(before, 100 * 2**20)


def test_a_bit_of_the_seals_own_mark_is_found(store):
    store.commit(KEY, rows())
    part = store.root / "cells" / f"{KEY}.parquet"
    whole = part.read_bytes()
    start = whole.index(b"kdbench blake2b:")
    for place in range(start, start + 16):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedPartError, match="damaged: its bytes"):
            read_part(part, "cells")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_bit_of_a_part_is_found_wherever_it_is(place, bit, store):
    part = store.root / "cells" / f"{KEY}.parquet"
    if not part.exists():
        store.commit(KEY, rows(label="a label", learning_rate=1e-3, threads=2))
        part.with_suffix(".whole").write_bytes(part.read_bytes())
    content = bytearray(part.with_suffix(".whole").read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    part.write_bytes(content)
    with pytest.raises(DamagedPartError, match=r"damaged: its bytes are not those that were"):
        read_part(part, "cells")
    assert not is_whole(part, "cells")


FLIPS = """
import random, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from kdbench.store.layout import arrow_schema
from kdbench.store.parts import DamagedPartError, is_whole, read_part

part = Path(sys.argv[1])
row = {"run_key": part.stem, "status": "ok"}
pq.write_table(pa.Table.from_pylist([row], schema=arrow_schema("cells")), part)
whole, draw = part.read_bytes(), random.Random(1)
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for _ in range(1000):
    content = bytearray(whole)
    content[draw.randrange(footer, len(whole))] ^= 1 << draw.randrange(8)
    part.write_bytes(content)
    is_whole(part, "cells")
    try:
        read_part(part, "cells")
    except DamagedPartError:
        pass
"""


def test_a_word_for_a_digest_in_an_older_part_is_no_seal(store):
    row = {"label": "blake2b:" + "0" * 64}
    write(store.root / "cells" / f"{KEY}.parquet", arrow_schema("cells"), row)
    assert read_table(store.root, "cells")["label"].tolist() == [row["label"]]


def test_damage_of_an_older_part_ends_no_process(tmp_path):
    # It has no seal; and what the parquet library throws of some damage, nobody can catch.
    part = tmp_path / f"{KEY}.parquet"
    done = subprocess.run(
        [sys.executable, "-c", FLIPS, str(part)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_new_folders_are_there_after_a_power_cut(tmp_path, monkeypatch):
    """Of each that is made, the folder above is flushed then."""
    made, flushed, mkdir = [], [], Path.mkdir

    def noted(path, *arguments, **options):
        made.append(path)
        flushed.append(None)
        return mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", noted)
    monkeypatch.setattr(writing, "_sync_folder", flushed.append)
    store = Store(tmp_path / "results" / "tiny")
    store.prepare()
    store.commit(KEY, rows(status="failed"))
    store.commit(KEY, rows())
    assert store.root in made
    assert store.root / ".superseded" / "cells" in made
    after_each = [flushed[n + 1] for n, p in enumerate(flushed) if p is None]
    assert after_each == [path.parent for path in made]


def test_what_is_set_aside_never_replaces_anything(store, monkeypatch):
    # The clock may stand still, or have been set back.
    monkeypatch.setattr("time.time_ns", lambda: 5)
    for status in ("failed", "oom", "killed"):
        store.commit(KEY, rows(status=status))
        store.supersede(KEY)
    aside = sorted((store.root / ".superseded" / "cells").iterdir())
    assert [part.name for part in aside] == [f"{KEY}.{n}.parquet" for n in (5, 6, 7)]


@pytest.mark.parametrize(
    "name", ["cells", "logs", ".spool", ".superseded", ".set-aside", "checkpoints"]
)
def test_a_link_in_the_place_of_a_folder_is_not_followed(name, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = tmp_path / "results"
    root.mkdir()
    (root / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=f"expected {name} to be a folder, found a link"):
        Store(root).prepare()
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_place_of_the_results_is_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "fig4").symlink_to(elsewhere)
    with pytest.raises(InputError, match="expected fig4 to be a folder, found a link"):
        Store(tmp_path / "fig4").prepare()
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(store, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    trap = store.root / "cells" / f".{KEY}.parquet.{os.getpid()}"
    trap.symlink_to(precious)
    store.commit(KEY, rows())
    assert precious.read_text() == "kept"
    assert statuses(store.root) == {KEY: "ok"}


def test_a_link_in_the_place_of_the_lock_is_not_followed(store, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (store.root / ".lock").symlink_to(precious)
    with pytest.raises(InputError, match="cannot write results here"), store.writing():
        pass
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("table", ["cells", ".spool", "logs"])
def test_a_file_in_the_way_is_told(table, tmp_path):
    (tmp_path / table).write_text("in the way")
    with pytest.raises(InputError, match="cannot write results here") as caught:
        Store(tmp_path).prepare()
    assert str(tmp_path) in str(caught.value)
    assert "--out" in str(caught.value)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    if os.geteuid() == 0:  # nothing is read-only to root but the kernel's own file systems
        if not Path("/proc/self").exists():
            pytest.skip("root, and no folder that refuses it")
        root = Path("/proc/kdbench")
    else:
        root = tmp_path / "kept"
        root.mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot write results here"):
        Store(root).prepare()


def test_stores_are_found_from_above_and_from_within(store, tmp_path):
    assert find_stores(store.root) == [store.root]
    other = Store(store.root.parent / "another")
    other.prepare()
    (store.root.parent / "unrelated").mkdir()
    assert find_stores(store.root.parent) == [other.root, store.root]
    for nothing in (tmp_path / "nowhere", store.root / "logs"):
        with pytest.raises(InputError, match="results folder") as caught:
            find_stores(nothing)
        assert str(nothing) in str(caught.value)


def test_a_version_of_the_layout_is_in_every_part(store):
    store.commit(KEY, rows(environment=json.dumps({"a": 1})))
    for table in TABLES:
        for part in (store.root / table).glob("*.parquet"):
            assert (
                pq.read_schema(part).metadata[b"kdbench_schema_version"]
                == str(SCHEMA_VERSION).encode()
            )
