"""Parts that nobody can read, or nobody should: dropped into the tables between two runs."""

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.store import arrow_schema
from kdbench.store.schema import SCHEMA_VERSION, TABLES
from tests.chaos.faults import OWN, Fault


def garbage(path, draw):
    path.write_bytes(draw.randbytes(draw.randrange(1, 4000)))


def empty(path, draw):
    path.write_bytes(b"")


def truncated(path, draw):
    whole = (path.parent / "empty.parquet").read_bytes()
    path.write_bytes(whole[: draw.randrange(1, len(whole))])


def foreign(path, draw):
    pq.write_table(pa.table({"somebody": ["else"]}), path)


def newer(path, draw):
    schema = arrow_schema(path.parent.name)
    later = {"kdbench_schema_version": str(SCHEMA_VERSION + 1)}
    table = schema.empty_table().append_column("later", pa.array([], pa.int64()))
    pq.write_table(table.replace_schema_metadata(later), path)


_KINDS = {kind.__name__: kind for kind in (garbage, empty, truncated, foreign, newer)}


class Damage(Fault):
    """Readers and the next run go on without them and name them; doctor moves them away."""

    name, goes_on, later = "damage", True, True

    def __init__(self):
        self._planted = []

    def lacks(self, sandbox):
        return None if sandbox.reader else "no reader is to be held back"

    def prepare(self, sandbox, draw):
        self._planted = []
        if not (sandbox.root / ".superseded").is_dir():
            return
        sandbox.reader.pause()
        for number, name in enumerate(draw.sample(sorted(_KINDS), 3)):
            table = "cells" if number == 0 else draw.choice(sorted(TABLES))
            part = sandbox.root / table / f"{draw.getrandbits(64):016x}.parquet"
            _KINDS[name](part, draw)
            self._planted.append((name, part))
        sandbox.ledger.foreign |= {part.name for _, part in self._planted}
        self._before = sandbox.ask("show", sandbox.out, "--format", "json")

    def inject(self, run, draw):
        return bool(self._planted)

    def finish(self, sandbox, end):
        if not self._planted:
            return []
        problems = []
        shown = sandbox.ask("show", sandbox.out, "--format", "json")
        problems += self._unnamed("show before the run", self._before.stderr, cells_alone=True)
        problems += self._unnamed("show after the run", shown.stderr, cells_alone=True)
        problems += self._unnamed("run", end.told, cells_alone=True)
        if shown.returncode and any(status == "ok" for status in end.after.values()):
            problems.append(f"show ended with {shown.returncode}: {shown.stderr}")
        looked = sandbox.ask("doctor", sandbox.out)
        problems += self._unnamed("doctor", looked.stdout + looked.stderr)
        mended = sandbox.ask("doctor", sandbox.out, "--repair")
        if mended.returncode:
            problems.append(f"doctor --repair ended with {mended.returncode}: {mended.stderr}")
        for name, part in self._planted:
            if part.exists():
                problems.append(f"doctor --repair left {part.parent.name}/{part.name} ({name})")
                part.unlink()
            elif not list((sandbox.root / ".set-aside").rglob(f"*{part.stem}*")):
                problems.append(f"{part.parent.name}/{part.name} ({name}) is not in .set-aside")
        sandbox.reader.resume()
        return problems

    def _unnamed(self, who, told, *, cells_alone=False):
        # A command names what it came upon, and not every command reads every table.
        return [
            f"{who} does not name {part.parent.name}/{part.name} ({name}): {told.strip()[:300]}"
            for name, part in self._planted
            if not (cells_alone and part.parent.name != "cells") and part.name not in told
        ]


class DamagedCommit(Fault):
    """A run whose row cannot be read is run again, and the damaged part is set aside."""

    name, goes_on, later = "damaged-commit", True, True

    def prepare(self, sandbox, draw):
        self._part = None
        committed = sorted(sandbox.ledger.statuses)
        if not committed:
            return
        sandbox.reader.pause()
        key = draw.choice(committed)
        sandbox.ledger.forget(key)
        self._part = sandbox.root / "cells" / f"{key}.parquet"
        self._torn = self._part.read_bytes()[: draw.randrange(1, 2000)]
        self._part.write_bytes(self._torn)

    def inject(self, run, draw):
        return self._part is not None

    def finish(self, sandbox, end):
        if self._part is None:
            return []
        problems = []
        if self._part.exists() and self._part.read_bytes() == self._torn:
            self._part.unlink()
            if end.code in OWN:
                problems.append(f"{self._part.name} is still there, damaged")
        else:
            aside = [*sandbox.root.glob(f".s*/**/*{self._part.stem}*")]
            if self._torn not in [path.read_bytes() for path in aside]:
                problems.append(f"the damaged {self._part.name} is not set aside")
        sandbox.reader.resume()
        return problems
