"""Drawings of cells, networks and tables, as SVG and PNG."""

from nas_moreau.lazy_exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, {"draw_genotype": "cell", "draw_png": "cell"})
