"""Neural architecture search by a single-loop Moreau-envelope bilevel method, and the solver on its own.

The names below are the public API; the subpackages (`nas_moreau.bilevel`, `problems`, `architecture`, `data`, `runs`,
`search`) export further ones. Each is imported when it is first used:

    from nas_moreau import run
    result = run("smoke", "runs/first", seed=1)     # search, retrain, evaluate, report: a `Result`
"""

import sys as _sys
from collections.abc import Callable as _Callable
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType
from typing import Any as _Any

__version__ = "0.1.0"


def _lazy_exports(
    package: str, homes: dict[str, str]
) -> tuple[list[str], _Callable[[str], _Any], _Callable[[], list[str]]]:
    """Returns `__all__`, `__getattr__` and `__dir__` of a package that exports names of its modules.

    A module is imported when one of its names is first used; its own name must not be one of them, because the import
    of the module would replace the exported object.

    Args:
        package: Its full name.
        homes: Exported name -> module of the package. If both are equal, the name is a package that can be called.
    """

    def get(name: str) -> _Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = _import_module(f"{package}.{homes[name]}")
        return module if homes[name] == name else getattr(module, name)

    return sorted(homes), get, lambda: sorted(homes)


class _CallablePackage(_ModuleType):
    """A package that can be called: it calls the function of its name in its `_home`."""

    _home: str

    def __call__(self, *args: _Any, **kwargs: _Any) -> _Any:
        return getattr(_import_module(self._home), self.__name__.rpartition(".")[2])(*args, **kwargs)


def _make_callable(package: str, home: str) -> None:
    """Makes `nas_moreau.search(...)` work although that is a package; `home` is the module of the function."""
    module = _sys.modules[package]
    module.__class__ = _CallablePackage
    module._home = home  # type: ignore[attr-defined]


__all__, __getattr__, __dir__ = _lazy_exports(
    __name__,
    {
        # the solver
        "Bilevel": "bilevel",
        "Method": "bilevel",
        "StepSizes": "bilevel",
        "moreau": "bilevel",
        "register_method": "bilevel",
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
        # a search inside a module
        "Choice": "modules",
        "search_module": "modules",
        # a run: its configuration, its images, its stages
        "Config": "config",
        "Hook": "training",
        "InputError": "errors",
        "load_config": "config",
        "load_data": "data",
        "compare": "compare",
        "Mixing": "search",
        "register_metric": "runs",
        "register_mixing": "search",
        "register_rule": "search",
        "register_source": "data",
        "Result": "api",
        "load_run": "api",
        "retrain": "api",
        "run": "api",
        "search": "search",
    },
)
