"""The student: a CLIP-style vision transformer (DESIGN, "The paper's training, exactly")."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdbench.spec.settings import Attention as AttentionKernel
from kdbench.spec.settings import Student as Shape


class StudentOutput(NamedTuple):
    """What the student makes of a batch."""

    #: the class token after the last LayerNorm, [batch, width]
    features: Tensor
    #: raw class scores, [batch, classes]
    logits: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with dropout on the attention weights."""

    def __init__(self, shape: Shape, kernel: AttentionKernel) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.attention_dropout
        self.kernel = kernel
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.output = nn.Linear(shape.width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend over tokens [batch, tokens, width]."""
        batch, count, width = tokens.shape
        heads = self.query_key_value(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if self.kernel == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        else:
            scale = (width // self.heads) ** -0.5
            weights = ((query * scale) @ key.transpose(-2, -1)).softmax(dim=-1)
            mixed = F.dropout(weights, dropout, training=self.training) @ value
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, count, width))
        return attended


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU, x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each element."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A pre-LayerNorm transformer block: attention, then a 4x MLP, each added to its input."""

    def __init__(self, shape: Shape, kernel: AttentionKernel) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width)
        self.attention = Attention(shape, kernel)
        self.mlp_norm = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(
            nn.Linear(shape.width, 4 * shape.width),
            QuickGELU(),
            nn.Linear(4 * shape.width, shape.width),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform tokens [batch, tokens, width]."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        result: Tensor = tokens + self.mlp(self.mlp_norm(tokens))
        return result


class Student(nn.Module):
    """Vision transformer with a linear classifier and a projection for the teacher's side.

    Without a `teacher_width` it has no projection. Checkpointing keeps each block's input alone in
    training, and computes the block again in backward, with the same dropout.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        image_size: int,
        classes: int,
        teacher_width: int | None,
        attention: AttentionKernel,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        #: of its features
        self.width = width = shape.width
        self.checkpointing = checkpointing
        patches = (image_size // shape.patch_size) ** 2
        self.patches = nn.Conv2d(3, width, shape.patch_size, stride=shape.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(patches + 1, width))
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(shape, attention) for _ in range(shape.depth))
        self.output_norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)
        self.projection = nn.Linear(teacher_width, width) if teacher_width else None
        # CLIP's scale for what has no layer to initialise it
        nn.init.normal_(self.class_token, std=width**-0.5)
        nn.init.normal_(self.positions, std=width**-0.5)

    def forward(self, images: Tensor) -> StudentOutput:
        """Look at images [batch, 3, side, side], normalised."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(images), 1, -1)
        tokens = self.input_norm(torch.cat([first, patches], dim=1) + self.positions)
        for block in self.blocks:
            if self.checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        features = self.output_norm(tokens[:, 0])
        return StudentOutput(features, self.classifier(features))

    def project(self, embeddings: Tensor) -> Tensor:
        """Bring teacher embeddings [n, teacher width] to the student's width, [n, width]."""
        if self.projection is None:
            raise RuntimeError("this student was built without a projection")
        projected: Tensor = self.projection(embeddings)
        return projected
