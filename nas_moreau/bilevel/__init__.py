"""A solver for any nonconvex bilevel problem; it needs torch alone."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
        "Bilevel": "problem",
        "Info": "contract",
        "Method": "contract",
        "Shared": "problem",
        "Solution": "solver",
        "adam": "updates",
        "distance_over_gradients": "updates",
        "exact_hypergradient": "exact",
        "gradient_descent": "updates",
        "lower_solution": "stationarity",
        "merit": "stationarity",
        "moreau": "method",
        "residual": "stationarity",
        "sgd": "updates",
        "solve": "solver",
    },
)
