"""A teacher's weights from a checkpoint: all of it is checked, and no code of it is run."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils import logging as transformers_logging

from kdbench.common.errors import first_line, quoted
from kdbench.spec.cell import Cell
from kdbench.spec.preprocessing import Preprocessing
from kdbench.spec.pretrained.config import OWN_CLASSES, Config, check_class_count, read_config
from kdbench.spec.pretrained.files import CONFIG, Checkpoint
from kdbench.spec.pretrained.processor import resolve_teacher_preprocessing
from kdbench.spec.pretrained.weights import check_weights
from kdbench.worker.models.hub import fetch_processor, find_checkpoint

_HEAD = frozenset({"classifier.weight", "classifier.bias"})
# what transformers calls a class that has no name
_UNNAMED = re.compile(r"LABEL_\d+")


def read_pretrained(
    cell: Cell, *, class_names: Sequence[str] | None = None
) -> tuple[Any, str | None, Preprocessing]:
    """Read a cell's teacher from a hub's repository or a local folder, in float32 on the host.

    Returns the model, a `ViTModel` (without a pooler where the checkpoint has none) or a
    `ViTForImageClassification`; the hub's commit, None of a local folder; and what its pixels go
    through. `class_names` are the data set's, in order, where they are known.
    """
    teacher, table = cell.required_teacher, f"teachers.{cell.teacher_name}"
    classifier = cell.method_spec.classifier
    checkpoint = find_checkpoint(teacher, table)
    config = read_config(checkpoint, teacher)
    if checkpoint.revision is None:
        check_weights(checkpoint, config, classifier=classifier)
    elif not teacher.has_full_preprocessing:
        fetch_processor(checkpoint)
    preprocessing = resolve_teacher_preprocessing(
        teacher, table, checkpoint, side=cell.data.image_size
    )
    model = _read_weights(checkpoint, _as_transformers(checkpoint, config), classifier=classifier)
    if classifier:
        check_class_count(checkpoint, config, cell.data.classes)
        _check_class_names(checkpoint, config, class_names)
    return model, checkpoint.revision, preprocessing


def _as_transformers(checkpoint: Checkpoint, config: Config) -> ViTConfig:
    try:
        return ViTConfig(**config.for_transformers())
    except Exception as error:  # each version of transformers checks the values in its own way
        problem = f"cannot use {CONFIG}: {type(error).__name__}: {' '.join(str(error).split())}"
        raise checkpoint.error(problem, hint=checkpoint.whole_again) from error


def _read_weights(checkpoint: Checkpoint, config: Any, *, classifier: bool) -> Any:
    """Read all weights of a model of one of the two kinds."""
    kind = ViTForImageClassification if classifier else ViTModel
    try:
        with _silence():
            model, info = kind.from_pretrained(
                checkpoint.name,
                config=config,
                revision=checkpoint.revision or "main",
                # from safetensors alone: a pickle can run code
                use_safetensors=True,
                trust_remote_code=False,
                # as the random and fitted ones are, whatever it was saved in
                dtype=torch.float32,
                # what is missing or does not fit is reported below, in our words
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise _unreadable(error, checkpoint) from error
    _check_whole(checkpoint, model, info)
    if any(name.startswith("pooler.") for name in info["missing_keys"]):
        # The class token does without, and nobody is to count what was drawn at random.
        model.pooler = None
    return model


def _check_whole(checkpoint: Checkpoint, model: Any, info: Any) -> None:
    """Refuse weights that transformers has drawn at random, for want of them in the checkpoint."""
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise checkpoint.error(
            f"{CONFIG} means {name!r} to be {tuple(wanted)}, its weights are {tuple(found)}",
            hint=checkpoint.whole_again,
        )
    missing = set(info["missing_keys"])
    pooler = {name for name in missing if name.startswith("pooler.")}
    needed = sorted(missing - pooler - _HEAD)
    if needed or 0 < len(missing & _HEAD) < len(_HEAD):
        absent = needed or sorted(missing & _HEAD)
        raise checkpoint.error(
            f"the checkpoint is partial: it lacks {len(absent)} of "
            f"{len(model.state_dict()) - len(pooler)} weights, such as {quoted(absent[:1])}",
            hint=checkpoint.whole_again,
        )
    if missing & _HEAD:
        raise checkpoint.error(
            "expected a classifier, found a checkpoint without a head", hint=OWN_CLASSES
        )


def _unreadable(error: Exception, checkpoint: Checkpoint) -> Exception:
    hint = checkpoint.whole_again
    if any(checkpoint.folder.glob("*.safetensors")):
        problem = f"cannot read the weights: {type(error).__name__}: {first_line(error)}"
        return checkpoint.error(problem, hint=hint)
    if checkpoint.revision is None:
        return checkpoint.error(
            "expected model.safetensors, found none",
            hint="pickled weights are not read, for they can run code: load them where you trust "
            "them, and save_pretrained writes the other",
        )
    return checkpoint.error(
        "found no model.safetensors of this revision",
        hint=f"{hint}; if its repository has pickled weights alone, which can run code, give the "
        "`revision` of a conversion (often a pull request of it, refs/pr/N)",
    )


def _check_class_names(
    checkpoint: Checkpoint, config: Config, class_names: Sequence[str] | None
) -> None:
    """Refuse a classifier of the data set's classes in another order."""
    labels = [config.label(number) for number in range(config.classes)]
    if class_names is None or all(_UNNAMED.fullmatch(label) for label in labels):
        return
    for number, (label, name) in enumerate(zip(labels, class_names, strict=True)):
        if _plain(label) != _plain(name):
            raise checkpoint.error(
                f"expected the data set's classes in its order, found that class {number} is "
                f"{label!r} in the checkpoint and {name!r} in the data set",
                hint="number the data set's classes as the checkpoint does; where only the words "
                f"differ, write the data set's into id2label of {CONFIG} in a copy of it",
            )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' reports and progress bars out of the log: what is wrong is an error."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
