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
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.common.errors import InputError, os_reason
from kdbench.common.text import decode_text
from kdbench.gate.baseline_lines import LineReader, is_idle
from kdbench.gate.snapshot import About, Snapshot

MAGIC = "kdbench-baseline"
FORMAT_VERSION = 1

# What the second line says to whoever opens the file.
_NOTE = "The figures that `kdbench check` compares with; `kdbench check --update` writes them anew."
# Thousands of cells; whatever is larger was not written by a gate, and is not read into memory.
MAX_BYTES = 64_000_000

_MACHINE = ("device", "threads", "cpu_model", "gpu_name", "driver_version")
_PROFILE = ("profile", "profile_digest")
# What people name instead of a baseline, by how it begins.
_FOREIGN = (
    (r"<{7}|={7}|>{7}", "an unresolved merge conflict", "resolve it, or write it anew: --update"),
    (r"version https://git-lfs", "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (r"\s*[\[{]\s*(\"|$|[\]}\d-])", "JSON", None),
    (r"\s*(\[|[\w.-]+\s*=)", "TOML", "the matrix file goes to --matrix"),
    (r"\s*<", "XML or HTML", None),
)


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline; raises InputError, naming the line, if it is missing, foreign or damaged."""
    lines = _read_text(path).split("\n")
    _check_first_line(lines[0], path)
    end = _check_last_line(lines, path)
    reader = LineReader(path)
    for number, line in enumerate(lines[1:end], start=2):
        reader.read(number, line)
    return reader.snapshot()


def _read_text(path: Path) -> str:
    """Read a baseline's text; raises InputError if it is missing, too large, empty or no text."""
    if path.is_dir():
        raise InputError("expected a baseline file, found a folder", where=path)
    if path.exists() and not path.is_file():  # a pipe or a device: it may never end
        raise InputError("expected a baseline file, found something else", where=path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        hint = "the same command with --update writes one"
        raise InputError("no baseline there", where=path, hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot read the baseline: {os_reason(error)}", where=path) from None
    if len(raw) > MAX_BYTES:
        raise InputError(
            f"expected a baseline of at most {MAX_BYTES} bytes, found more", where=path
        )
    try:
        text = decode_text(raw).replace("\r\n", "\n")
    except ValueError as error:
        raise InputError(f"not a baseline: {error}", where=path) from None
    if not text.strip():
        hint = "--update writes it anew"
        raise InputError("the baseline is empty", where=path, hint=hint)
    return text


def _check_first_line(line: str, path: Path) -> None:
    """Raise InputError unless the file is a baseline of the format that is read here."""
    name, _, version = line.partition(" ")
    if name != MAGIC:
        kind, hint = next(
            ((kind, hint) for begin, kind, hint in _FOREIGN if re.match(begin, line)),
            (repr(line[:40]), None),
        )
        expected = f"expected its first line to be '{MAGIC} {FORMAT_VERSION}'"
        problem = f"not a baseline: {expected}, found {kind}"
        raise InputError(problem, where=path, hint=hint)
    if not re.fullmatch(r"[0-9]{1,9}", version):
        raise _wrong(path, 1, f"expected a format version, found {version[:40]!r}")
    if int(version) != FORMAT_VERSION:
        newer = int(version) > FORMAT_VERSION
        problem = (
            f"format {version} is {'newer' if newer else 'older'} than {FORMAT_VERSION}, "
            "which is read here"
        )
        hint = "write the baseline anew: --update"
        raise _wrong(path, 1, problem, f"use that newer kdbench, or {hint}" if newer else hint)


def _check_last_line(lines: Sequence[str], path: Path) -> int:
    """Check the count of lines at the file's end, and return the index of that line."""
    end = max(index for index, line in enumerate(lines) if line.strip())
    found = re.fullmatch(r"end ([0-9]{1,9}) lines", lines[end])
    hint = "restore it, or write it anew: --update"
    if found is None:
        problem = f"expected 'end N lines' as the last line, found {lines[end][:40]!r}: cut off"
        raise _wrong(path, end + 1, problem, hint)
    there = sum(not is_idle(line) for line in lines[1:end])
    if there != int(found[1]):
        problem = f"expected {found[1]} lines above, found {there}"
        raise _wrong(path, end + 1, problem, hint)
    return end


def _wrong(path: Path, number: int, problem: str, hint: str | None = None) -> InputError:
    return InputError(problem, where=f"{path}: line {number}", hint=hint)


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
    blocks = [list(_about_lines(snapshot.about))]
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
        raise InputError(f"cannot write the baseline: {os_reason(error)}", where=path) from None


def _about_lines(about: About) -> Iterator[str]:
    """Write what all cells have in common; a prediction has no machine, a measurement no profile.

    Most measurements, and all older baselines, have no `runtime_settings`.
    """
    measured = about.source == "measured"
    optional = {"runtime_settings", *(_PROFILE if measured else _MACHINE)}
    for name, value in vars(about).items():
        if value is not None or name not in optional:
            yield f"about {name} {_word(value)}"


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
