"""Turn what pydantic finds wrong in a document into one clear error with its dotted key."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr

Model = TypeVar("Model", bound=BaseModel)

_TYPES = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "missing": "a value",
}
# What a value must be beside its type, in words: pydantic's own are for programmers.
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} character(s)",
    "too_long": "at most {max_length} value(s)",
    "too_short": "at least {min_length} value(s)",
    "int_from_float": "an integer",
}


def validate(
    model: type[Model],
    document: Mapping[str, Any],
    *,
    where: object | None = None,
    prefix: str = "",
    written: Mapping[str, Any] | None = None,
) -> Model:
    """Check `document` against `model`; raises InputError for the first thing wrong.

    `prefix` is the document's dotted key in the file `where`; `written` is the document as the user
    wrote it, where that differs: keys are reported as in it.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        # A misspelt key is missing under its right name as well: tell the misspelling.
        found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        shown = document if written is None else written
        raise _as_input_error(found[0], model, shown, where, prefix) from None


def dotted_key(parts: Sequence[str | int], document: object) -> str:
    """Write a path into `document` as a user would: `axes.student[1]`.

    An index into what is no list is left out: a scalar may stand for a list of one.
    """
    key, node = "", document
    for part in parts:
        if isinstance(part, int):
            if not isinstance(node, list | tuple):
                continue
            key += f"[{part}]"
            node = node[part] if part < len(node) else None
        else:
            key += f".{part}" if key else part
            node = node.get(part) if isinstance(node, Mapping) else None
    return key


def _as_input_error(
    error: ErrorDetails,
    model: type[BaseModel],
    document: Mapping[str, Any],
    where: object | None,
    prefix: str,
) -> InputError:
    path, kind, found = error["loc"], error["type"], error["input"]
    if path and path[-1] == "[key]":  # pydantic's word for a table's name that may be none
        path = path[:-1]
    key = ".".join(filter(None, (prefix, dotted_key(path, document))))
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        hint = did_you_mean(path[-1], known) or f"known here: {quoted(known)}"
        return InputError("unknown key", where=where, key=key, hint=hint)
    if kind == "literal_error":
        expected = _literals_at(model, path) or context.get("expected", "")
        shown = quoted(expected) if isinstance(expected, list) else expected
        problem = f"expected one of {shown}, found {short_repr(found)}"
        near = did_you_mean(found, expected) if isinstance(expected, list) else None
        return InputError(problem, where=where, key=key, hint=near)
    if kind == "missing":
        return InputError("a value is needed here, found none", where=where, key=key)
    if kind == "value_error":
        return InputError(str(context.get("error", error["msg"])), where=where, key=key)
    if kind in _TYPES:
        kindly = f"{short_repr(found)} ({type(found).__name__})"
        return InputError(f"expected {_TYPES[kind]}, found {kindly}", where=where, key=key)
    told = error["msg"].removeprefix("Input should ").removeprefix("be ")
    bounds = {name: f"{v:.15g}" if isinstance(v, float) else v for name, v in context.items()}
    expected = _BOUNDS[kind].format(**bounds) if kind in _BOUNDS else told
    return InputError(f"expected {expected}, found {short_repr(found)}", where=where, key=key)


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    found = _annotation_at(model, path)
    return list(found.model_fields) if _is_model(found) else []


def _literals_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str] | None:
    annotation = _annotation_at(model, path)
    values = [str(value) for value in get_args(annotation) if isinstance(value, str)]
    return values or None


def _annotation_at(model: type[BaseModel], path: Sequence[str | int]) -> Any:  # noqa: ANN401
    """Return the annotation of the field that a path of an error leads to."""
    annotation: Any = model
    for part in path:
        if _is_model(annotation) and part in annotation.model_fields:
            annotation = annotation.model_fields[part].annotation
        else:  # an index of a tuple, a key of a dict, or the arm of a union
            annotation = _container_item(annotation)
        annotation = _without_none(annotation)
    return annotation


def _container_item(annotation: Any) -> Any:  # noqa: ANN401
    arguments = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    return arguments[-1] if arguments else annotation


def _without_none(annotation: Any) -> Any:  # noqa: ANN401
    arguments = get_args(annotation)
    if type(None) in arguments:
        rest = [arg for arg in arguments if arg is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
