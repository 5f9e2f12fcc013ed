"""A checkpoint's config.json: which ViT it is, checked key by key.

Whatever else it may say is left out: some keys have transformers fetch code, such as kernels for
its attention, or load other files.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdbench.common.errors import quoted, short_repr
from kdbench.common.validation import expectation
from kdbench.spec.pretrained.files import CONFIG, Checkpoint, read_json
from kdbench.spec.settings import Teacher

# transformers' names of what a matrix file says of a teacher
_SHAPE = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
}
OWN_CLASSES = 'fine-tune one on this data set, or let kdbench fit one: weights = "fitted"'

# Those of transformers' activations that have no weights of their own.
Activation = Literal[
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
]


def _one_side(value: object) -> object:
    """Take [224, 224] for 224, as newer configurations write it."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value


_Size = Annotated[int, Field(ge=1, le=2**20)]
_Side = Annotated[_Size, BeforeValidator(_one_side)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """What of a ViT's configuration counts; what is left out is as transformers has it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hidden_size: _Size = 768
    num_hidden_layers: _Size = 12
    num_attention_heads: _Size = 12
    # What is allocated goes by these two, and the weights are compared with it only then.
    intermediate_size: _Size = 3072
    pooler_output_size: _Size | None = None
    patch_size: _Side = 16
    image_size: _Side = 224
    num_channels: _Size = 3
    qkv_bias: bool = True
    hidden_act: Activation = "gelu"
    pooler_act: Activation = "tanh"
    layer_norm_eps: Annotated[float, Field(ge=0, le=1)] = 1e-12
    hidden_dropout_prob: _Share = 0.0
    attention_probs_dropout_prob: _Share = 0.0
    # transformers names each of them as soon as it hears of their number
    num_labels: Annotated[int, Field(ge=0, le=10**6)] | None = None
    id2label: Annotated[dict[str, str], Field(max_length=10**6)] | None = None

    @property
    def classes(self) -> int:
        """How many classes a classifier's head has; two where nothing is said, as transformers."""
        if self.id2label is not None:
            return len(self.id2label)
        return 2 if self.num_labels is None else self.num_labels

    def label(self, number: int) -> str:
        """Return what a class is called."""
        return (self.id2label or {}).get(str(number), f"LABEL_{number}")

    @property
    def pooler_width(self) -> int:
        """How wide a pooler is."""
        return self.pooler_output_size or self.hidden_size

    def for_transformers(self) -> dict[str, Any]:
        """Return the arguments of a `ViTConfig` of this shape, with no class named."""
        return self.model_dump(exclude={"id2label", "num_labels"}) | {"num_labels": self.classes}


def read_config(checkpoint: Checkpoint, teacher: Teacher) -> Config:
    """Read the configuration, before any weights: they may be large, and of something else.

    Raises InputError if it cannot be read, is not a ViT's, or not of the shape that is asked for.
    """
    held = read_json(checkpoint, CONFIG)
    kind = held.get("model_type") if isinstance(held, dict) else None
    if kind != "vit":
        raise checkpoint.error(
            f"expected model_type 'vit' in {CONFIG}, found {short_repr(kind)}",
            hint="a teacher is a ViT, such as google/vit-base-patch16-224-in21k",
        )
    # null is transformers' own way to say nothing
    said = {name: held[name] for name in Config.model_fields if held.get(name) is not None}
    try:
        config = Config.model_validate(said)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise checkpoint.error(
            f"expected {expectation(wrong)} for {wrong['loc'][0]} in {CONFIG}, "
            f"found {short_repr(wrong['input'])}"
        ) from None
    _check_labels(checkpoint, config)
    _check_shape(checkpoint, config, teacher)
    return config


def _check_labels(checkpoint: Checkpoint, config: Config) -> None:
    wrong = [key for key in config.id2label or () if not (key.isascii() and key.isdigit())]
    if wrong:
        problem = f"expected numbers as keys of id2label in {CONFIG}, found {quoted(wrong[:1])}"
        raise checkpoint.error(problem)


def _check_shape(checkpoint: Checkpoint, config: Config, teacher: Teacher) -> None:
    for name, key in _SHAPE.items():
        wanted, found = getattr(teacher, key), getattr(config, name)
        if found != wanted:
            problem = f"the matrix file says {name} = {wanted}, the checkpoint has {found}"
            raise checkpoint.error(problem, key=key)
    if config.num_channels != 3:
        problem = f"expected num_channels = 3, the checkpoint has {config.num_channels}"
        raise checkpoint.error(problem)


def check_class_count(checkpoint: Checkpoint, config: Config, classes: int) -> None:
    """Refuse a classifier of another number of classes than the data set's."""
    if config.classes != classes:
        raise checkpoint.error(
            f"expected a classifier of the data set's {classes} classes, found one of "
            f"{config.classes}",
            hint=OWN_CLASSES,
        )
