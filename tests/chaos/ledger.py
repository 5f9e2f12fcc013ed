"""What was on disk, to the byte: all of it must stay, or be where a new result has put it aside."""

import hashlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.store.schema import TABLES

OTHERS = tuple(name for name in TABLES if name != "cells")


@dataclass(frozen=True)
class Problem:
    """What must not be; `kind` is what it counts as: lost, doubled, orphan, or another word."""

    kind: str
    what: str


@dataclass(frozen=True)
class Kept:
    """A committed run: its status, and the digest of its part by table."""

    status: str
    parts: dict


class Ledger:
    """All runs that were ever seen committed in a folder.

    Attributes:
        foreign: names of parts that a fault has put there.
    """

    def __init__(self, root):
        self._root = root
        self._known = {}
        self._digests = {}
        self.foreign = set()

    @property
    def statuses(self):
        return {key: kept.status for key, kept in self._known.items()}

    def forget(self, key):
        """A fault has destroyed this run's rows."""
        self._known.pop(key, None)

    def update(self):
        """Look again; what of that which was there is there no more.

        May be called while a run goes on.
        """
        problems, now = [], self._read()
        aside = self._aside()
        for key, kept in self._known.items():
            again = now.get(key)
            for table, digest in kept.parts.items():
                if again and again.parts.get(table) == digest:
                    continue
                # looked at once more: a part that is being set aside is in its place, then there
                if self._digest(self._root / table / f"{key}.parquet") == digest:
                    continue
                if kept.status != "ok" and (key, table, digest) in (aside | self._aside()):
                    continue
                problems.append(
                    Problem("lost", f"{table}/{key}, whose run was {kept.status}, is not there")
                )
        self._known |= now
        return problems

    def _read(self):
        found = {}
        for part in sorted((self._root / "cells").glob("*.parquet")):
            if part.name.startswith(".") or part.name in {"empty.parquet", *self.foreign}:
                continue
            try:
                status = pq.read_table(part, columns=["status"]).column("status").to_pylist()
                parts = {name: self._digest(self._root / name / part.name) for name in TABLES}
            except (OSError, pa.ArrowException):  # set aside just now; what is damaged others tell
                continue
            if None not in parts.values() and status:
                found[part.stem] = Kept(status[0], parts)
        return found

    def _aside(self):
        found = set()
        for name in TABLES:
            for path in (self._root / ".superseded" / name).glob("*.parquet"):
                found.add((path.name.split(".")[0], name, self._digest(path, known=True)))
        return found

    def _digest(self, path, *, known=False):
        """Of a file's bytes; None where there is none. What was set aside is read once."""
        if known and path in self._digests:
            return self._digests[path]
        try:
            digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        except FileNotFoundError:
            return None
        if known:
            self._digests[path] = digest
        return digest
