"""The step: imported by the measured process alone."""

import torch.nn.functional as F

from kdbench.plugin import Batch, Forward, Mark, Parts, StepResult, combined, cosine_logits


def similarity_kd(parts: Parts) -> Forward:
    """Images that the teacher finds alike shall be alike to the student (Tung & Mori 2019)."""

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        features, logits = parts.student(batch.images)
        taught = cosine_logits(batch.teacher_embeddings, batch.teacher_embeddings)
        distillation = F.mse_loss(cosine_logits(features, features), taught)
        return combined(parts.training, logits, batch.labels, distillation)

    return forward
