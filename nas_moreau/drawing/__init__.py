"""Drawings of cells, networks and tables, as SVG and PNG."""

from nas_moreau import _hand_on

__all__, __getattr__, __dir__ = _hand_on(__name__, {"draw_genotype": "cell", "draw_png": "cell"})
