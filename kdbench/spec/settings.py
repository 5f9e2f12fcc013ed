"""The settings that decide what a cell computes: student, teacher, data, training.

All of them travel to the worker as JSON and are checked again there by the same models.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from kdbench.common.errors import did_you_mean, quoted, short_repr
from kdbench.common.text import validate_name

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Attention = Literal["eager", "sdpa"]
OptimizerKernels = Literal["auto", "single", "foreach", "fused"]
Loss = Literal["paper", "published-code"]
#: Pillow's filters
Resampling = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

# The largest numbers a matrix may ask for: far above any use, and small enough that a typing
# error is told instead of being allocated.
Side = Annotated[int, Field(ge=1, le=8192)]
Width = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=10**8, allow_inf_nan=False)]
Name = Annotated[str, AfterValidator(validate_name)]


def _path(text: str) -> str:
    if any(len(part.encode()) > 255 for part in text.split("/")) or not text.isprintable():
        raise ValueError(f"expected a path or a name on the hub, found {short_repr(text)}")
    return text


def _inside(text: str) -> str:
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(f"expected a name inside the data set, found {short_repr(text)}")
    return _path(text)


#: A file or folder, or a name on the hub: one that the system can be asked for.
Located = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_path)]
#: Something inside of that, which leads nowhere else.
Part = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_inside)]
Revision = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(_inside)]
Column = Annotated[str, Field(max_length=1000)]


class Frozen(BaseModel):
    """Settings: immutable, no unknown key, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Student(Frozen):
    """Shape of a CLIP-style vision transformer."""

    patch_size: Side
    width: Width
    depth: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    #: dropout on the attention weights
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    #: the shape is inferred, not published; said wherever the student is shown
    inferred: bool = False


class Fit(Frozen):
    """How kdbench fits a small teacher itself, on the data set's training images."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 15
    learning_rate: Rate = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    seed: Seed = 0


#: Means and deviations of the channels by name, for pixels in 0..1. imagenet: of its pictures;
#: half: from -1 to 1, which transformers calls imagenet's standard.
NORMALISATIONS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_Mean = Annotated[float, Field(ge=-1e4, le=1e4, allow_inf_nan=False)]
_Deviation = Annotated[float, Field(ge=1e-4, le=1e4, allow_inf_nan=False)]


class Normalisation(Frozen):
    """Channels of pixels in 0..1 become (value - mean) / std."""

    mean: Annotated[tuple[_Mean, _Mean, _Mean], Field(strict=False)]
    std: Annotated[tuple[_Deviation, _Deviation, _Deviation], Field(strict=False)]


# The keys of a teacher that say what its pixels go through.
_PREPROCESSING = ("normalisation", "resampling", "resize")


class Teacher(Frozen):
    """A Hugging Face ViT: its shape, and where its weights come from."""

    patch_size: Side
    width: Width
    depth: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    image_size: Side = 224
    #: random: drawn at random (memory and time do not depend on them); pretrained: from
    #: `checkpoint`; fitted: trained by kdbench on the data set, and cached
    weights: Literal["random", "pretrained", "fitted"] = "random"
    #: hub name, or a local folder that `save_pretrained` wrote
    checkpoint: Located | None = None
    #: commit, tag or branch of the hub's repository
    revision: Revision | None = None
    #: what its pixels go through. Unset: what its checkpoint says of itself
    #: (preprocessor_config.json), and where there is none, what the published code does: CLIP's
    #: means and deviations, bilinear, nothing cut off.
    #: normalisation: "clip", "imagenet", "half", or means and deviations of pixels in 0..1...
    normalisation: Normalisation | None = None
    #: ...the filter that resizes...
    resampling: Resampling | None = None
    #: ...and the side that images are resized to before their centre is cut out, `image_size` wide
    #: and high; `image_size` itself: nothing is cut off
    resize: Side | None = None
    fit: Fit = Fit()

    @field_validator("normalisation", mode="before")
    @classmethod
    def _named(cls, said: object) -> object:
        if not isinstance(said, str):
            return said
        if said not in NORMALISATIONS:
            near = did_you_mean(said, NORMALISATIONS)
            raise ValueError(
                f"expected one of {quoted(NORMALISATIONS)}, or {{ mean = [...], std = [...] }}, "
                f"found {short_repr(said)}" + (f"; {near}" if near else "")
            )
        mean, std = NORMALISATIONS[said]
        return {"mean": mean, "std": std}

    def explicit_preprocessing(self) -> dict[str, Any]:
        """Return the keys of what its pixels go through that the matrix file sets."""
        found = {name: getattr(self, name) for name in _PREPROCESSING}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def has_full_preprocessing(self) -> bool:
        """Whether the matrix file says all of it, so that no checkpoint is asked."""
        return len(self.explicit_preprocessing()) == len(_PREPROCESSING)

    def identity(self, *, without: set[str]) -> dict[str, Any]:
        """Return its settings as JSON values, less some, and less what is unset of its pixels'.

        What has been without these keys is the same as ever.
        """
        said = self.explicit_preprocessing()
        unset = {name for name in _PREPROCESSING if name not in said}
        return self.model_dump(exclude=without | unset)


class Data(Frozen):
    """The data set."""

    #: synthetic: random images of the given shape; digits: scikit-learn's, bundled with it;
    #: datasets: whatever the `datasets` library loads from `path`
    source: Literal["synthetic", "digits", "datasets"] = "synthetic"
    name: Name
    classes: Annotated[int, Field(ge=2, le=1_000_000)]
    #: side of the stored images in pixels; `datasets` resizes what it reads to it
    image_size: Side = 32
    train_images: Count
    test_images: Count
    #: random horizontal flip in training
    flip: bool = True
    #: random resized crop in training: the smallest and largest share of an image's area that is
    #: kept, such as [0.08, 1.0]; None: no crop
    crop: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    #: where source = "datasets" is kept, as uint8. device: with the training; stream: nowhere, it
    #: is decoded again in each epoch; auto: on the device, if a quarter of its free memory will do
    storage: Literal["auto", "device", "stream"] = "auto"
    #: processes that decode images
    workers: Annotated[int, Field(ge=1, le=256)] = 4
    #: for source = "datasets": hub name (owner/name), local folder or .parquet file...
    path: Located | None = None
    #: ...its configuration: of a hub data set, or a folder inside the local one...
    config: Part | None = None
    #: ...commit, tag or branch of the hub's repository...
    revision: Revision | None = None
    #: ...and its splits and columns; of parquet and of the hub also a part, as "train[:80%]"
    train_split: Part = "train"
    test_split: Part = "test"
    image_column: Column = "img"
    label_column: Column = "label"

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and crop[0] > crop[1]:
            raise ValueError(
                f"expected the smallest share first, then the largest, found {list(crop)}"
            )
        return crop


class Training(Frozen):
    """One training, as DESIGN's "The paper's training, exactly" has it."""

    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    precision: Precision = "fp32"
    attention: Attention = "eager"
    #: the student is compiled by torch
    compile: bool = False
    #: the activations inside the student's blocks are dropped and computed again in backward
    checkpointing: bool = False
    loss: Loss = "paper"
    #: None: 1 - alpha2
    alpha1: Weight | None = None
    alpha2: Weight = 0.5
    optimizer: Literal["adamw"] = "adamw"
    #: how the optimizer works through the parameters: one after another (single), in horizontal
    #: passes over all of them (foreach), in one kernel (fused); auto is torch's own choice: foreach
    #: on CUDA, single on a CPU
    optimizer_kernels: OptimizerKernels = "auto"
    learning_rate: Rate = 1e-4
    weight_decay: Weight = 0.1
    #: training images per class behind a class embedding
    images_per_class: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    #: images that the teacher embeds at once in a precompute: apart from `batch_size`, so that
    #: cells of all batch sizes share its result to the bit
    precompute_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64
