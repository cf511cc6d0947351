"""Modules of the user, imported because a command names them (--import), which register things by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nas_moreau.errors import InputError


def module_of(path: str | Path, name: str, keep: bool = False) -> ModuleType:
    """Returns the module of a .py file.

    Args:
        path: The file.
        name: The module's name.
        keep: Whether later imports of that name find the module.

    Raises:
        ImportError: It is not a Python file.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    if keep:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_modules(names: Sequence[str]) -> None:
    """Imports modules of the user: by name, with the working folder on the path, or by the path of a .py file.

    A file is imported under its name without .py. What the modules register (operations, methods, mixings, rules, data
    sources, metrics) is known afterwards; processes that a command starts import the same modules.

    Raises:
        InputError: A module cannot be imported, or registers something that is refused.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for name in names:
        try:
            if name.endswith(".py"):
                module_of(name, Path(name).stem, keep=True)
            else:
                importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--import {name} failed: {type(error).__name__}: {error}.", "Correct that module."
            ) from error
