"""Bilevel problems with known answers, on which `solve(problem, x, y)` is called without any constant.

Each is a `Posed`: the problem, a start, and the exact x, from a closed form or from a one-dimensional or linear
equation solved to machine precision. Nothing in the solver was tuned to single ones.
"""

from gallery import basins, constrained, hostile, learning, smooth
from gallery.posed import GALLERY, Posed

__all__ = ["GALLERY", "Posed", "basins", "constrained", "hostile", "learning", "smooth"]
