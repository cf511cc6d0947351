"""What a rule for automatic constants is: the form that `measured` and `tracked` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from nas_moreau.bilevel.method import Batches, Iterate
from nas_moreau.bilevel.problem import Bilevel, Tensors

if TYPE_CHECKING:
    from nas_moreau.bilevel.moreau_envelope import StepRecord


class Sizes(NamedTuple):
    """The step sizes of x, y and theta; alpha is None where x's update rule finds the length of its steps."""

    alpha: float | None
    beta: float
    eta: float


class AutoRule(NamedTuple):
    """How automatic constants are chosen; `tuning` is the rule's state, with an attribute `gamma`.

    Attributes:
        begin: (problem, x, y, batches, c, gamma) -> tuning; None for a c or gamma that is not given.
        penalty: (tuning, k, p) -> c_k where c is automatic.
        sizes: (tuning, c_k, gamma) -> step sizes.
        after: (problem, step taken) -> x, y and state to continue from, usually those that the step gave.
        last_penalty: tuning -> the c up to which an automatic c climbs; None if it does not climb.
        hold: tuning -> the tuning under which c does not climb.
        explain: tuning -> a sentence on what was chosen.
    """

    begin: Callable[[Bilevel, Tensors, Tensors, Batches, float | None, float | None], Any]
    penalty: Callable[[Any, int, float], float]
    sizes: Callable[[Any, float, float], Sizes]
    after: Callable[[Bilevel, StepRecord], Iterate]
    last_penalty: Callable[[Any], float | None]
    hold: Callable[[Any], Any]
    explain: Callable[[Any], str]
