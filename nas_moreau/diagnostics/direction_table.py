"""The table of `check-hypergradient`: directions compared with the hypergradient, and what must hold of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nas_moreau.bilevel.exact import flat
from nas_moreau.bilevel.tensors import Tensors


@dataclass(frozen=True)
class DirectionRow:
    """A direction compared with the hypergradient, in the units of the hypergradient (with a penalty, times c_k).

    Attributes:
        part: "exact", "moreau" or "as run".
        method: What gave the direction.
        c: The penalty; None without one.
        verdict: The outcome as a phrase.
        cosine: Of the angle to the hypergradient; None, as all that follows, if there is no direction.
        relative_error: |direction - hypergradient| / |hypergradient|.
        norm: |direction|.
        seconds: Time of the computation; as run the median of three steps.
        memory_bytes: Maximum kept for backward passes at one time in a step.
        first_order_cosine: Cosine of F_x alone at the same alphas and weights (as run).
    """

    part: str
    method: str
    c: float | None
    verdict: str = ""
    cosine: float | None = None
    relative_error: float | None = None
    norm: float | None = None
    seconds: float | None = None
    memory_bytes: int | None = None
    first_order_cosine: float | None = None


@dataclass(frozen=True)
class Check:
    """Something that must hold: `passed` says whether `value` is on the right side of `limit`."""

    name: str
    value: float | None
    limit: float
    passed: bool

    @property
    def verdict(self) -> str:
        """The outcome as a sentence."""
        shown = "not known" if self.value is None else f"{self.value:.4g}"
        return f"{'holds' if self.passed else 'FAILS'}: {self.name}: {shown}, limit {self.limit:g}"


@dataclass(frozen=True)
class Directions:
    """The outcome of a check.

    Attributes:
        seed: Seed of the supernet and its images.
        alphas, weights: Numbers of entries.
        gamma: The envelope's parameter in the second part.
        smallest_eigenvalue, largest_eigenvalue: Of f_yy at the lower level's minimiser.
        rows: The directions.
        checks: What must hold.
    """

    seed: int
    alphas: int
    weights: int
    gamma: float
    smallest_eigenvalue: float
    largest_eigenvalue: float
    rows: list[DirectionRow]
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        checks = [asdict(check) | {"verdict": check.verdict} for check in self.checks]
        return asdict(self) | {"checks": checks, "passed": self.passed}


def compared(row: DirectionRow, direction: Tensors, reference: Tensors) -> DirectionRow:
    """Returns the row with cosine, relative error and norm of a direction."""
    found, wanted = flat(direction), flat(reference)
    error = float((found - wanted).norm() / wanted.norm())
    return replace(row, cosine=cosine_of(direction, reference), relative_error=error, norm=float(found.norm()))


def cosine_of(a: Tensors, b: Tensors) -> float:
    """Returns the cosine of the angle between two lists of tensors, each taken as one vector."""
    return float(torch.cosine_similarity(flat(a), flat(b), 0))


def below(name: str, error: float | None, limit: float) -> Check:
    """Returns the check that an error is known and not above a limit."""
    return Check(name, error, limit, error is not None and error <= limit)


def judged(row: DirectionRow) -> DirectionRow:
    """Returns the row with a verdict on its cosine."""
    levels = {
        0.99: "is the hypergradient's direction",
        0.9: "close to the hypergradient's direction",
        0.5: "leans towards the hypergradient",
        -0.5: "has little to do with the hypergradient",
        -2.0: "points away from the hypergradient",
    }
    assert row.cosine is not None
    return replace(row, verdict=next(text for least, text in levels.items() if row.cosine >= least))
