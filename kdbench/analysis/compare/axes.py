"""The axes of a cell as its label has them, to join cells that differ in some by intention."""

from collections.abc import Collection, Mapping, Sequence

from kdbench.matrix.grid import AXES, MAIN_AXES


def axes_of(label: str) -> dict[str, str]:
    """Read `method/student/32px[/teacher][/axis=value...]`; empty where a label is another."""
    main = [part for part in label.split("/") if "=" not in part]
    more = dict(part.split("=", 1) for part in label.split("/") if "=" in part)
    if not 3 <= len(main) <= len(MAIN_AXES) or not main[2].endswith("px"):
        return {}
    main[2] = main[2].removesuffix("px")
    return dict(zip(MAIN_AXES, main, strict=False)) | more


def named_axes(columns: Collection[str]) -> frozenset[str]:
    """Return those of some columns of `cells` that are axes."""
    return frozenset(AXES).intersection(columns)


def joined(label: str, free: Collection[str], *, without_teacher: bool) -> str:
    """Return a label without the axes that tell the sides apart."""
    axes = axes_of(label)
    if not axes:
        return label
    left_out = {*free, *(("teacher",) if without_teacher else ())}
    kept = {name: value for name, value in axes.items() if name not in left_out}
    return "/".join(_written(name, value) for name, value in kept.items())


def options_for(before: Sequence[str], after: Sequence[str]) -> str | None:
    """Suggest the options that would compare the nearest cells of two sides, given as labels."""
    nearest: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    fewest = len(AXES)
    for one in map(axes_of, before):
        for other in map(axes_of, after):
            count = len(_differing(one, other))
            if one and other and 0 < count < fewest:
                nearest, fewest = (one, other), count
    if nearest is None:
        return None
    names = _differing(*nearest)
    sides = zip(("--before", "--after"), nearest, strict=True)
    # an axis that one side lacks is picked on the other side alone
    return " ".join(f"{side} {n}={axes[n]}" for side, axes in sides for n in names if n in axes)


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """List the axes that differ; a teacher that one side does not have is its method's doing."""
    known = [name for name in AXES if name in one or name in other]
    found = [name for name in known if one.get(name) != other.get(name)]
    if "method" in found and ("teacher" not in one or "teacher" not in other):
        found = [name for name in found if name != "teacher"]
    return [name for name in found if name in one and name in other] or found[:1]


def _written(name: str, value: str) -> str:
    if name == "image_size":
        return f"{value}px"
    return value if name in MAIN_AXES else f"{name}={value}"
