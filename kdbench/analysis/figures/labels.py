"""Where the names of points go, so that none covers another, a point, or a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# Inches: how far from its point a name may stand, the nearest first.
_DISTANCES = (0.07, 0.13, 0.2, 0.3, 0.42, 0.56)
_FAR = (0.7, 0.85, 1.0, 1.2, 1.4)
# Degrees: right and left read best, then above and below.
_DIRECTIONS = (0, 180, 90, 270, 45, 315, 135, 225, 20, 340, 160, 200, 65, 295, 115, 245)
# A name further off than this is tied to its point with a line.
TIED_FROM = 0.16


class Box(NamedTuple):
    """A rectangle in inches from the lower left of the axes."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def within(self, width: float, height: float) -> bool:
        """Whether it lies inside axes of this size."""
        return self.left >= 0 and self.bottom >= 0 and self.right <= width and self.top <= height


class Placed(NamedTuple):
    """A name's rectangle, and how far it stands from its point, in inches."""

    box: Box
    distance: float


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    room: tuple[float, float],
    taken: Sequence[Box] = (),
    far: bool = False,
) -> list[Placed] | None:
    """Find a place for each point's name, the most crowded point first; None if one finds none.

    Points, sizes and room are in inches from the lower left of the axes. `taken` may not be
    covered. With `far`, names may stand far off, and the lines that tie them to their points may
    cross others.
    """
    blocked = [*taken, *(_around(point) for point in points)]
    placed: dict[int, Placed] = {}
    near = [sum(math.dist(one, other) < 0.8 for other in points) for one in points]
    for index in sorted(range(len(points)), key=lambda i: (-near[i], i)):
        found = next(
            (
                Placed(box, distance)
                for distance in (*_DISTANCES, *(_FAR if far else ()))
                for box in _candidates(points[index], sizes[index], distance)
                if box.within(*room)
                and not any(box.meets(other) for other in blocked)
                and (far or not _crosses(points[index], box, distance, blocked))
            ),
            None,
        )
        if found is None:
            return None
        placed[index] = found
        blocked.append(found.box)
    return [placed[index] for index in range(len(points))]


def _around(point: tuple[float, float]) -> Box:
    x, y = point
    return Box(x - 0.055, y - 0.055, x + 0.055, y + 0.055)


def _crosses(
    point: tuple[float, float], name: Box, distance: float, blocked: Sequence[Box]
) -> bool:
    """Whether the line that ties a name to its point would run over something else."""
    if distance <= TIED_FROM:
        return False
    end = ((name.left + name.right) / 2, (name.bottom + name.top) / 2)
    for part in range(1, 20):
        x = point[0] + (end[0] - point[0]) * part / 20
        y = point[1] + (end[1] - point[1]) * part / 20
        # Its own point, and its own bar beside it, are no obstacle.
        if math.dist((x, y), point) > 0.1 and any(
            box.meets(Box(x, y, x, y)) for box in blocked if not box.meets(_around(point))
        ):
            return True
    return False


def _candidates(
    point: tuple[float, float], size: tuple[float, float], distance: float
) -> list[Box]:
    boxes = []
    width, height = size
    for direction in _DIRECTIONS:
        across, up = math.cos(math.radians(direction)), math.sin(math.radians(direction))
        # The edge, not the middle, of the name is that far from the point.
        x = point[0] + across * (distance + width / 2)
        y = point[1] + up * (distance + height / 2)
        boxes.append(Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    return boxes
