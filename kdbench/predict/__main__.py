"""`python -m kdbench.predict JOB.json`: predict cells, a JSON line of each on the output."""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from kdbench.cell import CellRun
from kdbench.device_profile import Profile
from kdbench.errors import KdbenchError
from kdbench.lifetime import die_with_parent


def main(argv: list[str]) -> int:
    """Predict what the job asks for; what cannot be predicted is told in its line."""
    job = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    die_with_parent(job["parent"])
    # what libraries print is not to come between the lines
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    profile = Profile.model_validate_json(json.dumps(job["profile"]))
    import kdbench.predict.predict  # noqa: F401, PLC0415 - torch, once the parent is known

    # What has been imported stays: to look through all of it for garbage at each cell takes as
    # long as a tenth of its prediction.
    gc.collect()
    gc.freeze()
    for run in job["runs"]:
        _answer(out, CellRun.model_validate_json(json.dumps(run)), profile, job["fits_bytes"])
    return 0


def _answer(out: TextIO, run: CellRun, profile: Profile, fits_bytes: int | None) -> None:
    from kdbench.predict.predict import predict  # noqa: PLC0415

    answer: dict[str, Any]
    started = monotonic()
    try:
        made = predict(run, profile)
        answer = {
            "columns": made.columns,
            "memory": made.memory,
            "phases": made.phases,
            "timeline": made.timeline,
        }
        if fits_bytes is not None:
            from kdbench.predict.fits import fit  # noqa: PLC0415

            answer["fit"] = fit(run, profile, fits_bytes).row()
    except KdbenchError as error:
        answer = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the other cells are predicted
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        answer = {"error": f"cannot be traced: {type(error).__name__}: {first}"}
    answer["seconds"] = monotonic() - started
    out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
