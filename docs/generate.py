"""Reference pages made from the code, added to the site while MkDocs builds it.

`mkdocs.yml` names this file as a hook. `pages()` needs no MkDocs; tests call it too.
"""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import typer
from pydantic import BaseModel

import kdbench
import kdbench.plugin
from kdbench import __version__
from kdbench.analysis.figures import FIGURES
from kdbench.analysis.metrics import METRICS
from kdbench.cli import STOPPED, app
from kdbench.cli.examples import EXAMPLES
from kdbench.common.errors import IncomparableError, InputError, KdbenchError
from kdbench.matrix.grid import AxisValues
from kdbench.matrix.resolve import MatrixFile
from kdbench.pytest_plugin import KdMemory, pytest_addoption
from kdbench.spec import budget, settings
from kdbench.spec.device_profile import Profile, load_profile
from kdbench.spec.profiles import known_profiles
from kdbench.spec.step_memory import StepMemory
from kdbench.store.schema import SCHEMA_VERSION, TABLES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# What Python code may import.
PUBLIC = {
    kdbench: "Load a matrix, run it, read the results, and hold the gate.",
    kdbench.plugin: "For packages that [add a method](../how-to/add-a-method.md). Your own tests "
    "have the fixture [`kd_memory`](../how-to/measure-your-own-step.md).",
}
# The environment variables that kdbench itself reads.
VARIABLES = {
    "KDBENCH_CACHE": "The folder for fitted teachers and precomputed embeddings.",
    "XDG_CACHE_HOME": "Without `KDBENCH_CACHE`, the cache is its folder `kdbench`; without this "
    "too, it is `~/.cache/kdbench`.",
    "HF_HOME": "Where the hub's downloads are kept, as for Hugging Face's libraries.",
    "HF_HUB_CACHE": "The same, for models and data sets alone.",
    "HF_HUB_OFFLINE": "`1`: do not ask the hub.",
    "HF_ENDPOINT": "The address of the hub.",
    "CUDA_VISIBLE_DEVICES": "Which cards there are.",
    "OMP_NUM_THREADS": "How many threads a training has, if the matrix file has no `threads`.",
    "COLUMNS": "How wide tables are when the output is no terminal.",
    "GITHUB_STEP_SUMMARY": "In GitHub Actions, `check` adds its summary to this file.",
}
# The tables of a matrix file, each with the model that checks it.
MODELS: dict[str, tuple[type[BaseModel], str]] = {
    "The top level": (MatrixFile, "The tables below have sections of their own."),
    "`[axes]`": (
        AxisValues,
        "Each axis takes a list; one value may stand for a list of one. `method`, `student` and "
        "`image_size` are required, `teacher` is where a method has one. The other axes replace "
        "the key of the same name in `[training]`. `[[exclude]]` and `[[include]]` have the same "
        "keys: an exclude entry drops every cell that has all its values, an include entry adds "
        "cells.",
    ),
    "`[students.NAME]`": (settings.Student, "A CLIP-style vision transformer."),
    "`[teachers.NAME]`": (settings.Teacher, "A Hugging Face ViT."),
    "`[teachers.NAME.fit]`": (settings.Fit, 'For `weights = "fitted"`.'),
    "`[data]`": (settings.Data, "The data set."),
    "`[training]`": (settings.Training, "How the student is trained."),
    "`[budget]`": (
        budget.Budget,
        "How much time to spend on a cell. The limits on warm-up, steps and precompute hold in "
        "profile mode; those on checkpoints in train mode.",
    ),
    "`[budget.phase_timeouts]`": (
        budget.PhaseTimeouts,
        "The longest time that a phase may take, in seconds. Without a limit of its own, a phase "
        "has that of the whole cell.",
    ),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (a hook of MkDocs)."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - pages() works without MkDocs

    for uri, text in pages().items():
        files.append(File.generated(config, uri, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages as markdown, by their path under docs/."""
    return {
        "reference/commands.md": commands_page(),
        "reference/matrix-file.md": matrix_page(),
        "reference/columns.md": columns_page(),
        "reference/metrics.md": metrics_page(),
        "reference/python.md": python_page(),
        "reference/pytest.md": pytest_page(),
        "reference/device-profiles.md": profiles_page(),
        "reference/environment.md": environment_page(),
    }


def commands_page() -> str:
    """Describe every command: usage, arguments, options, examples."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    parts = [f"# Commands\n\nGenerated from the help of kdbench {__version__}.\n"]
    for name, command in commands.items():
        context = command.context_class(command, info_name=f"kdbench {name}")
        records = [param.get_help_record(context) for param in command.get_params(context)]
        rows = [(code(names), text) for names, text in (r for r in records if r)]
        usage = command.get_usage(context).removeprefix("Usage: ")
        examples = "\n".join(EXAMPLES[name])
        about = escaped(inspect.cleandoc(command.help))
        parts.append(
            f"\n## kdbench {name}\n\n```text\n{usage}\n```\n\n{about}\n\n"
            f"{table(('argument or option', 'meaning'), rows)}\n"
            f"Examples:\n\n```sh\n{examples}\n```\n"
        )
    return "".join(parts)


def matrix_page() -> str:
    """Describe every key of a matrix file: type, bounds, default, meaning."""
    parts = [
        f"# Matrix file\n\nGenerated from the models of kdbench {__version__} that check the file. "
        "[Write a matrix file](../how-to/write-a-matrix.md) has an example. An unknown key, or a "
        "value of another type, is an error.\n"
    ]
    for title, (model, about) in MODELS.items():
        rows = [(code(name), *cells) for name, *cells in fields(model)]
        parts.append(
            f"\n## {title}\n\n{about}\n\n{table(('key', 'value', 'default', 'meaning'), rows)}"
        )
    parts.append(
        "\n## `[presets.NAME]`\n\nThe same keys again. `--preset NAME` lays them over the file.\n"
        "\n## `[tolerances]`\n\nHow far `kdbench check` lets a figure grow: see "
        "[Gate memory and time in CI](../how-to/gate-in-ci.md).\n"
    )
    return "".join(parts)


def fields(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """Yield each field of a model: name, type, default and the comment above it."""
    schema = model.model_json_schema()
    comments = field_comments(model)
    for name, found in schema["properties"].items():
        required = name in schema.get("required", ())
        default = "required" if required else default_text(found)
        yield name, type_text(found), default, comments.get(name, "")


def field_comments(model: type[BaseModel]) -> dict[str, str]:
    """Collect the `#:` comments above a model's fields."""
    comments: dict[str, str] = {}
    gathered: list[str] = []
    for line in inspect.getsource(model).splitlines():
        if comment := re.match(r" {4}#: ?(.*)", line):
            gathered.append(comment[1])
        elif field := re.match(r" {4}(\w+): ", line):
            comments[field[1]] = " ".join(gathered)
            gathered = []
    return comments


def default_text(schema: dict[str, Any]) -> str:
    """Write a default as a matrix file would."""
    value = schema.get("default")
    if value is None:
        return "unset"
    if isinstance(value, dict | list) or "$ref" in schema:
        return "see below" if value and "$ref" in schema else "none" if not value else str(value)
    return code(json.dumps(value))


def type_text(schema: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if options := [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]:
        return " or ".join(type_text(option) for option in options)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(code(json.dumps(value)) for value in values)
    kind = "object" if "$ref" in schema else schema.get("type")
    if kind == "array":
        parts = schema.get("prefixItems")
        count = f"{len(parts)} of" if parts else "list of"
        return f"{count}: {type_text(parts[0] if parts else schema.get('items', {}))}"
    names = {"boolean": "true or false", "object": "table", None: "any"}
    return names.get(kind, str(kind)) + bounds_text(schema)


def bounds_text(schema: dict[str, Any]) -> str:
    """Say which numbers are allowed."""
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    words = []
    if least is not None:
        words.append(f"{'above' if 'exclusiveMinimum' in schema else 'from'} {least:,g}")
    if most is not None:
        words.append(f"{'below' if 'exclusiveMaximum' in schema else 'up to'} {most:,.15g}")
    return f", {' '.join(words)}" if words else ""


def columns_page() -> str:
    """Describe every column of every table of the store."""
    parts = [
        f"""# Columns

Generated from the schema of kdbench {__version__}; the layout has version {SCHEMA_VERSION}.

`results/<matrix>/<table>/` are parquet data sets. Every part is named after its `run_key`, which
joins the tables. Rows of the other tables count once `cells` has their `run_key`. Sizes are bytes,
times seconds, energy joules. `*_ns` are nanoseconds of one monotonic clock that all processes of a
run share. Missing is null, never 0.

```python
import duckdb
import pandas

pandas.read_parquet("results/fig4/cells")
duckdb.sql("select label, parameter_bytes from 'results/fig4/cells/*.parquet'")
```
"""
    ]
    for name, columns in TABLES.items():
        rows = [
            (code(c.name), c.dtype, escaped(c.doc), escaped(c.null_when or "")) for c in columns
        ]
        parts.append(f"\n## {name}\n\n{table(('column', 'type', 'meaning', 'null when'), rows)}")
    return "".join(parts)


def metrics_page() -> str:
    """Describe the metrics and figures that the command line takes by name."""
    metrics = [(code(m.name), m.title, escaped(m.note), code(m.column)) for m in METRICS.values()]
    figures = [(code(", ".join((f.name, *f.aliases))), f.summary) for f in FIGURES.values()]
    return (
        f"# Metrics and figures\n\nGenerated from kdbench {__version__}.\n\n"
        "## Metrics\n\n`plot` and `compare` take these names as `--metric NAME`. The last column "
        "is the metric's column in the table [`cells`](columns.md#cells).\n\n"
        f"{table(('name', 'title', 'meaning', 'column'), metrics)}\n"
        "## Figures\n\n`plot` takes these names as `--figure NAME`.\n\n"
        f"{table(('name', 'what it shows'), figures)}"
    )


def python_page() -> str:
    """Describe what Python code may import, from signatures and docstrings."""
    parts = [
        f"# Python\n\nGenerated from the docstrings of kdbench {__version__}. Modules that are not "
        "here are private, and may move.\n"
    ]
    for module, about in PUBLIC.items():
        parts.append(f"\n## {module.__name__}\n\n{about}\n")
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isclass(item) or inspect.isfunction(item):
                parts.append(f"\n### {name}\n\n{entry(item, name)}")
                parts += [f"\n#### {name}.{m}\n\n{entry(v, m)}" for m, v in methods(item)]
    return "".join(parts)


def pytest_page() -> str:
    """Describe the fixture, what it returns, and the plugin's options."""
    parser = pytest.Parser(_ispytest=True)
    pytest_addoption(parser)
    options = [
        (code(" ".join(option.names())), escaped(str(option.attrs()["help"])))
        for option in parser.getgroup("kdbench").options
    ]
    call = entry(KdMemory.__call__, "kd_memory")
    parts = [
        f"# pytest\n\nGenerated from kdbench {__version__}. "
        "[Measure your own step](../how-to/measure-your-own-step.md) has examples.\n\n"
        f"## Options\n\n{table(('option', 'meaning'), options)}\n## kd_memory\n\n{call}"
    ]
    parts += [f"\n### kd_memory.{m}\n\n{entry(v, m)}" for m, v in methods(KdMemory)]
    parts.append(f"\n## StepMemory\n\nWhat it returns.\n\n{entry(StepMemory, 'StepMemory')}")
    parts += [f"\n### StepMemory.{m}\n\n{entry(v, m)}" for m, v in methods(StepMemory)]
    return "".join(parts)


def profiles_page() -> str:
    """Describe the keys of a device profile, and what each bundled one says and rests on."""
    rows = [(code(name), *cells) for name, *cells in fields(Profile)]
    parts = [
        f"# Device profiles\n\nGenerated from kdbench {__version__}. `predict` and `check` take "
        "these as `--profile NAME`, or a file of your own as `--profile FILE.toml` "
        "([Find out what fits](../how-to/find-what-fits.md)). Of the cards, the H100 alone has "
        "been held against a real one.\n\n## Keys\n\n"
        f"{table(('key', 'value', 'default', 'meaning'), rows)}"
    ]
    for name in known_profiles():
        profile = load_profile(name)
        said = [
            (code(key), f"{value:,}" if isinstance(value, int) else str(value), escaped(basis))
            for key, basis in profile.basis.items()
            for value in (getattr(profile, key),)
        ]
        parts.append(f"\n## {name}\n\n{escaped(profile.title)}.\n")
        if said:
            parts.append(f"\n{table(('key', 'value', 'rests on'), said)}")
    return "".join(parts)


def environment_page() -> str:
    """Describe exit codes and the environment variables that are read."""
    codes = (
        (0, "done, or held"),
        (KdbenchError.exit_code, "a cell failed, now or earlier; or a figure regressed"),
        (InputError.exit_code, "wrong usage or broken input, or the output cannot be written"),
        (IncomparableError.exit_code, "nothing comparable, or the gate cannot tell"),
        (STOPPED, "stopped by a signal"),
    )
    return (
        "# Exit codes and environment\n\n## Exit codes\n\n"
        f"{table(('code', 'meaning'), ((str(number), text) for number, text in codes))}\n"
        "Where several apply, 2 goes before 1, and 1 before 3.\n\n"
        "## Environment variables\n\n"
        f"{table(('variable', 'meaning'), ((code(n), t) for n, t in VARIABLES.items()))}\n"
        "Variables that decide figures (`OMP_*`, `MKL_*`, torch's allocators) are kept in the "
        "column `runtime_settings` of [`cells`](columns.md#cells).\n"
    )


def entry(item: object, name: str) -> str:
    """Show a signature, if it has a readable one, and a docstring as it is written."""
    try:
        signature = str(inspect.signature(item)) if inspect.isfunction(item) else ""
    except ValueError:
        signature = ""
    text = f"{name}{signature}\n\n{inspect.getdoc(item) or ''}".strip()
    return f"```text\n{text}\n```\n"


def methods(item: object) -> Iterator[tuple[str, object]]:
    """Yield the public methods that a class of kdbench's defines and documents."""
    for name, value in vars(item).items() if inspect.isclass(item) else ():
        if inspect.isfunction(value) and not name.startswith("_") and value.__doc__:
            yield name, value


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a markdown table."""
    titles = tuple(head)
    lines = (titles, ("---",) * len(titles), *rows)
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")


def code(text: str) -> str:
    """Set text as code; within backticks a `|` would end the cell of a table."""
    return f"<code>{escaped(text)}</code>" if "|" in text else f"`{text}`"


def escaped(text: str) -> str:
    """Keep `<name>` and `_` from being taken for HTML and emphasis, but within backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "".join(parts)
