"""What can be found, as data: search spaces, genotypes, derivation, known cells. Imports no torch."""

__all__: list[str] = []
