"""The user's own modules (operations, methods, data), imported because a command line named them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nas_moreau.errors import InputError


def module_of(path: str | Path, name: str, keep: bool = False) -> ModuleType:
    """Returns the module that a .py file makes, under `name`; with `keep` later imports of that name find it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    if keep:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by name, the working folder included, or by the path of a .py file (as a module of its name).

    Raises:
        InputError: One cannot be imported, or refuses something itself.
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
                f"--import {name} failed: {type(error).__name__}: {error}.", "Mend that module."
            ) from error
