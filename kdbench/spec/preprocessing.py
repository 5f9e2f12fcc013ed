"""What a model's pixels go through: resized, the centre cut out, normalised."""

from dataclasses import dataclass, field, replace

from kdbench.spec.settings import NORMALISATIONS, Resampling, Teacher

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become a model's input."""

    mean: Channels  #: of each channel, for pixels in 0..1
    std: Channels  #: deviation of each channel, likewise
    #: Pillow's name of the filter; all but "nearest" are antialiased
    resampling: Resampling = "bilinear"
    #: side that images are resized to, in pixels; the centre is then cut out, at the model's own
    #: size. None: resized to that size, and nothing is cut off
    resize: int | None = None
    #: who defines it: "checkpoint", "matrix", "default", or "matrix over ..."
    source: str = field(default="default", compare=False)

    def summary(self, size: int) -> str:
        """Say it in words, for a model that takes images of `size` pixels a side."""
        resized = f"{size} {self.resampling}"
        if self.resize not in (None, size):
            resized = f"{self.resize} {self.resampling}, centre {size}"
        mean, std = (" ".join(f"{value:.8g}" for value in part) for part in (self.mean, self.std))
        return f"{resized}, mean {mean}, std {std}"


#: What students see, and teachers of whom nothing else is known: CLIP's channel means and
#: deviations (Radford et al. 2021, the published preprocessing of the models), resized bilinearly,
#: as the published code of the paper has it for all models.
CLIP = Preprocessing(mean=NORMALISATIONS["clip"][0], std=NORMALISATIONS["clip"][1])


def resolve_preprocessing(teacher: Teacher, checkpoint: Preprocessing | None) -> Preprocessing:
    """Resolve a teacher's preprocessing: the matrix file's keys win over the checkpoint's."""
    explicit = teacher.explicit_preprocessing()
    base = CLIP if checkpoint is None else replace(checkpoint, source="checkpoint")
    if not explicit:
        return base
    source = "matrix" if teacher.has_full_preprocessing else f"matrix over {base.source}"
    if normalisation := explicit.pop("normalisation", None):
        explicit |= {"mean": normalisation.mean, "std": normalisation.std}
    return replace(base, source=source, **explicit)
