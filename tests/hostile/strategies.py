"""Files that nobody meant well with: real ones damaged, and well-formed ones with bad values."""

import json
import math
import tomllib
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel

from kdbench.matrix.grid import AXES
from kdbench.matrix.resolve import MatrixFile
from kdbench.spec.device_profile import Profile
from kdbench.spec.gated_metrics import GATED_METRICS
from kdbench.store.schema import TABLES
from tests.conftest import TINY

#: Names and texts that a terminal, a file system, a markup language or a spreadsheet would obey.
TEXTS = (
    "",
    " ",
    "-",
    ".",
    "..",
    "../../escape",
    "/etc/passwd",
    "a/../../b",
    "~root",
    "C:\\x",
    "file:///etc/passwd",
    "zip://x::/tmp/a.zip",
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\x85\x9d",
    "a\rb",
    "a\nb",
    "a\0b",
    "a\tb",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "\u2028line",
    "\ufeff",
    "[bold red]x[/]",
    "[link=http://evil.example]x[/link]",
    "[/]",
    "<script>alert(1)</script>",
    "--><svg onload=alert(1)>",
    "]]>",
    "&amp;&#x41;",
    "\"'`",
    "a|b",
    "*_~`$x^2$#",
    "![x](http://evil.example)",
    "\\input{/etc/passwd}",
    "[2cm]x",
    "$\\frac{1}{",
    "%0A::error::x",
    "::set-output name=x::y",
    "##[command]x",
    "=cmd|' /C calc'!A0",
    "@SUM(A1)",
    "+1",
    "{0.__class__}",
    "%s%n",
    "x" * 300,
    "x" * 20_000,
    "\U0001f600",
    "e\u0301" * 20,
)
#: Numbers that overflow, underflow or stand for something else.
NUMBERS = (
    0,
    1,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**64,
    10**19,
    10**400,
    0.0,
    -0.0,
    5e-324,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
)

texts = st.sampled_from(TEXTS) | st.text(max_size=20)
names = st.sampled_from(("a", "teacher-kd", "small", "dwarf", "steady", "cpu", "embed-kd")) | texts
numbers = st.sampled_from(NUMBERS) | st.integers(-5, 5000) | st.floats()
_scalars = (
    texts
    | numbers
    | st.booleans()
    | st.just(datetime(1979, 5, 27, 7, 32, tzinfo=UTC))
    | st.sampled_from(("profile", "train", "random", "pretrained", "digits", "datasets"))
)
values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


# ------------------------------------------------------------------------------ damaged files


@st.composite
def damaged(draw, whole: bytes, other: bytes = b""):
    """Damage a real file: bits, cuts, repeats, pieces of another, numbers in its text."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 40))
        kind = draw(
            st.sampled_from(("bit", "byte", "cut", "end", "again", "splice", "word", "lines"))
        )
        if not data:
            break
        if kind == "bit":
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            data[at : at + size] = draw(st.binary(max_size=size))
        elif kind == "cut":
            del data[at : at + size]
        elif kind == "end":
            del data[at:]
        elif kind == "again":
            data[at:at] = data[at : at + size] * draw(st.integers(1, 50))
        elif kind == "splice":
            start = draw(st.integers(0, len(other)))
            data[at:at] = other[start : start + draw(st.integers(0, 400))]
        elif kind == "word":
            hostile = draw(st.sampled_from((*map(str, NUMBERS[:14]), "nan", "0x" + "f" * 9999)))
            words = bytes(data).split(b" ")
            words[draw(st.integers(0, len(words) - 1))] = hostile.encode()
            data = bytearray(b" ".join(words))
        else:
            lines = bytes(data).split(b"\n")
            line = draw(st.integers(0, len(lines) - 1))
            lines[line:line] = lines[line : line + draw(st.integers(1, 3))]
            data = bytearray(b"\n".join(lines))
    return bytes(data)


# --------------------------------------------------------------------------------- TOML files


def toml(value: object) -> str:
    """Write a value as TOML does, inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value)


def _document(content: dict[str, object]) -> bytes:
    lines = "".join(f"{toml(key)} = {toml(value)}\n" for key, value in content.items())
    return lines.encode(errors="replace")


def _keys(model: type[BaseModel], at: tuple[str, ...] = ()):
    """List the paths of all keys that a model knows; a table of tables has its entry's name."""
    for name, one in model.model_fields.items():
        yield (*at, name)
        inner, entry = _inner(one.annotation)
        if inner is not None:
            yield from _keys(inner, (*at, name, *entry))


def _inner(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ()
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType) or (origin is dict and arguments):
        inner, entry = _inner(arguments[-1] if origin is dict else arguments[0])
        names = {"Student": ("small",), "Teacher": ("dwarf",)}
        return inner, names.get(getattr(inner, "__name__", ""), entry) if origin is dict else entry
    return None, ()


_EXTRA = [
    *(("axes", name) for name in AXES),
    *(("exclude", name) for name in AXES),
    *(("include", name) for name in AXES),
    *(("tolerances", name) for name in GATED_METRICS),
    ("presets", "control"),
    ("presets", "control", "axes"),
    ("presets", "control", "training", "batch_size"),
]
MATRIX_KEYS = [*_keys(MatrixFile), *_EXTRA]


def _set(document: dict, path: tuple[str, ...], value: object) -> None:
    node = document
    for part in path[:-1]:
        node = node[part] if isinstance(node.get(part), dict) else node.setdefault(part, {})
        if not isinstance(node, dict):
            return
    node[path[-1]] = value


@st.composite
def matrices(draw):
    """A matrix file that is TOML, some of whose keys have bad values."""
    document = tomllib.loads(TINY)
    for path in draw(st.lists(st.sampled_from(MATRIX_KEYS), max_size=4)):
        value = draw(values)
        if path[0] in ("exclude", "include") and len(path) == 2:
            rows = document.get(path[0])
            entry = {path[1]: value}
            document[path[0]] = [*rows, entry] if isinstance(rows, list) else [entry]
        else:
            _set(document, path, value)
    for name in draw(st.lists(names, max_size=1)):
        document[name] = draw(values)
    return _document(document)


@st.composite
def profiles(draw):
    """A device profile that is TOML, some of whose keys have bad values."""
    document: dict = {
        "title": "a card",
        "device": draw(st.sampled_from(("cpu", "cuda"))),
        "capacity_bytes": 8 * 2**30,
        "basis": {"capacity_bytes": "assumed: to be so"},
    }
    for name in draw(st.lists(st.sampled_from(sorted(Profile.model_fields)), max_size=3)):
        document[name] = draw(values)
    return _document(document)


# ---------------------------------------------------------------------------------- baselines

_WORDS = (
    "embed-kd/base",
    "cell_id",
    "allocated_peak_bytes",
    "step_seconds",
    "cpu_elsewhere",
    "activations",
    "steady=20480",
    "first=-1",
    "steady=" + "9" * 5000,
    "9" * 400,
    "9" * 5000,
    "1e999",
    "nan",
    "0x10",
    "٣",
    "-",
    '"a b"',
    '"\\u001b[31m"',
    '"\\ud800"',
    '"',
    "\\",
    "=",
)
_words = st.sampled_from(_WORDS) | texts.map(json.dumps) | st.text(max_size=8)
_ABOUT = ("matrix", "source", "schema_version", "torch_version", "profile", "threads", "device")


@st.composite
def baselines(draw):
    """A baseline with its frame right, whose lines are not."""
    lines = ["about matrix fig4", "about source predicted", "about schema_version 5"]
    kept = draw(st.integers(0, 3))
    lines = lines[:kept] if draw(st.booleans()) else lines
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(("about", "setting", "metric", "memory", "other")))
        first = [draw(st.sampled_from(_ABOUT))] if kind == "about" else []
        words = [kind, *first, *draw(st.lists(_words, max_size=5))]
        lines.append(" ".join(words))
    count = len(lines) + draw(st.sampled_from((0, 0, 0, 0, 1)))
    text = "\n".join(["kdbench-baseline 1", *lines, f"end {count} lines", ""])
    return text.encode(errors="surrogatepass")


# --------------------------------------------------------------------------------------- rows

_STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
_BY_TYPE = {
    "string": st.none() | texts,
    "int64": st.none()
    | st.sampled_from([n for n in NUMBERS if isinstance(n, int) and abs(n) < 2**63]),
    "float64": st.none() | st.sampled_from([n for n in NUMBERS if isinstance(n, float)]),
    "bool": st.none() | st.booleans(),
    "timestamp": st.none() | st.just(_STARTED),
}


@st.composite
def changes(draw, table: str):
    """Some columns of a row with values that no run writes; the table's types are kept."""
    columns = {column.name: column.dtype for column in TABLES[table] if column.name != "run_key"}
    chosen = draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True))
    return {name: draw(_BY_TYPE[columns[name]]) for name in chosen}
