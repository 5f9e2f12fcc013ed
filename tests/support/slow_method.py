"""Methods whose steps take a known while, so that what is sampled of them is sampled for sure."""

import time

from kdbench.plugin import Method

STEP_SECONDS = 0.05

ALONE = Method(step="slow_method:alone", teacher="none")
EMBED = Method(step="slow_method:embed", teacher="class-embeddings")


def alone(parts):
    from kdbench.worker.training.methods import student_only  # noqa: PLC0415 - planning imports no torch

    return _slowed(student_only(parts))


def embed(parts):
    from kdbench.worker.training.methods import embed_kd  # noqa: PLC0415

    return _slowed(embed_kd(parts))


def _slowed(forward):
    def slow(batch, mark):
        time.sleep(STEP_SECONDS)
        return forward(batch, mark)

    return slow
