"""Torch modules: operations, supernets and derived networks."""

__all__: list[str] = []
