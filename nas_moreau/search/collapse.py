"""Is the search going wrong? Signs of collapse for every epoch, a verdict in words, and a guard that acts on them.

Differentiable searches are known to end in cells of skip connections (Zela et al., "Understanding and Robustifying
Differentiable Architecture Search", ICLR 2020), often after a rise of the dominant eigenvalue of the Hessian of the
upper loss in the alphas, and to lose their accuracy when the mixture is replaced by the derived cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.architecture import Genotype, SearchSpace

IDLE = ("skip_connect", "none", "noise")  # what a collapsed cell is made of: none of them learns or computes anything
COLLAPSED = 0.5  # a larger share of idle edges than this is a collapse
PATIENCE = 3  # the guard `stop` waits for so many collapsed epochs in a row
UNDECIDED = 1.5  # no weight above this multiple of the uniform one: nothing was decided

Weights = Mapping[str, list[list[float]]]


def signs(space: SearchSpace, weights: Weights, genotype: Genotype) -> dict[str, float]:
    """Returns, for each cell, columns of metrics.csv.

    `alpha_entropy_`: mean entropy of its edges in nats. `skip_share_`: share of all edges whose strongest operation is
    a skip. `margin_`: mean over the edges of the strongest weight minus the next. `idle_share_`: share of the derived
    cell's edges that are skip_connect, none or noise.

    Args:
        space: The space of the search.
        weights: Cell name -> (edges, operations) softmax weights.
        genotype: The derived cell.
    """
    row = {}
    for cell, table in weights.items():
        row[f"alpha_entropy_{cell}"] = -sum(w * math.log(w) for edge in table for w in edge if w > 0) / len(table)
        strongest = [space.operations[edge.index(max(edge))] for edge in table]
        row[f"skip_share_{cell}"] = strongest.count("skip_connect") / len(strongest)
        ordered = [sorted(edge, reverse=True) for edge in table]
        row[f"margin_{cell}"] = sum(edge[0] - edge[1] for edge in ordered if len(edge) > 1) / len(table)
        row[f"idle_share_{cell}"] = _idle(genotype, cell) / len(genotype.cells[cell].edges)
    return row


def _idle(genotype: Genotype, cell: str) -> int:
    return sum(operation in IDLE for operation, _, _ in genotype.cells[cell].edges)


def collapsed(genotype: Genotype) -> bool:
    """Returns whether more than half of the edges of a cell are skip_connect, none or noise.

    Reduction cells are not asked: a network has two of them, and good published ones are full of pooling and skips.
    """
    return any(
        _idle(genotype, name) > COLLAPSED * len(cell.edges) for name, cell in genotype.cells.items() if name != "reduce"
    )


def verdict(space: SearchSpace, weights: Weights, genotype: Genotype) -> str:
    """Returns what the derived cell and its weights look like: "collapsed: ...", "undecided: ..." or "healthy: ...".

    Args:
        space: The space of the search.
        weights: Cell name -> (edges, operations) softmax weights.
        genotype: The cell derived from them.
    """
    counts = []
    for name, cell in genotype.cells.items():
        used = [operation for operation, _, _ in cell.edges]
        found = [operation for operation in IDLE if operation in used]
        idle = f"{_idle(genotype, name)} of {len(used)} edges are {' or '.join(found or ['skip_connect'])}"
        counts.append(idle if len(genotype.cells) == 1 else f"{name}: {idle}")
    said = ", ".join(counts)
    if collapsed(genotype):
        return f"collapsed: {said}"
    largest, uniform = max(w for table in weights.values() for edge in table for w in edge), 1 / len(space.operations)
    if largest < UNDECIDED * uniform:
        return f"undecided: the largest softmax weight is {largest:.2f} where uniform is {uniform:.2f}; {said}"
    return f"healthy: {said}"


class Watch(NamedTuple):
    """What the guard remembers from epoch to epoch; checkpoints carry it.

    `streak`: collapsed epochs in a row until now. `accuracy`, `epoch`, `alphas`: of the epoch whose derived cell had
    the best one-hot accuracy on the held-out images, the first among equals.
    """

    streak: int = 0
    accuracy: float = -1.0
    epoch: int = -1
    alphas: list[Tensor] | None = None

    def after(self, epoch: int, genotype: Genotype, accuracy: float, alphas: list[Tensor]) -> Watch:
        """Returns what is remembered after an epoch with this derived cell, one-hot accuracy and these alphas."""
        now = self._replace(streak=self.streak + 1 if collapsed(genotype) else 0)
        if accuracy <= self.accuracy:
            return now
        return now._replace(accuracy=accuracy, epoch=epoch, alphas=[tensor.detach().clone() for tensor in alphas])

    def summary(self, guard: str) -> dict[str, Any]:
        """Returns what the guard did, for result.json; epochs counted from 0 as in metrics.csv."""
        if guard == "best":
            return {"rule": guard, "epoch": self.epoch, "one_hot_accuracy": self.accuracy}
        return {"rule": guard, "stopped": self.stops(guard), "collapsed_epochs": self.streak}

    def stops(self, guard: str) -> bool:
        """Returns whether the guard ends the search: `stop`, after `PATIENCE` collapsed epochs in a row."""
        return guard == "stop" and self.streak >= PATIENCE
