"""A baseline on disk: text with a figure per line, sorted, so that a diff of it can be read.

    kdbench-baseline 1
    about matrix fig4
    about torch_version 2.13.0

    setting embed-kd/base/32px batch_size 64
    metric embed-kd/base/32px allocated_peak_bytes 1860000000
    memory embed-kd/base/32px activations student.blocks.0 first=20480 steady=20480

    end 5 lines

Words are parted by one space. `-` is a missing value; a word that holds a space, a quote or what a
terminal would obey is written as a JSON string. The last line counts those above it, so that a
file that lost some is not taken for whole.
"""

import json
import os
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from kdbench.common.errors import InputError
from kdbench.gate.baseline_damage import check_first_line, check_last_line, read_text
from kdbench.gate.baseline_lines import LineReader
from kdbench.gate.snapshot import About, Snapshot

MAGIC = "kdbench-baseline"
FORMAT_VERSION = 1

# What the second line says to whoever opens the file.
_NOTE = "The figures that `kdbench check` compares with; `kdbench check --update` writes them anew."


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline; raises InputError, naming the line, if it is missing, foreign or damaged."""
    text = read_text(path)
    lines = text.split("\n")
    check_first_line(lines[0], path, magic=MAGIC, version=FORMAT_VERSION)
    end = check_last_line(lines, path)
    reader = LineReader(path)
    for number, line in enumerate(lines[1:end], start=2):
        reader.read(number, line)
    return reader.snapshot()


def is_baseline(path: Path) -> bool:
    """Whether a file is empty or was once a baseline, so that another one may take its place."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC) + 4).removeprefix(BOM_UTF8)
            return not begin or begin.startswith(f"{MAGIC} ".encode())
    except OSError:
        return False


def render(snapshot: Snapshot, note: str = _NOTE) -> str:
    """Write a baseline as text: the same for the same figures, whatever their order."""
    about = [f"about {name} {_word(value)}" for name, value in _told(snapshot.about)]
    blocks = [about]
    blocks += [list(_lines(label, snapshot)) for label in sorted(snapshot.entries)]
    count = sum(len(block) for block in blocks)
    body = "\n".join("".join(f"{line}\n" for line in block) for block in blocks)
    return f"{MAGIC} {FORMAT_VERSION}\n# {note}\n{body}\nend {count} lines\n"


def write_baseline(path: Path, snapshot: Snapshot, note: str = _NOTE) -> None:
    """Write a baseline, `note` in its first lines; a reader sees the old or the new one, whole."""
    target = path.resolve()  # what a link points to is replaced, not the link
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.unlink(missing_ok=True)
            with unfinished.open("x", encoding="utf-8", newline="\n") as file:
                file.write(render(snapshot, note))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        finally:  # still there only where it could not be finished
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        told = (error.strerror or str(error)).lower()
        raise InputError(f"cannot write the baseline: {told}", where=path) from None


def _told(about: About) -> Iterator[tuple[str, object]]:
    """List what is said once, in the order of the fields; a prediction is of no machine."""
    for name, value in vars(about).items():
        predicted = about.source == "predicted"
        if name in ABOUT_MACHINE and predicted and value is None:
            continue
        if name.startswith("profile") and not predicted and value is None:
            continue
        if name == "runtime_settings" and value is None:  # as of most, and of all older baselines
            continue
        yield name, value


#: what is told of measurements alone
ABOUT_MACHINE = ("device", "threads", "cpu_model", "gpu_name", "driver_version")


def _lines(label: str, snapshot: Snapshot) -> Iterator[str]:
    entry, cell = snapshot.entries[label], _word(label)
    for name in sorted(entry.settings):
        yield f"setting {cell} {_word(name)} {_word(entry.settings[name])}"
    for name in sorted(entry.metrics):
        values = " ".join(repr(value) for value in entry.metrics[name])
        yield f"metric {cell} {_word(name)} {values}"
    for category, module in sorted(entry.memory, key=lambda part: (part[0], part[1] or "")):
        stages = entry.memory[category, module]
        sizes = " ".join(f"{stage}={stages[stage]}" for stage in sorted(stages))
        yield f"memory {cell} {_word(category)} {_word(module)} {sizes}"


def _word(value: object) -> str:
    if value is None:
        return "-"
    text = str(value)
    plain = text.isprintable() and not any(c in text for c in ' "\\') and text not in ("", "-")
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())
