"""Bilevel problems other than architecture search: small ones with known answers, and hyper-parameter learning."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Case": "synthetic",
        "generate": "group_lasso",
        "lasso": "synthetic",
        "method_for": "step_sizes",
        "merely_convex": "synthetic",
        "orthogonal_case": "group_lasso",
        "quadratic": "synthetic",
        "relative_error": "synthetic",
        "sine": "synthetic",
        "solve_on_data": "tasks",
        "solve_task": "tasks",
    },
)
