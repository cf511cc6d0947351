"""Problems that the bilevel solver is shown on, besides the search for architectures."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
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
        "solve_on_data": "tasks",
        "solve_task": "tasks",
    },
)
