"""What can be found: search spaces, genotypes, supernets, derived networks. Torch is loaded only by what needs it."""

from importlib import import_module as _import_module
from typing import Any as _Any

_HOMES = {
    "Cell": "genotype",
    "Derivation": "space",
    "Genotype": "genotype",
    "LiteralSupernet": "literal",
    "Network": "network",
    "SearchSpace": "space",
    "Supernet": "supernet",
    "cell_names": "zoo",
    "derive": "derivation",
    "explain": "derivation",
    "load_genotype": "zoo",
    "load_space": "space",
    "multiply_adds": "counting",
    "parameter_count": "counting",
    "provenance": "zoo",
    "published_cell": "zoo",
    "published_names": "zoo",
    "published_sizes": "zoo",
    "register_operation": "operations",
    "released_names": "zoo",
    "space_names": "space",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
