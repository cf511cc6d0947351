"""Which modules Python finds: those of the user that a command names (--import), none else of the working folder."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nas_moreau.errors import InputError

_BUILT_IN = sys.builtin_module_names
_IMPORTED: set[str] = set()
"""Names of modules that were imported for a user; another file may replace one of them."""


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
    """Imports modules of the user: by name, also from the working folder, or by the path of a .py file.

    A file is imported under its name without .py, and its folder may hold further modules that it imports. These
    folders come last on the search path, so that nothing in them stands in for an installed module. What the modules
    register (operations, methods, mixings, rules, data sources, metrics) is known afterwards; processes that a command
    starts import the same modules.

    Raises:
        InputError: A module cannot be imported, has the name of an installed one, or registers something that is
            refused.
    """
    for name in names:
        file = Path(name) if name.endswith(".py") else _in_working_folder(name)
        if name.endswith(".py") and not Path(name).is_file():
            raise InputError(f"--import {name}: there is no such file.", "Check the path.")
        if file is not None:
            _IMPORTED.add(_refuse_taken_name(name, file))
            folder = str((file.parent.parent if file.name == "__init__.py" else file.parent).resolve())
            if folder not in sys.path:
                sys.path.append(folder)
        try:
            if name.endswith(".py"):
                module_of(name, Path(name).stem, keep=True)
            elif getattr(importlib.import_module(name), "__file__", None) is None and name not in _BUILT_IN:
                raise InputError(f"--import {name}: it is a folder without Python files.", "Give a .py file.")
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # a script that ends the program must not end this one without a word
            raise InputError(
                f"--import {name} failed: {type(error).__name__}: {error}.", "Correct that module."
            ) from error


def _in_working_folder(name: str) -> Path | None:
    """Returns the file in the working folder that a module's name, or that of its package, may mean; None if none."""
    root = name.partition(".")[0]
    return next((path for path in (Path(f"{root}.py"), Path(root, "__init__.py")) if path.is_file()), None)


def _refuse_taken_name(name: str, file: Path) -> str:
    """Returns the name of a user's module; InputError if it means another one already, which it would hide."""
    module = file.parent.name if file.name == "__init__.py" else file.stem
    if module in _IMPORTED:
        return module
    if module in sys.modules:
        origin = getattr(sys.modules[module], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a name with dots, of no package
            spec = None
        if spec is None:
            return module
        origin = spec.origin
    if origin and os.path.exists(origin) and os.path.samefile(origin, file):
        return module
    raise InputError(
        f"--import {name}: {file} has the name of another module, {module} ({origin or 'built in'}).",
        f"Rename it, for example my_{module}.py.",
    )


WITHIN = "NAS_MOREAU_WITHIN"
"""Environment variable of commands that another command runs, which prints notes on the images and how to resume."""


def python_command(module: str, *arguments: str) -> list[str]:
    """Returns `python -P -m module arguments`; -P keeps files of the working folder from hiding installed modules.

    -P is left out where the package itself is imported from the working folder, and before Python 3.11.
    """
    from_here = Path(__file__).resolve().parent.parent == Path.cwd().resolve()
    safe = [] if from_here or sys.version_info < (3, 11) else ["-P"]
    return [sys.executable, *safe, "-m", module, *arguments]
