"""A teacher's weights from a checkpoint: all of it is checked, and no code of it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.utils import logging as transformers_logging

from kdbench.errors import brief, quoted
from kdbench.settings import Teacher as Shape
from kdbench.worker.hub import CONFIG, Checkpoint, check_files, find_checkpoint, read_json

# transformers' names of what a matrix file says of a teacher
_SHAPE = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
}
# What else of a configuration counts. Whatever it may say beside it is left out: some keys have
# transformers fetch code, such as kernels for its attention, or load other files.
_KEPT = (
    *_SHAPE,
    "attention_probs_dropout_prob",
    "encoder_stride",
    "hidden_act",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "intermediate_size",
    "label2id",
    "layer_norm_eps",
    "num_channels",
    "num_labels",
    "pooler_act",
    "pooler_output_size",
    "qkv_bias",
)
# What is allocated goes by these, and the weights are compared with it only then.
_LARGEST = {"intermediate_size": 2**20, "pooler_output_size": 2**20, "num_labels": 10**6}
_HEAD = frozenset({"classifier.weight", "classifier.bias"})
# what transformers calls a class that has no name
_UNNAMED = re.compile(r"LABEL_\d+")
_OWN_CLASSES = 'fine-tune one on this data set, or let kdbench fit one: weights = "fitted"'


def read_pretrained(
    shape: Shape,
    table: str,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[Any, str | None]:
    """Read a ViT from a hub's repository or a local folder, in float32 on the host.

    Args:
        shape: what the matrix file says of the teacher.
        table: the matrix file's table that says it, for errors.
        classes: of the data set, for a classifier; None: a head is left aside.
        class_names: of the data set, in order, where they are known.

    Returns:
        A `ViTModel` (without a pooler where the checkpoint has none) or a
        `ViTForImageClassification`, and the hub's commit (None of a local folder).

    Raises:
        InputError: the checkpoint is absent, partial or damaged, or not what is asked for.
    """
    checkpoint = find_checkpoint(shape, table)
    config = _read_config(checkpoint)
    _check_shape(checkpoint, config, shape)
    check_files(checkpoint)
    model = _read_weights(checkpoint, config, classifier=classes is not None)
    if classes is not None:
        _check_classes(checkpoint, config, classes, class_names)
    return model, checkpoint.revision


def _read_config(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - transformers has no type stubs
    """Read the configuration, before any weights: they may be large, and of something else."""
    held = read_json(checkpoint, CONFIG)
    kind = held.get("model_type") if isinstance(held, dict) else None
    if kind != "vit":
        raise checkpoint.error(
            f"expected model_type 'vit' in {CONFIG}, found {kind!r}",
            hint="a teacher is a ViT, such as google/vit-base-patch16-224-in21k",
        )
    for name, most in _LARGEST.items():  # to make a configuration already names so many classes
        _check_largest(checkpoint, name, held.get(name), most)
    try:
        config = ViTConfig.from_dict({name: held[name] for name in _KEPT if name in held})
    except Exception as error:  # each version of transformers checks the values in its own way
        told = " ".join(str(error).split())
        raise checkpoint.error(
            f"cannot use {CONFIG}: {type(error).__name__}: {told}", hint=checkpoint.whole_again
        ) from error
    for name, most in _LARGEST.items():
        found = getattr(config, name, None)
        if found is not None and type(found) is not int:
            raise checkpoint.error(f"expected an integer {name} in {CONFIG}, found {brief(found)}")
        _check_largest(checkpoint, name, found, most)
    return config


def _check_largest(checkpoint: Checkpoint, name: str, found: object, most: int) -> None:
    if isinstance(found, int) and not 0 <= found <= most:
        problem = f"expected {name} of at most {most} in {CONFIG}, found {brief(found)}"
        raise checkpoint.error(problem)


def _check_shape(checkpoint: Checkpoint, config: Any, shape: Shape) -> None:  # noqa: ANN401
    for name, key in _SHAPE.items():
        wanted, found = getattr(shape, key), getattr(config, name)
        if found != wanted:
            raise checkpoint.error(
                f"the matrix file says {name} = {wanted}, the checkpoint has {found}", key=key
            )
    if config.num_channels != 3:
        raise checkpoint.error(
            f"expected num_channels = 3, the checkpoint has {config.num_channels}"
        )


def _read_weights(checkpoint: Checkpoint, config: Any, *, classifier: bool) -> Any:  # noqa: ANN401
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
                # what is missing or does not fit is told below, in our words
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


def _check_whole(checkpoint: Checkpoint, model: Any, info: Any) -> None:  # noqa: ANN401
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
        lacking = needed or sorted(missing & _HEAD)
        raise checkpoint.error(
            f"the checkpoint is partial: it lacks {len(lacking)} of "
            f"{len(model.state_dict()) - len(pooler)} weights, such as {quoted(lacking[:1])}",
            hint=checkpoint.whole_again,
        )
    if missing & _HEAD:
        raise checkpoint.error(
            "expected a classifier, found a checkpoint without a head", hint=_OWN_CLASSES
        )


def _unreadable(error: Exception, checkpoint: Checkpoint) -> Exception:
    hint = checkpoint.whole_again
    if any(checkpoint.folder.glob("*.safetensors")):
        told = (str(error).splitlines() or [""])[0]
        return checkpoint.error(
            f"cannot read the weights: {type(error).__name__}: {told}", hint=hint
        )
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


def _check_classes(
    checkpoint: Checkpoint,
    config: Any,  # noqa: ANN401
    classes: int,
    class_names: Sequence[str] | None,
) -> None:
    """Refuse a classifier of other classes, or of these in another order."""
    if config.num_labels != classes:
        raise checkpoint.error(
            f"expected a classifier of the data set's {classes} classes, found one of "
            f"{config.num_labels}",
            hint=_OWN_CLASSES,
        )
    labels = [str(config.id2label.get(number, f"LABEL_{number}")) for number in range(classes)]
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
