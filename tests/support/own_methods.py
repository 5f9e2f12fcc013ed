"""Methods with layers of their own, in the shapes that authors give them; by their names."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from kdbench.plugin import Method, StepResult, combined

METHODS = {}


def method(build):
    """Declare a method of this module."""
    name = build.__name__.strip("_").replace("_", "-")
    METHODS[name] = Method(
        step=f"tests.support.own_methods:{build.__name__}",
        teacher="image-embeddings",
        projection=False,
    )
    return build


def feature_loss(parts, project, batch, mark):
    mark("forward")
    features, logits = parts.student(batch.images)
    loss = F.mse_loss(project(features), batch.teacher_embeddings)
    return combined(parts.training, logits, batch.labels, loss)


def linear(parts):
    return nn.Linear(parts.student.width, parts.teacher_width)


# --- those that are right


@method
def owned(parts):
    return partial(feature_loss, parts, parts.own("projector", linear(parts)))


@method
def moved(parts):
    """With a buffer, a parameter beside it, one tensor of two names, and all moved by hand."""
    width = parts.student.width
    layers = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, width), nn.Linear(width, width))
    layers[2].weight = layers[1].weight
    layers = parts.own("layers", layers.to(parts.device))
    last = parts.own("last", linear(parts)).to(parts.device)
    scale = parts.own("scale", nn.Parameter(torch.ones((), device=parts.device)))
    return partial(feature_loss, parts, lambda features: scale * last(layers(features)))


@method
def attached(parts):
    """It puts them on the student, and keeps tensors that it tells nobody of."""
    device = next(parts.student.parameters()).device
    parts.student.projector = linear(parts).to(device)
    parts.student.scale = nn.Parameter(torch.ones((), device=device))
    before = parts.student.projector.weight.detach().clone()
    kept = {}

    def project(features):
        kept["queue"] = features.detach().clone()
        kept["moved"] = (parts.student.projector.weight - before).abs().max().detach()
        return parts.student.scale * parts.student.projector(features)

    return partial(feature_loss, parts, project)


class Step(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts, self.student, self.projector = parts, parts.student, linear(parts)

    def forward(self, batch, mark):
        return feature_loss(self.parts, self.projector, batch, mark)


@method
def module(parts):
    return Step(parts)


@method
def bound(parts):
    return Step(parts).forward


@method
def inside(parts):
    """A module with the student in it is the method's own but for that."""
    return parts.own("distiller", Step(parts))


@method
def averaged(parts):
    """What is not trained is counted and kept, too."""
    own = parts.own("average", linear(parts).requires_grad_(requires_grad=False).eval())
    trained = parts.own("projector", linear(parts))
    return partial(feature_loss, parts, lambda features: own(features) + trained(features))


@method
def constant(parts):
    """The gradient of its only parameter is 1 in every step."""
    offset = parts.own("offset", nn.Parameter(torch.zeros(())))

    def forward(batch, mark):
        mark("forward")
        logits = parts.student(batch.images).logits
        return StepResult(F.cross_entropy(logits, batch.labels) + offset, logits)

    return forward


@method
def of_images(parts):
    """Images that ask for gradients are made anew in each step: nobody is to train them."""

    def forward(batch, mark):
        images = batch.images.clone().requires_grad_()
        return feature_loss(parts, projector, batch._replace(images=images), mark)

    projector = parts.own("projector", linear(parts))
    return forward


# --- those that are not


@method
def hidden(parts):
    return partial(feature_loss, parts, linear(parts))


@method
def hidden_tensor(parts):
    scale = torch.ones(parts.teacher_width, requires_grad=True)
    projector = parts.own("projector", linear(parts))
    return partial(feature_loss, parts, lambda features: scale * projector(features))


@method
def lazy(parts):
    made = []

    def project(features):
        if not made:
            made.append(linear(parts))
        return made[0](features)

    return partial(feature_loss, parts, project)


@method
def late(parts):

    def project(features):
        return parts.own("projector", linear(parts))(features)

    return partial(feature_loss, parts, project)


@method
def sizeless(parts):
    return partial(feature_loss, parts, parts.own("lazy", nn.LazyLinear(parts.teacher_width)))


@method
def replaced(parts):
    parts.student.classifier = nn.Linear(parts.student.width, 5)
    return partial(feature_loss, parts, parts.own("projector", linear(parts)))


@method
def deepened(parts):
    parts.student.blocks.append(nn.Identity())
    return partial(feature_loss, parts, parts.own("projector", linear(parts)))


@method
def buffered(parts):
    parts.student.register_buffer("queue", torch.zeros(3))
    return partial(feature_loss, parts, parts.own("projector", linear(parts)))


@method
def tied(parts):
    return partial(feature_loss, parts, parts.own("both", nn.Sequential(parts.student.classifier)))


@method
def twice(parts):
    parts.own("projector", linear(parts))
    return partial(feature_loss, parts, parts.own("projector", linear(parts)))


@method
def tensor(parts):
    return partial(feature_loss, parts, parts.own("projector", torch.zeros(3)))


globals().update({name.upper().replace("-", "_"): value for name, value in METHODS.items()})
