"""Turn what pydantic finds wrong in a document into one clear error with its dotted key."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]

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
        # A misspelt key is missing under its right name as well: report the misspelling.
        found = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = found["loc"]
    if path and path[-1] == "[key]":  # pydantic's word for a table's name that may be none
        path = path[:-1]
    problem, hint = _problem(found, model, path)
    key = ".".join(filter(None, (prefix, dotted_key(path, written or document))))
    raise InputError(problem, where=where, key=key, hint=hint)


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


def _problem(error: ErrorDetails, model: type[BaseModel], path: Location) -> tuple[str, str | None]:
    """Say what is wrong at a path, and what may have been meant."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        table = _annotation_at(model, path[:-1])
        known = list(table.model_fields) if _is_model(table) else []
        return "unknown key", did_you_mean(path[-1], known) or f"known here: {quoted(known)}"
    if kind == "missing":
        return "a value is needed here, found none", None
    if kind == "value_error":
        return str(context.get("error", error["msg"])), None
    if kind == "literal_error":
        values = [v for v in get_args(_annotation_at(model, path)) if isinstance(v, str)]
        expected = quoted(values) or context.get("expected", "")
        near = did_you_mean(found, values)
        return f"expected one of {expected}, found {short_repr(found)}", near
    type_name = f" ({type(found).__name__})" if kind in _TYPES else ""
    return f"expected {expectation(error)}, found {short_repr(found)}{type_name}", None


def expectation(error: ErrorDetails) -> str:
    """Say what a value of the wrong type, or out of bounds, should have been."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _BOUNDS:
        bounds = {name: f"{v:.15g}" if isinstance(v, float) else v for name, v in context.items()}
        return _BOUNDS[kind].format(**bounds)
    return error["msg"].removeprefix("Input should ").removeprefix("be ")


def _annotation_at(model: type[BaseModel], path: Location) -> Any:  # noqa: ANN401
    """Return the annotation of the field that a path of an error leads to."""
    annotation: Any = model
    for part in path:
        if _is_model(annotation) and part in annotation.model_fields:
            annotation = annotation.model_fields[part].annotation
        else:  # an index of a tuple, a key of a dict, or the arm of a union
            inside = [arg for arg in get_args(annotation) if arg is not Ellipsis]
            annotation = inside[-1] if inside else annotation
        if type(None) in get_args(annotation):
            rest = [arg for arg in get_args(annotation) if arg is not type(None)]
            annotation = rest[0] if len(rest) == 1 else annotation
    return annotation


def _is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
