"""The same training by hand: what a cell computes, written without kdbench.

    python benchmarks/bare.py '{"steps": 20, "batch": 8, ...}'

imports torch (and transformers, for a teacher), builds, trains so many steps and leaves at once. It
prints the seconds that building and training took, imports left out.
"""

import json
import os
import sys
from time import perf_counter

import torch
import torch._dynamo  # torch's optimizers import it when the first is made
from torch import nn
from torch.nn import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.first = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.second = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        batch, count, width = x.shape
        qkv = self.qkv(self.first(x)).view(batch, count, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query * (width // self.heads) ** -0.5) @ key.transpose(-2, -1)
        mixed = F.dropout(weights.softmax(dim=-1), 0.1, training=self.training) @ value
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, count, width))
        up = self.up(self.second(x))
        return x + self.down(up * torch.sigmoid(1.702 * up))


class Student(nn.Module):
    def __init__(self, patch, width, depth, heads, side, classes, teacher_width=None):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width) * width**-0.5)
        self.first = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.last = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        self.projection = nn.Linear(teacher_width, width) if teacher_width else None

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), 1, -1), patches], 1) + self.positions
        features = self.last(self.blocks(self.first(tokens))[:, 0])
        return features, self.classifier(features)


class Loop:
    """Student alone: `step` draws a batch, trains on it and returns the loss.

    `logits` maps normalised images to class scores.
    """

    def __init__(self, parameters, logits, pixels, labels, *, count, batch, optimizer=None):
        self.logits, self.pixels, self.labels, self.batch = logits, pixels, labels, batch
        self.count = count
        self.optimizer = optimizer or torch.optim.AdamW(parameters, 1e-4, weight_decay=0.1)
        self.draws = self.drawn()

    def drawn(self):
        while True:
            order, flips = torch.randperm(self.count), torch.rand(self.count) < 0.5
            for start in range(0, self.count - self.batch + 1, self.batch):
                part = slice(start, start + self.batch)
                yield order[part], flips[part]

    def images(self):
        order, flips = next(self.draws)
        rows = order % len(self.labels)
        pixels = self.pixels[rows].float()
        return torch.where(flips[:, None, None, None], pixels.flip(-1), pixels), self.labels[rows]

    def normalised(self, pixels):
        mean, deviation = (pixels.new_tensor(v).view(3, 1, 1) * 255 for v in (MEAN, DEVIATION))
        return (pixels - mean) / deviation

    def loss(self, pixels, labels):
        return F.cross_entropy(self.logits(self.normalised(pixels)), labels)

    def step(self):
        pixels, labels = self.images()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(pixels, labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class TeacherLoop(Loop):
    """Teacher-KD: the teacher embeds each batch, and an image must find its own embedding."""

    def __init__(self, student, teacher, side, *rest, **options):
        super().__init__(student.parameters(), None, *rest, **options)
        self.student, self.teacher, self.side = student, teacher, side

    def loss(self, pixels, labels):
        size = (self.side, self.side)
        seen = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            found = self.teacher(pixel_values=self.normalised(seen)).last_hidden_state[:, 0]
        features, logits = self.student(self.normalised(pixels))
        anchors = F.normalize(self.student.projection(found), dim=-1)
        similarity = F.normalize(features, dim=-1) @ anchors.T
        own = F.cross_entropy(similarity, torch.arange(len(features)))
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * own


def main(asked):
    torch.set_num_threads(asked["threads"])
    if asked["teacher"]:
        from transformers import ViTConfig, ViTModel  # noqa: PLC0415 - only where it counts
    started = perf_counter()
    shape, side, count = asked["student"], asked["side"], asked["images"]
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    labels = torch.randint(0, asked["classes"], (count,))
    settings = {"count": count, "batch": asked["batch"]}
    width = asked["teacher"]["hidden_size"] if asked["teacher"] else None
    student = Student(**shape, side=side, classes=asked["classes"], teacher_width=width).train()
    if asked["teacher"]:
        teacher = ViTModel(ViTConfig(**asked["teacher"])).eval().requires_grad_(False)
        side = asked["teacher"]["image_size"]
        loop = TeacherLoop(student, teacher, side, pixels, labels, **settings)
    else:
        loop = Loop(
            student.parameters(), lambda images: student(images)[1], pixels, labels, **settings
        )
    for _ in range(asked["steps"]):
        loop.step()
    print(json.dumps({"seconds": perf_counter() - started}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)
