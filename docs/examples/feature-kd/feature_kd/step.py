"""The step: imported by the measured process alone."""

import torch.nn.functional as F
from torch import nn

from kdbench.plugin import Batch, Forward, Mark, Parts, StepResult, combined


def feature_kd(parts: Parts) -> Forward:
    """Bring the student's feature, projected, to the teacher's embedding (Romero et al. 2015)."""
    projector = parts.own("projector", nn.Linear(parts.student.width, parts.teacher_width))

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        features, logits = parts.student(batch.images)
        distillation = F.mse_loss(projector(features), batch.teacher_embeddings)
        return combined(parts.training, logits, batch.labels, distillation)

    return forward
