"""When a fault comes: at any time, or just as something appears that it could tear."""

import os
import signal
from contextlib import suppress

from kdbench.store.schema import TABLES
from tests.chaos.sandbox import LONG

# A draw aims at something as often as not.
_AIMED = 0.5
# So many cells are done before it, in this run.
_CELLS = (0, 0, 1, 2)
# A temporary file is there for a millisecond or two.
_LOOK_SECONDS = 0.0002


def wait(run, draw, *, hold=False):
    """Let a random while of a run pass: up to a few cells, or until something appears.

    Args:
        run: goes on.
        draw: the source of chance.
        hold: the runner may be stopped in the moment, so that it is not missed.

    Returns:
        Whether the run goes on.
    """
    sweep, root = run.sandbox.sweep, run.sandbox.root
    # a run that has not begun to write ends by a signal as any program does
    run.until(run.writes, LONG)
    # by what is done, and not by the clock alone: who knows how busy this machine is
    count = draw.choice(_CELLS)
    wanted = len(names(root / "cells")) + count
    run.until(lambda: len(names(root / "cells")) >= wanted, LONG)
    if draw.random() < _AIMED:
        moment = _MOMENTS[draw.choice(sorted(_MOMENTS))](root, draw)
        run.until(_held(moment, run) if hold else moment, LONG, every=_LOOK_SECONDS)
    else:
        run.rest(draw.uniform(0, sweep.cell_seconds + (0 if count else sweep.start_seconds)))
    return run.goes_on


def _held(moment, run):
    """The moment, with the runner stopped in it; one that is over by then is none."""

    def now():
        if not moment():
            return False
        send(run.pid, signal.SIGSTOP)
        if moment():
            return True
        send(run.pid, signal.SIGCONT)
        return False

    return now


def send(pid, number):
    """Whether it was still there to get it."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def target(run, role, draw):
    """Wait for a process of this role and a random while of its life; its id, or None."""
    found = []

    def there():
        found[:] = run.roles()[role]
        return bool(found)

    sweep = run.sandbox.sweep
    for _ in range(10):
        if not run.until(there, LONG):
            return None
        chosen = draw.choice(found)
        run.rest(draw.uniform(0, sweep.cell_seconds))
        if chosen in run.roles()[role]:
            return chosen
    return None


def names(folder):
    with suppress(OSError), os.scandir(folder) as entries:
        return {entry.name for entry in entries}
    return set()


def _part(root, draw):
    """A cell has just been committed."""
    before = names(root / "cells")
    return lambda: any(not name.startswith(".") for name in names(root / "cells") - before)


def _spool(root, draw):
    """A cell is about to start."""
    before = names(root / ".spool")
    return lambda: bool(names(root / ".spool") - before)


def _temporary(root, draw):
    """A part is being written, of one of the tables: to look at all takes too long."""
    folder = root / draw.choice(sorted(TABLES))
    return lambda: any(name.startswith(".") for name in names(folder))


def _end(root, draw):
    """A worker has just told that it is done, and nothing of it is committed yet."""

    def told():
        for name in names(root / ".spool"):
            events = root / ".spool" / name / "events.jsonl"
            with suppress(OSError), events.open("rb") as file:
                file.seek(-min(200, os.fstat(file.fileno()).st_size), os.SEEK_END)
                if b'"end"' in file.read():
                    return True
        return False

    return told


_MOMENTS = {"part": _part, "spool": _spool, "temporary": _temporary, "end": _end}
