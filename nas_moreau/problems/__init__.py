"""Problems that the bilevel solver is shown on, besides the search for architectures."""

from importlib import import_module as _import_module
from typing import Any as _Any

_HOMES = {
    "Case": "synthetic",
    "METHODS": "methods",
    "generate": "group_lasso",
    "lasso": "synthetic",
    "method_for": "methods",
    "merely_convex": "synthetic",
    "orthogonal_case": "group_lasso",
    "quadratic": "synthetic",
    "relative_error": "synthetic",
    "sine": "synthetic",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
