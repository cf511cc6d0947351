"""Neural architecture search by a single-loop Moreau-envelope bilevel method, and the solver on its own."""

__version__ = "0.1.0"
