"""The numbers that change from step to step, held in tensors: a recorded step reads them where they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel import StepSizes
from nas_moreau.bilevel.method import penalty_at


class HeldNumbers:
    """Step sizes, the penalty c_k and the progress of a step as 0-dim tensors, filled by one transfer.

    Args:
        sizes: Step sizes as numbers or functions of k.
        total_steps: Steps of the search, for the progress.
        like: A tensor of the device, and of the type if that is float32 or float64 (else float32), to hold them in.

    Attributes:
        sizes: The same step sizes, whose functions return the held tensors at the present step, numbers at others.
        progress: Completed fraction of the search.
    """

    def __init__(self, sizes: StepSizes, total_steps: int, like: Tensor):
        given: dict[str, Any] = {name: getattr(sizes, name) for name in ("alpha", "beta", "eta")}
        functions: dict[str, Callable[[int], float]] = {name: size for name, size in given.items() if callable(size)}
        if not isinstance(sizes.c, str):
            functions["c"] = lambda k: penalty_at(sizes.c, sizes.p, k)
        self._functions = {"progress": lambda k: k / total_steps, **functions}
        # a half-precision weight would round step sizes to three digits
        kept = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        self._held = torch.zeros(len(self._functions), dtype=kept, device=like.device)
        self.progress, *held = self._held.unbind()
        self._step = -1
        self.sizes = sizes._replace(**{n: self._function(functions[n], t) for n, t in zip(functions, held)})

    def _function(self, numbers: Callable[[int], float], held: Tensor) -> Callable[[int], Any]:
        return lambda k: held if k == self._step else numbers(k)

    def number(self, name: str) -> float:
        """Returns a number of the present step by its name: "alpha", "beta", "eta", "c"."""
        return self._functions[name](self._step)

    def fill(self, step: int) -> None:
        """Makes a step the present one; does not wait for the device."""
        self._step = step
        values = [function(step) for function in self._functions.values()]
        self._held.copy_(torch.tensor(values, dtype=self._held.dtype, device="cpu"), non_blocking=True)


def counts_as_tensors(state: Any, device: torch.device) -> Any:
    """Returns a method's state with the counts of its update rules as 0-dim tensors; k stays a number."""

    def converted(part: Any) -> Any:
        if type(part) is int:
            return torch.full((), float(part), dtype=torch.float64, device=device)
        if isinstance(part, tuple):
            parts = map(converted, part)
            return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
        return part

    rules = [name for name in ("x_rule", "y_rule", "theta_rule") if name in getattr(state, "_fields", ())]
    return state._replace(**{name: converted(getattr(state, name)) for name in rules}) if rules else state
