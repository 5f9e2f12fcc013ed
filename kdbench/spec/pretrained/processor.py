"""What a checkpoint says that its pixels go through: preprocessor_config.json.

Newer versions of transformers write it into processor_config.json, as `image_processor`. Only data
are read, key by key, with the defaults of the processor that they are written for; what is not done
here in the same way is refused, each part of it with the key of the matrix file that says it
instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from kdbench.common.errors import InputError, quoted, short_repr
from kdbench.spec.preprocessing import CLIP, Channels, Preprocessing, resolve_preprocessing
from kdbench.spec.pretrained.files import Checkpoint, read_json
from kdbench.spec.settings import NORMALISATIONS, Resampling, Teacher

#: where it is said, the first that says it wins
FILES = ("processor_config.json", "preprocessor_config.json")
# Pillow's numbers of its filters
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_HALF_MEAN, _HALF_STD = NORMALISATIONS["half"]
_COMMON = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "image_mean": _HALF_MEAN,
    "image_std": _HALF_STD,
}
_CROPPED = {
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "image_mean": CLIP.mean,
    "image_std": CLIP.std,
}
# What each kind of processor does where its file says nothing.
_KINDS: dict[str, dict[str, Any]] = {
    "ViT": {"resample": 2, "size": 224},
    "DeiT": {"do_center_crop": True, "size": 256, "crop_size": 224},
    "Beit": {"size": 224, "crop_size": 224},
    "Siglip": {"size": 224},
    "CLIP": _CROPPED,
    "Bit": _CROPPED,
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
}
_SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
# These change nothing here: pictures come in RGB, and labels are nobody's pixels.
_HARMLESS = ("do_convert_rgb", "do_reduce_labels")
# ConvNeXt's own rule: smaller pictures are cut out of larger ones, these and larger are not.
_UNCUT = 384


def resolve_teacher_preprocessing(
    teacher: Teacher, table: str, checkpoint: Checkpoint | None, *, side: int
) -> Preprocessing:
    """Resolve what a teacher's pixels go through; raises InputError for what is not done here.

    `table` is the teacher's table in the matrix file; `side` is that of the data set's images,
    which a checkpoint may leave as they are, in pixels.
    """
    if teacher.resize is not None and teacher.resize < teacher.image_size:
        raise InputError(
            f"expected at least image_size = {teacher.image_size}, found {teacher.resize}",
            key=f"{table}.resize",
            hint="the centre, image_size wide, is cut out of what it is resized to",
        )
    said = None
    if checkpoint is not None and not teacher.has_full_preprocessing:
        said = _read(checkpoint, teacher, side)
    return resolve_preprocessing(teacher, said)


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file's keys, over the defaults of its kind of processor."""

    checkpoint: Checkpoint
    name: str
    keys: Mapping[str, Any]
    kind: str = "ViT"

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What its kind of processor does where the file says nothing."""
        return _COMMON | _KINDS[self.kind]

    def get(self, key: str) -> Any:  # noqa: ANN401
        """Return what holds of a key: null is transformers' way to say nothing."""
        said = self.keys.get(key)
        return self.defaults.get(key) if said is None else said

    def flag(self, key: str, instead: str) -> bool:
        """Return what holds of a flag."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value, instead)
        return value

    def error(self, key: str, expected: str, found: object, instead: str) -> InputError:
        """Make the error of a key, with the matrix file's keys that say it instead."""
        table = self.checkpoint.table
        if instead == "all":
            said = f"set normalisation, resampling and resize of [{table}] in the matrix file"
            instead = "normalisation"
        else:
            said = f"set {table}.{instead} in the matrix file to say it instead"
        return self.checkpoint.error(
            f"expected {expected} for {key} in {self.name}, found {short_repr(found)}",
            key=instead,
            hint=said,
        )


def _read(checkpoint: Checkpoint, teacher: Teacher, side: int) -> Preprocessing | None:
    """Read what a checkpoint says, less what the matrix file says; None: it says nothing."""
    file = _find(checkpoint)
    if file is None:
        return None
    file = replace(file, kind=_kind(file))
    for key, value in file.keys.items():
        if key.startswith("do_") and key not in (*_COMMON, *_HARMLESS) and value:
            raise file.error(key, "nothing, or false,", value, "all")
    mean, std = (CLIP.mean, CLIP.std) if teacher.normalisation else _normalisation(file)
    return Preprocessing(
        mean=mean,
        std=std,
        resampling=teacher.resampling or _resampling(file),
        resize=teacher.resize or _resize(file, teacher.image_size, side),
    )


def _find(checkpoint: Checkpoint) -> _File | None:
    for name in filter(checkpoint.has, FILES):
        keys, what = read_json(checkpoint, name), "a table"
        if name == FILES[0] and isinstance(keys, dict):
            if "image_processor" not in keys:  # of texts, or where the other file is
                continue
            keys, what = keys["image_processor"], "a table as image_processor"
        if not isinstance(keys, dict):
            raise checkpoint.error(f"expected {what} in {name}, found {short_repr(keys)}")
        return _File(checkpoint=checkpoint, name=name, keys=keys)
    return None


def _kind(file: _File) -> str:
    """Return the kind of processor that a file is of; the oldest do not say, and are ViT's."""
    key = "image_processor_type"
    if file.keys.get(key) is None and file.keys.get("feature_extractor_type") is not None:
        key = "feature_extractor_type"
    said = file.keys.get(key)
    if said is None:
        return "ViT"
    suffix = next((s for s in _SUFFIXES if str(said).endswith(s)), "")
    kind = str(said).removesuffix(suffix)
    if kind not in _KINDS:
        names = [f"{kind}ImageProcessor" for kind in _KINDS]
        raise file.error(key, f"one of {quoted(names)}", said, "all")
    return kind


def _normalisation(file: _File) -> tuple[Channels, Channels]:
    """Return means and deviations of pixels in 0..1, whatever scale the file's are of."""
    instead, scale = "normalisation", 255.0
    if file.flag("do_rescale", instead):
        factor = file.get("rescale_factor")
        if not _is_number(factor) or not 0 < factor <= 1:
            raise file.error("rescale_factor", "a number in 0..1", factor, instead)
        scale *= factor
    if abs(scale - 1) < 1e-6:
        scale = 1.0
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    if file.flag("do_normalize", instead):
        mean, std = _channels(file, "image_mean"), _channels(file, "image_std")
        if min(std) <= 0:
            raise file.error("image_std", "numbers above 0", list(std), instead)
    scaled = (tuple(value / scale for value in part) for part in (mean, std))
    return cast("tuple[Channels, Channels]", tuple(scaled))


def _channels(file: _File, key: str) -> Channels:
    value = file.get(key)
    each = [value] * 3 if _is_number(value) else value
    if not isinstance(each, list | tuple) or len(each) != 3 or not all(map(_is_number, each)):
        raise file.error(key, "three numbers", value, "normalisation")
    red, green, blue = map(float, each)
    return red, green, blue


def _resampling(file: _File) -> Resampling:
    value = file.get("resample")
    if type(value) is not int or not 0 <= value < len(_FILTERS):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(_FILTERS))
        raise file.error("resample", f"one of {known}", value, "resampling")
    return cast("Resampling", _FILTERS[value])


def _resize(file: _File, wanted: int, side: int) -> int | None:
    """Return the side that images are resized to before the centre is cut out; None: no cut.

    Our images are square: their shorter side is as long as the other.
    """
    resized = seen = side
    if file.flag("do_resize", "resize"):
        resized = seen = _side(file, "size")
        if file.kind == "ConvNext" and resized < _UNCUT:
            share = file.get("crop_pct")
            if not _is_number(share) or not 0.01 <= share <= 1:
                raise file.error("crop_pct", "a number in 0.01..1", share, "resize")
            resized = int(seen / share)
    if file.flag("do_center_crop", "resize"):
        seen = _side(file, "crop_size")
    if seen != wanted or seen > resized:
        key = "crop_size" if file.get("do_center_crop") else "size"
        whole = file.keys.get(key, file.defaults.get(key))
        expected = f"{wanted}, as image_size of the teacher is"
        if seen > resized:
            expected = f"at most the {resized} that pictures are resized to"
        raise file.error(key if file.get("do_resize") else "do_resize", expected, whole, "resize")
    return None if resized == wanted else resized


def _side(file: _File, key: str) -> int:
    """Return the side of a square that a size means, for a square image."""
    value = sides = file.get(key)
    if isinstance(value, dict):
        said = {name: held for name, held in value.items() if held is not None}
        # both edges, or bounds: what a square is resized to is the smaller
        known = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"})
        if set(said) not in (*known, {"max_height", "max_width"}):
            raise file.error(key, "height and width, or shortest_edge,", value, "resize")
        sides = list(said.values())
        if "height" not in said and all(map(_is_side, sides)):
            sides = [min(sides)]
    sides = sides if isinstance(sides, list | tuple) else [sides]
    if not sides or len(sides) > 2 or not all(map(_is_side, sides)):
        raise file.error(key, "a side in pixels", value, "resize")
    if len(set(sides)) > 1:
        raise file.error(key, "a square", value, "resize")
    return int(sides[0])


def _is_number(value: Any) -> bool:  # noqa: ANN401
    # what JSON has besides, NaN and Infinity, is not at most anything
    return type(value) in (int, float) and abs(value) <= 1e9


def _is_side(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and 1 <= value <= 8192
