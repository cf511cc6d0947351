"""The run of `solve_by_itself` so far: what it may still do, the points it has found, the best of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from nas_moreau.bilevel.problem import Tensors
from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.lower import DENSE
from nas_moreau.bilevel.second_order.upper import Pair, Place
from nas_moreau.bilevel.solution import Certificate, Solution, Status

BUDGET, BUDGET_LARGE = 20, 10
"""Evaluations of a phase for every step that `solve` may take: with dense second derivatives (and half as many again
as y has entries, which cost less when they are taken together), and without."""

Watch = Callable[[int, Tensors, Tensors, Any], "bool | None"]


class Envelope(Protocol):
    """The envelope method on the same problem."""

    def __call__(self, x: Tensors, y: Tensors, steps: int, debias: bool = False) -> Solution:
        """Returns what it found from a start."""


class Memory(NamedTuple):
    """What a continued run takes over: steps done, and the memory of the last descent."""

    k: int
    pairs: Sequence[Pair]


class Candidate(NamedTuple):
    """A point that a path led to, with what is known of it."""

    u: Tensor
    w: Tensor
    value: float
    certificate: Certificate
    status: Status
    path: str
    multipliers: Tensors | None = None
    pairs: Sequence[Pair] = ()
    note: str = ""


@dataclass
class Trail:
    """The run so far: what it may still do, where it is, what it found.

    Attributes:
        flat: The problem, with the count of its evaluations.
        steps: Maximum number of line searches of x and steps of the envelope.
        precision: Tolerance of the certificate, not below what the number types allow.
        watch: Called after every one of them with (k, x, y, None).
        done: Their number.
        elsewhere: Evaluations that `flat` has not counted.
        latest: The last point, u and w.
        values: F along the run.
        origin: Where Phi was defined first; sizes of x and decreases of F are measured from there.
        halted: Whether `watch` has ended it.
    """

    flat: FlatProblem
    steps: int
    precision: float
    watch: Watch | None
    latest: tuple[Tensor, Tensor]
    done: int = 0
    elsewhere: int = 0
    halted: bool = False
    values: list[float] = field(default_factory=list)
    origin: Place | None = None
    candidates: list[Candidate] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Steps that are left."""
        return max(0, self.steps - self.done)

    @property
    def evaluations(self) -> int:
        """All evaluations so far."""
        return self.flat.evaluations + self.elsewhere

    @property
    def solved(self) -> bool:
        """Whether a certified point was found."""
        return any(candidate.status == "solved" for candidate in self.candidates)

    @property
    def usable(self) -> bool:
        """Whether second order led to a point where the lower level is solved and Phi has a gradient."""
        known = [c.certificate for c in self.candidates if c.status != "diverged"]
        return any(c.lower_residual < 1e-6 and math.isfinite(c.hypergradient) for c in known)

    @property
    def best(self) -> Candidate:
        """The candidate with the best status, and among those the smallest F."""
        order = ("solved", "biased", "out-of-steps", "not-minimal", "diverged")
        # F of a point where the lower level is not solved may be too small: its residual comes first
        return min(
            self.candidates,
            key=lambda c: (order.index(c.status), not c.certificate.lower_residual < 1e-6, c.value),
        )

    def seen(self, place: Place) -> bool:
        """Records a line search; returns whether the run must end."""
        self.done += 1
        self.latest = place.u, place.carry.w
        self.values.append(place.value)
        if self.watch is not None and self.watch(self.done - 1, *self.flat.lists(*self.latest), None):
            self.halted = True
        return self.halted or not self.left

    def allow(self) -> None:
        """Sets the budget of the next phase."""
        n = len(self.latest[1])
        each = BUDGET + n // 2 if n <= DENSE else BUDGET_LARGE
        self.flat.limit = self.flat.evaluations + each * max(self.steps, 100)
