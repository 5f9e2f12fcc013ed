"""What a model's pixels go through: resized, the centre cut out, normalised."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.spec.settings import NORMALISATIONS, Resampling, Teacher

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become a model's input.

    Attributes:
        mean: of each channel, for pixels in 0..1.
        std: deviation of each channel, likewise.
        resampling: Pillow's name of the filter; all but "nearest" are antialiased.
        resize: side that images are resized to, in pixels; the centre is then cut out, at the
            model's own size. None: resized to that size, and nothing is cut off.
    """

    mean: Channels
    std: Channels
    resampling: Resampling = "bilinear"
    resize: int | None = None

    def described(self, size: int) -> str:
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


@dataclass(frozen=True, kw_only=True)
class Described:
    """A preprocessing, and who says so: the matrix, the checkpoint, default, or one over another.

    Attributes:
        how: the preprocessing.
        source: in words.
    """

    how: Preprocessing
    source: str


def settled(teacher: Teacher, checkpoints: Preprocessing | None) -> Described:
    """Settle a teacher's preprocessing: the matrix file's keys win over its checkpoint's.

    Args:
        teacher: what the matrix file says of it.
        checkpoints: what its checkpoint says; None: it says nothing, or has none.
    """
    said = teacher.preprocessing_said()
    otherwise = checkpoints or CLIP
    how = Preprocessing(
        mean=said["normalisation"].mean if "normalisation" in said else otherwise.mean,
        std=said["normalisation"].std if "normalisation" in said else otherwise.std,
        resampling=said.get("resampling", otherwise.resampling),
        resize=said.get("resize", otherwise.resize),
    )
    below = "default" if checkpoints is None else "checkpoint"
    if not said:
        return Described(how=how, source=below)
    whole = teacher.preprocessing_is_whole
    return Described(how=how, source="matrix" if whole else f"matrix over {below}")
