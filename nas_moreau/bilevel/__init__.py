"""A solver for any nonconvex bilevel problem; it needs torch alone."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "Bilevel": "problem",
        "Info": "method",
        "Method": "method",
        "adam": "updates",
        "distance_over_gradients": "updates",
        "gradient_descent": "updates",
        "moreau": "method",
        "sgd": "updates",
        "Shared": "problem",
        "Solution": "solver",
        "exact_hypergradient": "exact",
        "explain": "step_sizes",
        "lower_solution": "stationarity",
        "merit": "stationarity",
        "residual": "stationarity",
        "solve": "solver",
    },
)
