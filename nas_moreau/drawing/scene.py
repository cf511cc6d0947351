"""A drawing before it is painted: lines, outlines, texts and colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# colours of the drawing, light and dark; operations have their own, filled with a veil of it
LIGHT = {"ground": "#ffffff", "text": "#1d2430", "faint": "#667080", "line": "#9aa3b0", "state": "#eef1f5"}
DARK = {"ground": "#161a21", "text": "#e8ebf0", "faint": "#98a2b3", "line": "#6f7a8a", "state": "#2a303b"}
VEIL = 0.16


@dataclass
class Path:
    """A line or outline: commands ("M", x, y), ("L", x, y), ("C", x1, y1, x2, y2, x, y), ("Z",)."""

    role: str  # "line", "operation-line", "halo", "arrow", "state", "port", "operation", "sample", "sample-line"
    commands: list[tuple[Any, ...]]
    colour: str = ""
    width: float = 1.5
    dash: tuple[float, ...] = ()
    title: str = ""


@dataclass
class Text:
    """A text that is centred at (x, y), or begins there if `anchor` is "start"."""

    x: float
    y: float
    text: str
    size: float
    role: str = "label"  # "label", "title", "faint"
    anchor: str = "middle"


@dataclass
class Scene:
    """All parts of a drawing, in the order of painting."""

    width: float = 0.0
    height: float = 0.0
    parts: list[Path | Text] = field(default_factory=list)
    title: str = "Cells of a genotype"
