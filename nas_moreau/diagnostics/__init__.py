"""Measuring and checking: speed, memory, hypergradients, plans, the installation."""

__all__: list[str] = []
