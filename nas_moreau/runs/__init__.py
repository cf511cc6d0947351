"""What a run leaves behind: its folder, checkpoints, numbers, drawings and report."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "RunFolder": "folder",
    "save_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "DiskFull": "atomic",
    "Monitor": "monitor",
    "Progress": "progress",
    "draw_genotype": "drawing",
    "draw_png": "drawing",
    "write_report": "report",
    "write_comparison": "several_page",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
