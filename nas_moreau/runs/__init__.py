"""What a run leaves behind: its folder, checkpoints, numbers, drawings and report."""

from importlib import import_module as _import_module
from typing import Any as _Any

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


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
