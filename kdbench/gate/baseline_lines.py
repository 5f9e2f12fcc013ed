"""The lines of a baseline, read one by one."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kdbench.common.errors import InputError, did_you_mean, quoted
from kdbench.gate.snapshot import About, Entry, Snapshot
from kdbench.spec.gated_metrics import GATED_METRICS

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^" ]+')
_CONFLICT = re.compile(r"(<{7}|={7}|>{7})( |$)")
_MISSING = "-"
_LARGEST = 2**63 - 1
_LARGEST_FLOAT = 1e30
_INTEGERS = ("schema_version", "threads")
_SOURCES = ("measured", "predicted")
_ABOUT = tuple(one.name for one in fields(About))
_NEEDED = ("matrix", "source", "schema_version")
# kind of line: how many words follow it, at least
_KINDS = {"about": 2, "setting": 3, "metric": 3, "memory": 4}


@dataclass(frozen=True)
class _Word:
    """A word as it is meant; `bare`: it stood without quotes, so `-` is a missing value."""

    text: str
    bare: bool

    @property
    def value(self) -> str | None:
        return None if self.bare and self.text == _MISSING else self.text


@dataclass(frozen=True)
class _Cell:
    """An entry while its lines come in."""

    settings: dict[str, str | None] = field(default_factory=dict)
    metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    memory: dict[tuple[str, str | None], dict[str, int]] = field(default_factory=dict)


def is_idle(line: str) -> bool:
    """Whether a line says nothing: blank, or a comment."""
    return not line.strip() or line.startswith("#")


class LineReader:
    """Takes the lines between a baseline's first and last, and makes a snapshot of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._about: dict[str, Any] = {}
        self._cells: dict[str, _Cell] = {}

    def read(self, number: int, line: str) -> None:
        """Take one line; raises InputError if it is none of a baseline, or repeats another."""
        self._number = number
        if is_idle(line):
            return
        if _CONFLICT.match(line):
            problem = "found an unresolved merge conflict"
            raise self._wrong(problem, "resolve it, or write the baseline anew: --update")
        kind, *words = self._words(line)
        if kind.text not in _KINDS or not kind.bare:
            expected = quoted(_KINDS)
            hint = did_you_mean(kind.text[:40], _KINDS)
            raise self._wrong(f"expected one of {expected}, found {kind.text[:40]!r}", hint)
        if len(words) < _KINDS[kind.text]:
            expected = f"at least {_KINDS[kind.text]} words"
            raise self._wrong(f"expected {expected} after {kind.text!r}, found {len(words)}")
        if kind.text == "about":
            self._read_about(words)
            return
        label, name, *rest = words
        cell = self._cells.setdefault(label.text, _Cell())
        {"setting": self._setting, "metric": self._metric, "memory": self._memory}[kind.text](
            cell, name.text, rest
        )

    def snapshot(self) -> Snapshot:
        """Return what was read; raises InputError if something is missing."""
        missing = [name for name in _NEEDED if self._about.get(name) is None]
        if missing:
            raise InputError(f"no line 'about {missing[0]} ...'", where=self._path)
        if not self._cells:
            raise InputError("the baseline has no cells", where=self._path)
        about = About(**{"torch_version": None, **self._about})
        entries = {k: Entry(c.settings, c.metrics, c.memory) for k, c in self._cells.items()}
        return Snapshot(about, entries)

    def _words(self, line: str) -> list[_Word]:
        if not line.isprintable():
            raise self._wrong("found a control character")
        words, place = [], 0
        while place < len(line):
            found = _WORD.match(line, place)
            end = found.end() if found else place
            if found is None or line[end : end + 1] not in ("", " ") or line[end:] == " ":
                raise self._wrong(
                    f"expected words with one space between, found {line[place:][:40]!r}"
                )
            words.append(self._word(found[0]))
            place = end + 1
        return words

    def _word(self, written: str) -> _Word:
        if not written.startswith('"'):
            return _Word(written, bare=True)
        try:
            return _Word(str(json.loads(written)), bare=False)
        except ValueError:
            raise self._wrong(f"expected a JSON string, found {written[:40]}") from None

    def _read_about(self, words: Sequence[_Word]) -> None:
        name, value = words[0].text, words[1].value
        if name not in _ABOUT:
            raise self._wrong(f"expected one of {quoted(_ABOUT)}, found {name[:40]!r}")
        if len(words) != 2:
            raise self._wrong(f"expected one value of {name!r}, found {len(words) - 1}")
        self._once(name, self._about)
        if name == "source" and value not in _SOURCES:
            raise self._wrong(f"expected a source of {quoted(_SOURCES)}, found {value!r}")
        integer = name in _INTEGERS and value is not None
        self._about[name] = self._integer(str(value)) if integer else value

    def _setting(self, cell: _Cell, name: str, rest: Sequence[_Word]) -> None:
        if len(rest) != 1:
            raise self._wrong(f"expected one value of {name!r}, found {len(rest)}")
        self._once(name, cell.settings)
        cell.settings[name] = rest[0].value

    def _metric(self, cell: _Cell, name: str, rest: Sequence[_Word]) -> None:
        self._once(name, cell.metrics)
        values = tuple(self._number_in(word.text) for word in rest)
        metric = GATED_METRICS.get(name)  # another version of kdbench may have other ones
        if metric is not None and metric.unit != "seconds" and len(values) != 1:
            raise self._wrong(f"expected one value of {name!r}, found {len(values)}")
        if metric is not None and metric.unit == "seconds" and not all(values):
            raise self._wrong(f"expected times above 0 of {name!r}, found 0")
        cell.metrics[name] = values

    def _memory(self, cell: _Cell, category: str, rest: Sequence[_Word]) -> None:
        module, sizes = rest[0].value, rest[1:]
        self._once((category, module), cell.memory)
        stages: dict[str, int] = {}
        for word in sizes:
            stage, equals, size = word.text.partition("=")
            if not equals or not stage:
                raise self._wrong(f"expected STAGE=BYTES, found {word.text[:40]!r}")
            self._once(stage, stages)
            stages[stage] = self._integer(size)
        cell.memory[category, module] = stages

    def _number_in(self, text: str) -> float:
        if text.isdecimal():
            return self._integer(text)
        plain = re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text) and len(text) <= 40
        value = float(text) if plain else math.nan
        if not 0 <= value <= _LARGEST_FLOAT:
            raise self._wrong(f"expected a number from 0 to {_LARGEST_FLOAT}, found {text[:40]!r}")
        return value

    def _integer(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > _LARGEST:
            raise self._wrong(f"expected an integer from 0 to {_LARGEST}, found {text[:40]!r}")
        return int(text)

    def _once(self, name: object, known: Any) -> None:  # noqa: ANN401
        if name in known:
            text = " ".join(str(part) for part in name) if isinstance(name, tuple) else str(name)
            raise self._wrong(f"{text[:80]!r} is there twice")

    def _wrong(self, problem: str, hint: str | None = None) -> InputError:
        return InputError(problem, where=f"{self._path}: line {self._number}", hint=hint)
