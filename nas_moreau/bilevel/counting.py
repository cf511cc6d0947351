"""A count of the calls of a problem's objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nas_moreau.bilevel.problem import Bilevel, Sharded

TOGETHER = 3
"""Objectives that one call of `Bilevel.together` evaluates."""


def counted(problem: Bilevel) -> tuple[Bilevel, Callable[[], int]]:
    """Returns the same problem with objectives that count their calls, and a function that returns the number so far.

    A call of F, f or f_theta is one evaluation, one of `together` three.
    """
    calls = 0

    def counting(function: Any, each: int) -> Any:
        if function is None:
            return None
        if isinstance(function, Sharded):
            return replace(function, objective=counting(function.objective, each))

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += each
            return function(*arguments)

        return call

    same = replace(
        problem,
        F=counting(problem.F, 1),
        f=counting(problem.f, 1),
        f_theta=counting(problem.f_theta, 1),
        together=counting(problem.together, TOGETHER),
    )
    return same, lambda: calls
