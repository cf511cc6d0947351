"""x and y as dicts of tensors: the problem on lists of tensors, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from nas_moreau.bilevel.problem import Bilevel, Tensors


class Structure:
    """How a list of tensors is arranged for the user: as a list, or as a dict with fixed keys.

    Args:
        name: x or y, for messages.
        given: What the user gave.

    Raises:
        TypeError: It is neither a list nor a dict of floating-point tensors.
    """

    def __init__(self, name: str, given: Any):
        self.keys = list(given) if isinstance(given, Mapping) else None
        values = list(given.values()) if isinstance(given, Mapping) else given
        if not isinstance(values, (list, tuple)):
            fault = f"is a {type(given).__name__}"
        else:
            wrong = [t for t in values if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.is_meta]
            if not wrong and any(t.numel() for t in values):
                # autograd takes no tensors of torch.inference_mode
                self.tensors: Tensors = [t.clone() if t.is_inference() else t.detach() for t in values]
                return
            fault = "holds no numbers"
            if wrong:
                fault = f"holds {wrong[0].dtype if isinstance(wrong[0], torch.Tensor) else type(wrong[0]).__name__}"
                fault = "holds a tensor without data" if getattr(wrong[0], "is_meta", False) else fault
        raise TypeError(f"{name} {fault}; give a list of floating-point tensors, such as [torch.zeros(3)], or a dict.")

    def arrange(self, tensors: Tensors) -> Any:
        """Returns a list of tensors as the user arranges it."""
        return tensors if self.keys is None else dict(zip(self.keys, tensors))

    def listed(self, arranged: Any) -> Tensors:
        """Returns the user's arrangement as a list."""
        return arranged if self.keys is None else [arranged[key] for key in self.keys]


def on_lists(problem: Bilevel, x: Structure, y: Structure) -> Bilevel:
    """Returns the problem with functions of lists; the user's objectives get dicts where x or y was given as one.

    g and the projections get lists in the order of the dicts: those of `prox.py` work on lists.
    """
    if x.keys is None and y.keys is None:
        return problem

    def objective(function: Any) -> Any:
        return function and (lambda a, b, batch: function(x.arrange(a), y.arrange(b), batch))

    at_x, constraint = problem.at_x, problem.constraint

    def of_y(a: Tensors, upper: Any, lower: Any) -> Any:
        assert at_x is not None
        F, f = at_x(x.arrange(a), upper, lower)
        return (lambda b: F(y.arrange(b))), (lambda b: f(y.arrange(b)))

    return replace(
        problem,
        F=objective(problem.F),
        f=objective(problem.f),
        f_theta=objective(problem.f_theta),
        at_x=at_x and of_y,
        constraint=None if constraint is None else (lambda a, b: constraint(x.arrange(a), y.arrange(b))),
    )
