"""What a search returns: result.json as a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas_moreau.architecture import AlphaTable, Genotype, Percentile, SearchSpace, load_space, percentile
from nas_moreau.search.collapse import Health
from nas_moreau.search.rules import Derived


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        method: The search method.
        space: Name of the search space.
        derived: The derived genotype and how it was derived.
        seed: Of the run.
        steps: Steps done.
        wall_seconds: Wall-clock time, evaluations included.
        peak_memory_bytes: The most that the process held; on an accelerator, that its allocator took.
        held_out_accuracy: Of the supernet, 0..1; None for a cell that was drawn at random.
        alphas: Softmax weights of all edges; None for a cell that was drawn at random.
        health: Whether the cell has collapsed; None for a cell that was drawn at random.
        stability: For how many epochs the derived genotype has not changed; None for a cell that was drawn at random.
        guard: What `search.guard` did; None where it is off.
    """

    method: str
    space: str
    derived: Derived
    seed: int
    steps: int
    wall_seconds: float
    peak_memory_bytes: int
    held_out_accuracy: float | None = None
    alphas: AlphaTable | None = None
    health: Health | None = None
    stability: dict[str, Any] | None = None
    guard: dict[str, Any] | None = None

    @property
    def genotype(self) -> Genotype:
        """The derived genotype."""
        return self.derived.genotype

    @property
    def digest(self) -> str:
        """The digest of the genotype."""
        return self.genotype.digest()

    @property
    def verdict(self) -> str | None:
        """The verdict on the genotype with its reason, None for a cell that was drawn at random."""
        return None if self.health is None else str(self.health)

    @property
    def percentile(self) -> Percentile | None:
        """The predicted percentile of the genotype among random cells; None where it has none."""
        return percentile(self.genotype)

    def __str__(self) -> str:
        return f"cell {self.digest}"

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        optional = {"verdict": self.verdict, "stability": self.stability, "guard": self.guard}
        return {
            "method": self.method,
            "space": self.space,
            **self.derived.to_dict(),
            "seed": self.seed,
            "steps": self.steps,
            "wall_seconds": self.wall_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "held_out_accuracy": self.held_out_accuracy,
            **({"alphas": {}} if self.alphas is None else self.alphas.to_dict()),
            **({} if self.health is None else {"health": self.health.to_dict()}),
            **{name: value for name, value in optional.items() if value is not None},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], space: SearchSpace | None = None) -> SearchResult:
        """Returns the result that `to_dict` wrote.

        Args:
            data: What result.json holds.
            space: The search space; by default the one that is named.
        """
        space = load_space(data["space"]) if space is None else space
        names = ("method", "space", "seed", "steps", "wall_seconds", "peak_memory_bytes", "held_out_accuracy")
        return cls(
            **{name: data[name] for name in names},
            derived=Derived.from_dict(data),
            alphas=AlphaTable.from_dict(space, data) if data["alphas"] else None,
            health=Health.from_dict(data["health"]) if "health" in data else None,
            stability=data.get("stability"),
            guard=data.get("guard"),
        )
