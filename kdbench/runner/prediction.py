"""Predicts what cells need: runs `kdbench.predict` in child processes and makes rows of it."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kdbench.common.environment import git_revision, package_version
from kdbench.common.errors import InputError, WorkerError
from kdbench.common.fingerprint import predict_digest, worker_digest
from kdbench.matrix.file import Matrix
from kdbench.runner.process.child import Spawned, end_group
from kdbench.runner.process.launcher import worker_environment
from kdbench.runner.rows import Rows, of_tables, timeline_rows
from kdbench.runner.spool import EventTail, last_words
from kdbench.runner.telemetry.cpu_load import usable_processors
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile
from kdbench.store import Store, read_table
from kdbench.store.schema import SCHEMA_VERSION

# Each process takes some hundred megabytes, most of it torch.
_MAX_PROCESSES = 4
_TICK_SECONDS, _KILLED_SECONDS = 0.1, 10.0


@dataclass(frozen=True)
class Prediction:
    """What a cell is predicted to need."""

    run_key: str  #: of its rows
    rows: Rows  #: by table, as of a measured run; `cells` has one
    #: whether it fits a given memory (`kdbench.predict.fits.Fit`); None if not asked
    fit: dict[str, Any] | None

    @property
    def cell(self) -> dict[str, Any]:
        """The row of `cells`."""
        return self.rows["cells"][0]


def predict_matrix(
    matrix: Matrix,
    *,
    profile: Profile,
    fits_bytes: int | None = None,
    tell: Callable[[Prediction], None] = lambda _: None,
) -> list[Prediction]:
    """Predict each cell of a matrix once; `tell` receives each prediction as soon as it is made.

    With `fits_bytes`, check as well whether the cells fit this memory, and with which batch size.
    Raises InputError if that is less than a process holds on the device without any tensor.
    """
    if fits_bytes is not None and fits_bytes <= profile.context_bytes:
        raise InputError(
            f"expected more than the {profile.context_bytes:,} bytes that a process holds on "
            f"{profile.title} before it allocates anything, found {fits_bytes:,}",
            where="--fits",
        )
    device = "cpu" if profile.device == "cpu" else "cuda"
    first = {run.cell.label: run for run in reversed(matrix.runs(device))}
    predicted = {
        "source": "predicted",
        "profile": profile.name,
        "seed": matrix.seeds[0],
        "repeat": 0,
        "threads": None,
        "launch": "spawn",
    }
    labels = dict.fromkeys(run.cell.label for run in matrix.runs())
    runs = [first[label].model_copy(update=predicted) for label in labels]
    environment, code = _environment(profile), worker_digest() + predict_digest()
    made = []
    for run, answer in _answers(runs, profile, fits_bytes):
        prediction = _prediction(run, answer, environment, code)
        made.append(prediction)
        tell(prediction)
    return made


def store_predictions(predictions: Sequence[Prediction], matrix: Matrix, out: Path) -> Path:
    """Store predictions in the matrix's results, which it returns, in place of earlier ones."""
    store = Store(out / matrix.name)
    store.prepare()
    with store.writing():
        earlier = _predicted(store.root)
        for prediction in predictions:
            for key in earlier.get((prediction.cell["label"], prediction.cell["profile"]), ()):
                store.supersede(key)
            store.commit(prediction.run_key, prediction.rows)
    return store.root


def _predicted(root: Path) -> dict[tuple[str, str], list[str]]:
    """Return the run keys of the stored predictions by label and profile."""
    found: dict[tuple[str, str], list[str]] = {}
    columns = ["run_key", "label", "source", "profile"]
    for row in read_table(root, "cells", columns=columns).to_dict("records"):
        if row["source"] == "predicted":
            found.setdefault((row["label"], row["profile"]), []).append(row["run_key"])
    return found


def _answers(
    runs: Sequence[CellRun], profile: Profile, fits_bytes: int | None
) -> Iterator[tuple[CellRun, dict[str, Any]]]:
    """Predict in child processes; yield each run and its answer, in order.

    Cells that allocate alike are predicted once, and share the seconds that it took.
    """
    keys = [run.cell.trace_key() for run in runs]
    counts, answers = Counter(keys), dict[str, dict[str, Any]]()
    asked = [runs[keys.index(key)] for key in counts]
    processors = len(usable_processors() or ()) or os.cpu_count() or 1
    # each child imports torch first, which a single cell does not repay
    count = max(1, min(_MAX_PROCESSES, processors, (len(asked) + 1) // 2))
    # neighbours may share traces in the search for a batch, so they stay together
    shares = [asked[n * len(asked) // count : (n + 1) * len(asked) // count] for n in range(count)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="kdbench-")))
        children = []
        for number, share in enumerate(shares):
            children.append(_Child(folder / str(number), share, profile, fits_bytes))
            stack.callback(children[-1].stop)
        each = (c.answer(run) for c, share in zip(children, shares, strict=True) for run in share)
        for run, key in zip(runs, keys, strict=True):
            if key not in answers:
                answer = next(each)
                answer["seconds"] /= counts[key]
                rows = {table: answer.get(table, []) for table in ("memory", "phases")}
                rows["timeline"] = timeline_rows(answer.get("timeline", {}))
                answers[key] = {**answer, "rows": of_tables(rows)}
            yield run, answers[key]


class _Child:
    """A process that predicts some of the cells."""

    def __init__(
        self, folder: Path, runs: Sequence[CellRun], profile: Profile, fits_bytes: int | None
    ) -> None:
        folder.mkdir()
        job = {
            "runs": [run.model_dump(mode="json") for run in runs],
            "profile": profile.model_dump(mode="json", exclude_unset=True),
            "fits_bytes": fits_bytes,
            "parent": os.getpid(),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        self._log, self._tail = folder / "log", EventTail(folder / "answers.jsonl")
        self._unread: deque[dict[str, Any]] = deque()
        self._process = Spawned(
            folder / "job.json",
            self._log,
            environment=worker_environment(os.environ, network=False),
            module="kdbench.predict",
        )

    def stop(self) -> None:
        """End the process, whatever it still does."""
        end_group(self._process.pid)
        self._process.wait(_KILLED_SECONDS)

    def answer(self, run: CellRun) -> dict[str, Any]:
        """Wait for the next answer."""
        while not self._unread:
            ended = self._process.wait(_TICK_SECONDS)
            self._unread += self._tail.read()
            if ended and not self._unread:
                silent = f"exit code {self._process.poll()}, it said nothing"
                problem = f"the process that predicts ended at {run.cell.label!r}: "
                raise WorkerError(problem + last_words(self._log, silent)[:500])
        return self._unread.popleft()


def _environment(profile: Profile) -> dict[str, Any]:
    packages = ("torch", "transformers", "nvidia-ml-py", "numpy")
    return {
        "torch_version": package_version("torch"),
        "packages": {name: package_version(name) for name in packages},
        "git_revision": git_revision(),
        "profile": profile.model_dump(mode="json"),
        "profile_digest": profile.digest,
    }


def _prediction(
    run: CellRun, answer: Mapping[str, Any], environment: dict[str, Any], code: str
) -> Prediction:
    key = run.run_key(
        worker_digest=code,
        environment={
            "torch_version": environment["torch_version"],
            "profile": environment["profile_digest"],
        },
    )
    error = answer.get("error")
    cell = {
        **run.plan_row(),
        **answer.get("columns", {}),
        "run_key": key,
        "status": "ok" if error is None else "failed",
        "error": error,
        "steps_measured": 0,
        "wall_seconds": answer["seconds"],
        "started_at": datetime.now(UTC),
        "schema_version": SCHEMA_VERSION,
        "torch_version": environment["torch_version"],
        "git_revision": environment["git_revision"],
        "environment": json.dumps(environment, sort_keys=True),
    }
    rows = {**of_tables({"cells": [cell]}), **answer["rows"]}
    return Prediction(run_key=key, rows=rows, fit=answer.get("fit"))
