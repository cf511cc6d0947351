"""What `solve` returns: the point, how the run ended, and a certificate of what holds at the point."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, NamedTuple

import torch

from nas_moreau.bilevel.method import Info
from nas_moreau.bilevel.problem import Tensors

Status = Literal["solved", "biased", "not-minimal", "out-of-steps", "stopped", "diverged", "refused"]
"""How a run ended:

solved: the certificate holds to the tolerance
biased: the method has settled, but not at a solution that could be certified; the certificate estimates the bias
not-minimal: y is a maximum or saddle of the lower level, or x one of the upper level
out-of-steps: all steps were done before the tolerance was met
stopped: `watch` returned True, or Ctrl-C
diverged: a number was not finite, or the problem is unbounded; the last finite iterate is returned
refused: the method does not apply to the problem; nothing was done
"""

SCHEMA = 1
"""Schema number of a saved solution."""


class Certificate(NamedTuple):
    """What holds at a point; every number is relative, so that units of x do not matter. NaN: not known.

    Attributes:
        lower_residual: What is left of the lower level's optimality condition, as a distance relative to |y|.
        lower_curvature: Smallest curvature of the lower level at y over the largest: positive at an isolated
            minimiser, 0 within a set of minimisers, negative at a maximum or saddle.
        hypergradient: Square root of the decrease of Phi(x) = F(x, y*(x)) that a quasi-Newton step still predicts,
            relative to the size of Phi. The square root is of the order of the relative error of x.
        bias: Estimated relative error of x by the penalty, or by whatever keeps a method from the solution.
        upper_curvature: Smallest curvature of Phi over the largest.
    """

    lower_residual: float
    lower_curvature: float
    hypergradient: float
    bias: float
    upper_curvature: float = math.nan

    def holds(self, tolerance: float) -> bool:
        """Whether the point is a solution to the tolerance, as far as the certificate knows."""
        below = self.lower_residual <= max(tolerance, 1e-7) and self.lower_curvature > 0
        above = self.hypergradient <= tolerance or self.bias <= 10 * tolerance
        return below and above and not self.is_saddle

    @property
    def is_saddle(self) -> bool:
        """Whether one of the levels is at a maximum or saddle."""
        return self.lower_curvature < -1e-7 or self.upper_curvature < -1e-4


UNKNOWN = Certificate(math.nan, math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        x, y: The last iterate; after a divergence the last finite one. Lists of tensors, or dicts where `solve` was
            given dicts.
        state: The method's; `solve(..., state=solution.state)` continues with it.
        status: How the run ended, see `Status`.
        message: Why it ended, and what was chosen; for people, not for programs.
        history: Name -> list of floats, one for each step: F, f, f_theta, c, gamma, and the norms of `Info`.
        steps: Number of steps done, those of the bias removal included.
        movement: What the stopping rule compared with `tolerance` at the last check; NaN after a divergence.
        info: The last step's; None where no method was run.
        certificate: What holds at the point.
        evaluations: Evaluations of F and f, forward and backward; a product with a second derivative counts as one.
        multipliers: Of the constraints h(x, y) <= 0; None without.
    """

    x: Any
    y: Any
    state: Any
    status: Status
    message: str
    history: dict[str, list[float]] = field(repr=False)
    steps: int
    movement: float
    info: Info | None = field(default=None, repr=False)
    certificate: Certificate = UNKNOWN
    evaluations: int = 0
    multipliers: Tensors | None = None

    @property
    def converged(self) -> bool:
        """Whether the certificate holds to the tolerance."""
        return self.status == "solved"

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the solution as tensors and plain types, for `load_solution`."""
        kept = {
            "schema": SCHEMA,
            "x": self.x,
            "y": self.y,
            "state": _plain(self.state),
            "status": self.status,
            "message": self.message,
            "history": self.history,
            "steps": self.steps,
            "movement": self.movement,
            "certificate": list(self.certificate),
            "evaluations": self.evaluations,
            "multipliers": self.multipliers,
        }
        torch.save(kept, path)


class SavedState(NamedTuple):
    """A state that was read from a file: nested tuples, lists and dicts without their types.

    `solve` gives it the types of the method's own state.
    """

    parts: Any


def load_solution(path: str | PathLike[str]) -> Solution:
    """Returns a solution that `Solution.save` wrote; `info` is not kept.

    Raises:
        ValueError: The file holds something else, or was written by another version.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} holds no solution: {type(error).__name__}. Give a file of Solution.save.") from error
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise ValueError(f"{path} holds no solution of this version. Write it again with Solution.save.")
    found["certificate"] = Certificate(*found["certificate"])
    found["state"] = None if found["state"] is None else SavedState(found["state"])
    return Solution(**found)


def restored(saved: Any, like: Any) -> Any:
    """Returns a state with the types of `like`, the state of the same method at its start.

    Args:
        saved: A `SavedState`, or a state of this process, which is returned as it is.
        like: What `Method.init` returned.

    Raises:
        ValueError: The saved state has another number of parts.
    """
    if not isinstance(saved, SavedState):
        return saved
    if not isinstance(saved.parts, tuple) or len(saved.parts) != len(like):
        raise ValueError("state belongs to another method. Give that method, or leave the state out.")
    return _typed(saved.parts, like)


def _plain(state: Any) -> Any:
    """Returns a nested state with plain tuples for named ones."""
    if isinstance(state, tuple):
        return tuple(_plain(part) for part in state)
    if isinstance(state, list):
        return [_plain(part) for part in state]
    if isinstance(state, dict):
        return {key: _plain(part) for key, part in state.items()}
    if state is None or isinstance(state, (torch.Tensor, bool, int, float, str)):
        return state
    raise TypeError(f"A state with a {type(state).__name__} cannot be saved; use tensors and plain types.")


def _typed(part: Any, like: Any) -> Any:
    """Returns a part with the named tuples of `like`."""
    if isinstance(part, tuple) and isinstance(like, tuple):
        inner = [_typed(p, own) for p, own in zip(part, like)] if len(part) == len(like) else list(part)
        return type(like)(*inner) if hasattr(like, "_fields") else tuple(inner)
    return part
