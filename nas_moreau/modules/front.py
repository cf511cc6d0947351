"""A front of quality against cost: points, which of them nothing beats, the knee, and the hypervolume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEARCHED, RANDOM, SINGLE = "front", "random", "single"
"""Kinds of points: of searches from a shared start, random choices, searches that each start from scratch."""

MARGIN = 0.1
"""The box exceeds the largest cost and error by that share of their ranges."""


@dataclass(frozen=True)
class Point:
    """Choices of a module, trained.

    Attributes:
        kind: One of `SEARCHED`, `RANDOM`, `SINGLE`.
        number: Of the search or draw, from 0.
        choices: Decision -> option.
        cost: What the module costs, in the front's kind of cost.
        loss: On the held-out samples after training; infinite if it was not finite.
        metric: The same; None without a metric.
        share: The share of the cost in the weighing of the search, 0 to 1; None for random choices.
    """

    kind: str
    number: int
    choices: dict[str, str]
    cost: float
    loss: float
    metric: float | None = None
    share: float | None = None

    @property
    def error(self) -> float:
        """What is to be small: the loss, or the negative metric."""
        return self.loss if self.metric is None else -self.metric


@dataclass(frozen=True)
class Front:
    """What `pareto` found.

    Attributes:
        cost: "parameters", "macs" or "ms".
        points: Of all kinds.
        steps: Steps of each search after the shared start.
        start_steps: Steps of the shared start.
        seconds: Seconds of the searches by kind.
    """

    cost: str
    points: tuple[Point, ...]
    steps: int
    start_steps: int
    seconds: dict[str, float]

    def of(self, kind: str) -> list[Point]:
        """Returns the points of a kind."""
        return [point for point in self.points if point.kind == kind]

    def best(self, kind: str = SEARCHED) -> list[Point]:
        """Returns the points of a kind that none of the same kind beats in cost and error, by cost."""
        found: list[Point] = []
        for point in sorted(self.of(kind), key=lambda point: (point.cost, point.error)):
            if math.isfinite(point.error) and (not found or point.error < found[-1].error):
                found.append(point)
        return found

    @property
    def knee(self) -> Point:
        """The point of the front that lies farthest below the line between its ends, both axes from 0 to 1.

        With fewer than three points, or none below the line, the one of the least error.

        Raises:
            ValueError: No point has a finite error.
        """
        front = self.best()
        if not front:
            raise ValueError("No point of the front has a finite error.")
        first, last = front[0], front[-1]
        width, height = last.cost - first.cost, first.error - last.error

        def below(point: Point) -> float:
            return 1 - (point.cost - first.cost) / width - (point.error - last.error) / height

        inner = [point for point in front[1:-1] if below(point) > 0]
        return max(inner, key=below) if inner else last

    def hypervolume(self, kind: str = SEARCHED) -> float:
        """Returns the share of the box of all points that those of a kind dominate, 0 to 1.

        The box spans the costs and errors of the points of every kind, so that kinds can be compared, and a tenth more
        on the side of the worst, so that the ends of a front count.
        """
        finite = [point for point in self.points if math.isfinite(point.error)]
        if not finite:
            return 0.0
        costs, errors = [point.cost for point in finite], [point.error for point in finite]
        dearest, bound = (max(values) + MARGIN * (max(values) - min(values)) for values in (costs, errors))
        box, area = (dearest - min(costs)) * (bound - min(errors)), 0.0
        for point in self.best(kind):
            area += (dearest - point.cost) * (bound - point.error)
            bound = point.error
        return area / box if box else 0.0

    def kinds(self) -> list[str]:
        """Returns the kinds of points that there are."""
        return [kind for kind in (SEARCHED, RANDOM, SINGLE) if self.of(kind)]

    def to_dict(self) -> dict[str, Any]:
        """Returns what front.json holds."""
        return {
            "version": 1,
            "cost": self.cost,
            "steps": self.steps,
            "start_steps": self.start_steps,
            "seconds": self.seconds,
            # JSON has no infinity
            "points": [
                {**asdict(point), "loss": point.loss if math.isfinite(point.loss) else None} for point in self.points
            ],
            "front": [point.number for point in self.best()],
            "knee": self.knee.number,
            "hypervolume": {kind: self.hypervolume(kind) for kind in self.kinds()},
        }

    def rows(self) -> list[tuple[str, ...]]:
        """Returns a table: cost, quality, and what distinguishes the point, of those on the front."""
        knee = self.knee
        return [
            (
                f"{point.cost:.4g}",
                f"{point.loss:.4g}",
                "" if point.metric is None else f"{point.metric:.4g}",
                "knee" if point is knee else "",
                distinguishing(point.choices, knee.choices) if point is not knee else shown(point.choices),
            )
            for point in self.best()
        ]

    def __str__(self) -> str:
        lines = [f"{self.cost}, held-out loss, metric:"]
        lines += ["  " + "  ".join(part for part in row if part) for row in self.rows()]
        volumes = ", ".join(f"{kind} {self.hypervolume(kind):.3f}" for kind in self.kinds())
        return "\n".join([*lines, f"hypervolume: {volumes}"])


def shown(choices: dict[str, str]) -> str:
    """Returns choices as text."""
    return ", ".join(f"{name}={option}" for name, option in choices.items())


def distinguishing(choices: dict[str, str], others: dict[str, str]) -> str:
    """Returns where choices differ from others, as text."""
    return shown({name: option for name, option in choices.items() if others.get(name) != option}) or "the same choices"


def shares(points: int) -> Sequence[float]:
    """Returns the shares of the cost in the weighings of a front's searches, even between 0 and 1."""
    return [(number + 0.5) / points for number in range(points)]
