"""Neural architecture search by a single-loop Moreau-envelope bilevel method, and the solver on its own.

The names below are what the package promises; the rooms (`nas_moreau.bilevel`, `architecture`, `data`, `runs`) hand
on more of their own kind. Each is loaded when it is first asked for:

    from nas_moreau import load_config, run
    result = run(load_config("smoke"), "runs/first")     # search, retrain, evaluate, report
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_HOMES = {
    # the solver
    "Bilevel": "bilevel",
    "moreau": "bilevel",
    "solve": "bilevel",
    # what can be found
    "Genotype": "architecture",
    "Network": "architecture",
    "SearchSpace": "architecture",
    "Supernet": "architecture",
    "derive": "architecture",
    "load_genotype": "architecture",
    "load_space": "architecture",
    "multiply_adds": "architecture",
    "parameter_count": "architecture",
    "register_operation": "architecture",
    # a run: its configuration, its images, its stages
    "Config": "config",
    "InputError": "errors",
    "load_config": "config",
    "load_data": "data",
    "compare": "stages.compare",
    "register_method": "stages.methods",
    "retrain": "stages.retrain",
    "run": "stages.main_job",
    "search": "stages.search",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
