"""Packages whose names are imported when they are first used, and packages that can be called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_exports(
    package: str, homes: dict[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns `__all__`, `__getattr__` and `__dir__` of a package that exports names of its modules.

    A module is imported when one of its names is first used; its own name must not be one of them, because the import
    of the module would replace the exported object.

    Args:
        package: Its full name.
        homes: Exported name -> module of the package. If both are equal, the name is a package that can be called.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{homes[name]}")
        return module if homes[name] == name else getattr(module, name)

    return sorted(homes), get, lambda: sorted(homes)


class _CallablePackage(ModuleType):
    """A package that can be called: it calls the function of its name in its `_home`."""

    _home: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(self._home), self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(package: str, home: str) -> None:
    """Makes `nas_moreau.search(...)` work although that is a package; `home` is the module of the function."""
    module = sys.modules[package]
    module.__class__ = _CallablePackage
    module._home = home  # type: ignore[attr-defined]
