"""`python -m kdbench.predict JOB.json`: predict cells; a line of JSON for each in answers.jsonl."""

import gc
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from kdbench.common.errors import KdbenchError
from kdbench.common.lifetime import die_with_parent
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile


def main(argv: list[str]) -> int:
    """Predict the job's cells; a cell that cannot be predicted has its error in its line."""
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    die_with_parent(job["parent"])
    profile = Profile.model_validate_json(json.dumps(job["profile"]))
    import kdbench.predict.cell  # noqa: F401, PLC0415 - torch, after the check of the parent

    # Imports stay: scanning them for garbage at each cell would take a tenth of its prediction.
    gc.collect()
    gc.freeze()
    runs = [CellRun.model_validate_json(json.dumps(run)) for run in job["runs"]]
    with Path(argv[0]).with_name("answers.jsonl").open("w", buffering=1, encoding="utf-8") as out:
        for answer in answers(runs, profile, job["fits_bytes"]):
            out.write(json.dumps(answer) + "\n")
    return 0


def answers(
    runs: Sequence[CellRun], profile: Profile, fits_bytes: int | None
) -> Iterator[dict[str, Any]]:
    """Predict cells in order; yields the prediction of each, or its error."""
    from kdbench.predict.cell import predict  # noqa: PLC0415
    from kdbench.predict.fits import fit  # noqa: PLC0415
    from kdbench.predict.trace import TraceCache  # noqa: PLC0415

    traces = TraceCache(profile)
    for run in runs:
        answer: dict[str, Any]
        started = monotonic()
        try:
            answer = {**vars(predict(run, profile, traces))}
            if fits_bytes is not None:
                answer["fit"] = asdict(fit(run, traces, fits_bytes))
        except KdbenchError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - the other cells are still predicted
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            answer = {"error": f"cannot be traced: {type(error).__name__}: {first}"}
        yield {**answer, "seconds": monotonic() - started}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
