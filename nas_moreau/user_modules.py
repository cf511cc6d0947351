"""The user's own modules (operations, methods, data), imported because a command line named them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from nas_moreau.errors import InputError


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
                spec = importlib.util.spec_from_file_location(Path(name).stem, name)
                module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
                sys.modules[spec.name] = module  # type: ignore[union-attr]
                spec.loader.exec_module(module)  # type: ignore[union-attr]
            else:
                importlib.import_module(name)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"--import {name} failed: {type(error).__name__}: {error}.", "Mend that module."
            ) from error
