"""`python -m kdbench.predict JOB.json`: predict cells, a JSON line of each on the output."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from kdbench.common.errors import KdbenchError
from kdbench.common.lifetime import die_with_parent
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile

if TYPE_CHECKING:
    from kdbench.predict.shared_traces import Traces


def main(argv: list[str]) -> int:
    """Predict what the job asks for; what cannot be predicted is told in its line."""
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    die_with_parent(job["parent"])
    # what libraries print is not to come between the lines
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    profile = Profile.model_validate_json(json.dumps(job["profile"]))
    import kdbench.predict.cell  # noqa: F401, PLC0415 - torch, once the parent is known

    # What has been imported stays: to look through all of it for garbage at each cell takes as
    # long as a tenth of its prediction.
    gc.collect()
    gc.freeze()
    runs = [CellRun.model_validate_json(json.dumps(run)) for run in job["runs"]]
    for answer in answers(runs, profile, job["fits_bytes"]):
        out.write(json.dumps(answer) + "\n")
    return 0


def answers(
    runs: Sequence[CellRun], profile: Profile, fits_bytes: int | None
) -> Iterator[dict[str, Any]]:
    """Predict cells; what can be said of each, in order, or why nothing can."""
    from kdbench.predict.shared_traces import Traces  # noqa: PLC0415

    traces = Traces(profile)
    for run in runs:
        yield _answer(run, traces, fits_bytes)


def _answer(run: CellRun, traces: Traces, fits_bytes: int | None) -> dict[str, Any]:
    from kdbench.predict.cell import predict  # noqa: PLC0415

    answer: dict[str, Any]
    started = monotonic()
    try:
        made = predict(run, traces.profile, traces)
        answer = {
            "columns": made.columns,
            "memory": made.memory,
            "phases": made.phases,
            "timeline": made.timeline,
        }
        if fits_bytes is not None:
            from kdbench.predict.fits import fit  # noqa: PLC0415

            answer["fit"] = fit(run, traces, fits_bytes).row()
    except KdbenchError as error:
        answer = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other cells are predicted
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        answer = {"error": f"cannot be traced: {type(error).__name__}: {first}"}
    answer["seconds"] = monotonic() - started
    return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
