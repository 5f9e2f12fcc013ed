"""The readers under fire, each with what it may do: succeed, or raise one clean line."""

import io
import resource
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from kdbench.cli import main
from kdbench.common.errors import KdbenchError
from kdbench.gate.baseline import read_baseline, render
from kdbench.matrix.file import load_matrix
from kdbench.spec.device_profile import load_profile

# Processor time and memory that a page of text may cost to be read or refused.
_SECONDS, _BYTES = 10.0, 400_000_000
# What a line of an error may be long.
_LONGEST = 6000


def clean(text: str) -> bool:
    """Whether a terminal shows a text as it is: nothing in it is obeyed."""
    return all(character.isprintable() or character == "\n" for character in text)


def survives(read, *arguments) -> str:
    """Call a reader; say what came of it. Fails where it is anything but success or one line."""
    started, before = time.process_time(), _peak()
    refused = None
    try:
        read(*arguments)
    except KdbenchError as error:
        refused = error
    if refused is not None:
        line = str(refused)
        assert line, "an error without words"
        assert line.isprintable(), f"an error that is no clean line: {line!r}"
        assert len(line) <= _LONGEST, "an error without end"
        assert refused.exit_code in (2, 3), refused.exit_code
    assert time.process_time() - started < _SECONDS, "it takes too long"
    assert _peak() - before < _BYTES, "it takes too much memory"
    return "read" if refused is None else "refused"


def matrix(path: Path) -> None:
    """Read a matrix file, and list what it asks for."""
    load_matrix(path).runs()


def baseline(path: Path) -> None:
    """Read a baseline, and write what was understood."""
    render(read_baseline(path))


def profile(path: Path) -> None:
    """Read a device profile."""
    assert load_profile(str(path)).digest


def command(*arguments: object) -> tuple[int, str, str]:
    """Run a command line in this process: exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def commanded(*arguments: object) -> tuple[int, str, str]:
    """Run a command that must end well or with a clean line, and print nothing that is obeyed."""
    code, out, err = command(*arguments)
    assert code in (0, 1, 2, 3), code
    assert clean(out), out
    assert clean(err), err
    assert "Traceback" not in err
    if code == 2:
        assert len(err.strip().splitlines()) == 1, err
    return code, out, err


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
