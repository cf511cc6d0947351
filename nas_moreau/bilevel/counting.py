"""A count of the calls of a problem's objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nas_moreau.bilevel.problem import Bilevel, Sharded


def counted(problem: Bilevel) -> tuple[Bilevel, Callable[[], int]]:
    """Returns the same problem with objectives that count their calls, and a function that returns the number so far.

    A call of F, f or f_theta is one evaluation, and so is one of a function that `at_x` returns.
    """
    calls = 0
    at_x = problem.at_x

    def counting(function: Any) -> Any:
        if function is None:
            return None
        if isinstance(function, Sharded):
            return replace(function, objective=counting(function.objective))

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return function(*arguments)

        return call

    same = replace(
        problem,
        F=counting(problem.F),
        f=counting(problem.f),
        f_theta=counting(problem.f_theta),
        at_x=at_x and (lambda *given: tuple(map(counting, at_x(*given)))),
    )
    return same, lambda: calls
