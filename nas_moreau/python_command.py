"""The command that runs a module in another Python process, without the working folder on the search path."""

from __future__ import annotations

import sys
from pathlib import Path


def python_command(module: str, *arguments: str) -> list[str]:
    """Returns `python -P -m module arguments`; -P keeps files of the working folder from hiding installed modules.

    -P is left out where the package itself is imported from the working folder, and before Python 3.11.
    """
    from_here = Path(__file__).resolve().parent.parent == Path.cwd().resolve()
    safe = [] if from_here or sys.version_info < (3, 11) else ["-P"]
    return [sys.executable, *safe, "-m", module, *arguments]
