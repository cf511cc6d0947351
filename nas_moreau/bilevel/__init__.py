"""A solver for any nonconvex bilevel problem; it needs torch alone."""

from importlib import import_module as _import_module
from typing import Any as _Any

_HOMES = {
    "Bilevel": "problem",
    "Info": "method",
    "Method": "method",
    "adam": "updates",
    "gradient_descent": "updates",
    "moreau": "method",
    "sgd": "updates",
    "Solution": "solver",
    "exact_hypergradient": "exact",
    "explain": "step_sizes",
    "lower_solution": "stationarity",
    "merit": "stationarity",
    "residual": "stationarity",
    "solve": "solver",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
