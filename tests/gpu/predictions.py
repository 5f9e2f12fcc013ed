"""Hold predictions against what a card's allocator told: `python -m tests.gpu.predictions`.

`--measured CELLS --predicted CELLS --out FILE.json`, each a table `cells` (a folder or a parquet
file): the peaks of each cell side by side, and whether they are within 1 % or 8 MiB of each other.
The exit code is 1 where they are not. What is printed is the spread of each peak's error, and the
cells that are beyond.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

_SHARE, _BYTES = 0.01, 8 << 20
_PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes", "precompute_peak_bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=Path, required=True, help="a table of cells")
    parser.add_argument("--predicted", type=Path, required=True, help="a table of cells")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    told = compared(cells_of(options.measured), cells_of(options.predicted))
    options.out.write_text(json.dumps(told, indent=2) + "\n")
    for row in told:
        if not row["within"]:
            print(
                f"{row['label']}: {row['metric']}: predicted {row['predicted']:,}, measured "
                f"{row['measured']:,}: {row['difference']:+,} bytes ({row['share']:+.2%})"
            )
    for line in spread(told):
        print(line)
    return 0 if told and all(row["within"] for row in told) else 1


def cells_of(table):
    """The finished cells of a table, by label; of repeats the first."""
    cells = pd.read_parquet(table)
    return cells[cells["status"] == "ok"].groupby("label").first()


def spread(rows):
    """Lines that say how far off each peak is: over all cells, and at worst on either side."""
    for metric in _PEAKS:
        errors = pd.Series([row["share"] for row in rows if row["metric"] == metric])
        if len(errors):
            yield (
                f"{metric}: {len(errors)} cells, {(errors == 0).mean():.0%} to the byte, "
                f"median {errors.abs().median():.2%}, 90th percentile "
                f"{errors.abs().quantile(0.9):.2%}, {errors.min():+.2%} to {errors.max():+.2%}"
            )


def compared(measured, predicted):
    """A row for each cell and peak that both have."""
    rows = []
    for label in sorted(set(measured.index) & set(predicted.index)):
        for metric in _PEAKS:
            pair = [side.at[label, metric] for side in (predicted, measured)]
            if any(pd.isna(value) for value in pair):
                continue
            before, after = map(int, pair)
            apart = before - after
            rows.append(
                {
                    "label": label,
                    "metric": metric,
                    "predicted": before,
                    "measured": after,
                    "difference": apart,
                    "share": apart / after,
                    "within": abs(apart) <= max(_SHARE * after, _BYTES),
                }
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
