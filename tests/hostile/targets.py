"""What is fired at: a strategy, and what is done with each of its examples."""

import math
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdbench.store import Store
from kdbench.store.schema import TABLES
from kdbench.store.sealing import BLANK, add_seal
from tests.conftest import TINY
from tests.hostile import readers
from tests.hostile.parts import Reader
from tests.hostile.strategies import baselines, changes, damaged, matrices, profiles
from tests.support import REPOSITORY
from tests.support.analysis_fixtures import cell_row, commit, epoch_rows, paper_rows

_MEMORY = [
    {"stage": "steady", "category": "activations", "module": "a.b", "bytes": 10, "blocks": 1},
    {"stage": "steady", "category": "parameters", "module": None, "bytes": 20, "blocks": 2},
]
_TIMELINE = [
    {"moment": 0, "part": "start", "category": "parameters", "live_bytes": 5},
    {"moment": 1, "part": "forward", "category": "activations", "live_bytes": 9},
]
_PHASES = [{"phase": "measure", "started_ns": 1, "attempt": 0, "seconds": 1.0}]
#: rows that go with every run of the folders here
TABLE_ROWS = {
    "epochs": epoch_rows(epochs=2),
    "memory": _MEMORY,
    "timeline": _TIMELINE,
    "phases": _PHASES,
}


@dataclass
class Fired:
    """What came of a round.

    Attributes:
        count: examples that were tried.
        outcomes: what became of them.
        found: the failure and its smallest example; None: there was none.
    """

    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    found: str | None = None


Attempt = Callable[[Path, Any], str]


@contextmanager
def _file(name: str, read: Callable[[Path], None]) -> Iterator[Attempt]:
    """Put an example into a file and have it read."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        path = Path(folder, name)

        def attempt(_: Path, content: bytes) -> str:
            path.write_bytes(content)
            return readers.survives(read, path)

        yield attempt


@cache
def real_results() -> Path:
    """Results as a run leaves them, small; kept for the process."""
    folder = tempfile.mkdtemp(prefix="hostile-real-")
    with mock.patch("os.fsync"):
        return commit(Path(folder, "fig4"), paper_rows(), **TABLE_ROWS)


@contextmanager
def _parts() -> Iterator[Attempt]:
    """Put an example in the place of a part of real results, and have them read in a child."""
    reader = Reader()
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        root = Path(folder, "fig4")
        shutil.copytree(real_results(), root)

        def attempt(_: Path, example: tuple[str, bytes]) -> str:
            table, content = example
            part = sorted((root / table).glob("[!e]*.parquet"))[0]
            whole = part.read_bytes()
            part.write_bytes(content)
            try:
                told = reader.read(root)
                if told not in ("read", "refused"):
                    kept = Path(tempfile.mkdtemp(prefix="hostile-kept-"), part.name)
                    kept.write_bytes(content)
                    raise AssertionError(f"{told}\nkept in {kept}, a part of {table}")
                return told
            finally:
                part.write_bytes(whole)

        try:
            yield attempt
        finally:
            reader.close()


@contextmanager
def _rows(*commands: tuple[str, ...]) -> Iterator[Attempt]:
    """Commit an example's rows among good ones, and run commands on the folder."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:

        def attempt(_: Path, example: dict[str, dict[str, Any]]) -> str:
            root = Path(folder, "results", "fig4")
            shutil.rmtree(root.parent, ignore_errors=True)
            shutil.copytree(real_results(), root)
            tables = {name: [dict(row) for row in rows] for name, rows in TABLE_ROWS.items()}
            for table, changed in example.items():
                if table in tables:
                    tables[table][-1] |= changed
            row = cell_row("embed-kd", "base", 32) | example.get("cells", {})
            with mock.patch("os.fsync"):
                Store(root).commit("0123456789abcdef", {**tables, "cells": [row]})
            before = _outside(Path(folder))
            told = [
                readers.commanded(*(word.format(root=root.parent) for word in words))[0]
                for words in commands
            ]
            for drawn in (root / "figures").glob("*.svg"):
                ElementTree.parse(drawn)
            assert _outside(Path(folder)) == before, "something was written elsewhere"
            return "read" if 0 in told else "refused"

        yield attempt


def _outside(folder: Path) -> set[Path]:
    """All that is there and is no figure of a matrix's own folder."""
    own = folder / "results" / "fig4" / "figures"
    return set(folder.parent.glob("escape*")) | {
        path for path in folder.rglob("*") if own not in (path, *path.parents)
    }


def part_examples() -> st.SearchStrategy[tuple[str, bytes]]:
    """Damaged parts of real results, each with its table."""
    root = real_results()
    parts = {
        table: sorted((root / table).glob("[!e]*.parquet"))[0].read_bytes()
        for table in ("cells", "memory", "epochs")
    }
    return st.one_of(
        *(
            st.tuples(st.just(table), damaged(whole, parts["cells"]).map(resealed))
            for table, whole in parts.items()
        ),
        st.tuples(st.just("cells"), st.binary(max_size=60).map(lambda raw: b"PAR1" + raw)),
    )


def resealed(content: bytes) -> bytes:
    """Give a part its seal again, as who means harm would: else nothing but that is looked at."""
    mark = BLANK.rstrip("0").encode()
    place = content.rfind(mark) + len(mark)
    digits = len(BLANK) - len(mark)
    if place < len(mark) or place + digits > len(content):
        return content
    return add_seal(content[:place] + b"0" * digits + content[place + digits :])


def row_examples() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    """Rows with values that no run writes."""
    cells = st.fixed_dictionaries({"cells": changes("cells")})
    others = [name for name in TABLES if name in TABLE_ROWS]
    return cells | st.sampled_from(others).flatmap(
        lambda table: st.fixed_dictionaries({table: changes(table)})
    )


def _texts(real: Path, made: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    whole = real.read_bytes()
    return made | damaged(whole, TINY.encode()) | st.binary(max_size=200)


_BENCHMARKS = REPOSITORY / "benchmarks"
_SHOWN = (
    ("show", "{root}"),
    ("show", "{root}", "--memory"),
    ("show", "{root}", "--format", "csv"),
    ("show", "{root}", "--format", "json"),
    ("compare", "{root}", "{root}", "--before", "method=teacher-kd", "--metric", "all"),
    ("compare", "{root}", "{root}", "--before", "method=teacher-kd", "--format", "markdown"),
)
_DRAWN = (("plot", "{root}", "--format", "svg"),)

TARGETS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[], Any]]] = {
    "matrix": (
        lambda: _texts(_BENCHMARKS / "fig4.toml", matrices()),
        lambda: _file("x.toml", readers.matrix),
    ),
    "baseline": (
        lambda: _texts(_BENCHMARKS / "baselines" / "fig4-cpu.txt", baselines()),
        lambda: _file("baseline.txt", readers.baseline),
    ),
    "profile": (
        lambda: _texts(REPOSITORY / "kdbench" / "spec" / "profiles" / "h100.toml", profiles()),
        lambda: _file("x.toml", readers.profile),
    ),
    "parts": (part_examples, _parts),
    "rows": (row_examples, lambda: _rows(*_SHOWN)),
    "figures": (row_examples, lambda: _rows(*_DRAWN)),
}
# A figure takes a second. What is found by these is not made smaller: that would take hours.
_SLOWER = {"figures": 20, "rows": 3, "parts": 1}


def fire(name: str, *, seed: int, examples: int, end: float = math.inf) -> Fired:
    """Fire examples at one target, until `end` on the monotonic clock at the latest."""
    strategy, prepare = TARGETS[name]
    fired = Fired()
    with prepare() as attempt:

        @hypothesis.seed(seed)
        @settings(
            max_examples=max(1, examples // _SLOWER.get(name, 1)),
            database=None,
            deadline=None,
            phases=[Phase.generate, *([] if name in _SLOWER else [Phase.shrink])],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(strategy())
        def shoot(example: Any) -> None:
            if time.monotonic() >= end:
                return
            fired.count += 1
            fired.outcomes[attempt(Path(), example)] += 1

        try:
            shoot()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            notes = "\n".join(getattr(error, "__notes__", ()))
            fired.found = "".join(traceback.format_exception(error))[-4000:] + "\n" + notes[-3000:]
    return fired


__all__ = ["TARGETS", "Fired", "fire", "real_results"]
