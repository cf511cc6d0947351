"""A solver for any nonconvex bilevel problem; it needs torch alone."""

from nas_moreau import _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        "Bilevel": "problem",
        "Info": "method",
        "Method": "method",
        "Sharded": "problem",
        "Solution": "solver",
        "StepSizes": "method",
        "adam": "updates",
        "chain": "updates",
        "clip": "updates",
        "debiased": "solver",
        "distance_over_gradients": "updates",
        "exact_hypergradient": "exact",
        "exponentiated_gradient": "simplex_steps",
        "gradient_descent": "updates",
        "lower_solution": "stationarity",
        "merit": "stationarity",
        "mirror": "simplex_steps",
        "momentum": "updates",
        "moreau": "moreau_envelope",
        "polished": "solver",
        "projected": "simplex_steps",
        "register_method": "methods",
        "residual": "stationarity",
        "sgd": "updates",
        "solve": "solver",
        "weight_decay": "updates",
    },
)
