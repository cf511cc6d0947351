"""Data sets held in memory as uint8 tensors, seeded splits and orders, augmentation of whole batches."""

from importlib import import_module as _import_module
from typing import Any as _Any

_HOMES = {
    "Augment": "augmentation",
    "Data": "images",
    "Images": "images",
    "describe_data": "describing",
    "epoch_order": "splitting",
    "generator_for": "seeds",
    "load_data": "loading",
    "seed_for": "seeds",
    "stratified_split": "splitting",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
