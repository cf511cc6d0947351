"""Bilevel methods to compare with: DARTS, hypergradients by unrolling or implicit differentiation, penalties."""
