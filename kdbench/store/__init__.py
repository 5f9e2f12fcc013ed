"""The results on disk: one parquet data set per table, a part per run, committed by rename.

`results/<matrix>/<table>/<run_key>.parquet`. The part in `cells` is renamed last and is the
commit: a reader ignores rows of other tables that have none. Temporary names start with a dot,
which pandas, pyarrow and duckdb all pass over, so the folders can be read at every moment.
"""

from kdbench.store.layout import arrow_schema
from kdbench.store.reading import find_stores, is_store, read_table
from kdbench.store.writing import Store

__all__ = ["Store", "arrow_schema", "find_stores", "is_store", "read_table"]
