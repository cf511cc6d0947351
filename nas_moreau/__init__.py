"""Neural architecture search by a single-loop Moreau-envelope bilevel method, and the solver on its own.

The names below are what the package promises; the rooms (`nas_moreau.bilevel`, `problems`, `architecture`, `data`,
`runs`) hand on more of their own kind. Each is loaded when it is first asked for:

    from nas_moreau import load_config, run
    result = run(load_config("smoke"), "runs/first")     # search, retrain, evaluate, report
"""

import sys as _sys
from collections.abc import Callable as _Callable
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import Any as _Any

__version__ = "0.1.0"


def _hand_on(package: str, homes: dict[str, str]) -> tuple[list[str], _Callable[[str], _Any], _Callable[[], list[str]]]:
    """Returns `__all__`, `__getattr__` and `__dir__` of a package that hands on names of its modules.

    A module is imported when one of its names is first asked for; none may bear the name of a thing that it hands on.

    Args:
        package: Its full name.
        homes: Name -> module of the package. A name whose module bears it too is a package that can be called.
    """

    def get(name: str) -> _Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = _import_module(f"{package}.{homes[name]}")
        return module if homes[name] == name else getattr(module, name)

    return sorted(homes), get, lambda: sorted(homes)


class _CallablePackage(_ModuleType):
    """A package with a function of its own name, which a call of the package calls."""

    def __call__(self, *args: _Any, **kwargs: _Any) -> _Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def _make_callable(package: str) -> None:
    """Lets `nas_moreau.search(...)` work although `nas_moreau.search` is a package with modules of its own."""
    _sys.modules[package].__class__ = _CallablePackage


__all__, __getattr__, __dir__ = _hand_on(
    __name__,
    {
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
        "compare": "compare",
        "register_method": "search.methods",
        "register_metric": "runs",
        "register_rule": "search",
        "register_source": "data",
        "retrain": "training.retrain",
        "run": "pipeline",
        "search": "search",
    },
)
