"""Drawings of cells, networks and tables, as SVG and PNG."""

from nas_moreau.lazy_exports import lazy_exports as _lazy_exports

__all__, __getattr__, __dir__ = _lazy_exports(__name__, {"draw_genotype": "cell", "draw_png": "cell"})
