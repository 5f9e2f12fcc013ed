"""Write docs/columns.md from kdbench.store.schema: `python docs/columns.py`."""

from pathlib import Path

from kdbench.store.schema import SCHEMA_VERSION, TABLES, Column

INTRODUCTION = f"""# The columns of the store

`results/<matrix>/<table>/` are parquet data sets; every part is named after its `run_key`, which
joins them. Rows of other tables count once `cells` has their `run_key`. Sizes are bytes, times
seconds, energy joules; `*_ns` are nanoseconds of one monotonic clock, shared by all processes of
a run. Missing is null, never 0. This page is written from the code
(`python docs/columns.py`); the layout has version {SCHEMA_VERSION}.

    import pandas, duckdb
    pandas.read_parquet("results/fig4/cells")
    duckdb.sql("select label, parameter_bytes from 'results/fig4/cells/*.parquet'")
"""


def page() -> str:
    """Return the page as markdown."""
    parts = [INTRODUCTION]
    for table, columns in TABLES.items():
        parts.append(f"\n## {table}\n\n| column | type | meaning | null when |\n")
        parts.append("|---|---|---|---|\n")
        parts.extend(line(column) for column in columns)
    return "".join(parts)


def line(column: Column) -> str:
    """Return one column's line of its table."""
    return f"| `{column.name}` | {column.dtype} | {column.doc} | {column.null_when or ''} |\n"


if __name__ == "__main__":
    Path(__file__).with_name("columns.md").write_text(page())
