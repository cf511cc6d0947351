"""A solver for any nonconvex bilevel problem; it needs torch alone."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "Bilevel": "problem",
        "Info": "method",
        "Method": "method",
        "Shared": "problem",
        "Solution": "solver",
        "adam": "updates",
        "distance_over_gradients": "updates",
        "exact_hypergradient": "exact",
        "explain": "step_sizes",
        "gradient_descent": "updates",
        "lower_solution": "stationarity",
        "merit": "stationarity",
        "moreau": "method",
        "residual": "stationarity",
        "sgd": "updates",
        "solve": "solver",
    },
)
