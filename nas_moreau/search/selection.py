"""Selection: the best of the derived cell and all cells that differ from it in one operation.

They are scored one-hot in the supernet that was trained as a mixture, on the held-out split; the lowest loss is kept.
One change only: the score says how well a cell fits the trained mixture, and is less informative further away.

It does not estimate accuracy, and prefers skips. On 25 searches by moreau+beta in NAS-Bench-201 (8 channels, 16x16
CIFAR-10 images, 1,000 steps, seeds 100 to 104, seven settings; the benchmark's accuracy after training on half the
data) one-hot accuracies were .07 to .27, 18 changes led to a skip, and the cells went from 89.79 to 90.03 % (14 better,
11 worse). Where the skip went on the edge from the cell's input to its output (12) they gained: 89.73 to 90.68;
elsewhere (13) they lost: 89.84 to 89.43. Always putting that skip there gives 90.53. No such result is known for the
DARTS space.

The held-out split is used up by this: no loss or accuracy on it estimates how good the cell is. The test accuracy of
the retrained network does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nas_moreau.architecture import Genotype, SearchSpace, Supernet
from nas_moreau.architecture.spaces.neighbours import neighbours
from nas_moreau.data import Part
from nas_moreau.search.mixture_scores import one_hot, score_mixtures

NOTE = "chosen by the lowest held-out loss: these losses and accuracies do not estimate how good the cell is"


def select(
    space: SearchSpace,
    supernet: Supernet,
    genotype: Genotype,
    held_out: Part,
    channels_last: bool = False,
    allowed: Callable[[Genotype], bool] = lambda genotype: True,
) -> tuple[Genotype, dict[str, Any]]:
    """Returns the chosen cell, and a record of all that were scored: `candidates`, the derived cell first.

    Args:
        space: The space of `genotype`.
        supernet: With the weights of the search.
        genotype: The derived cell. Among equal losses it comes first, then the earlier neighbour.
        held_out: The images on which they are scored.
        channels_last: Memory layout of the batches.
        allowed: Whether a neighbour may be chosen (a budget, for example).
    """
    tried = [neighbour for neighbour in neighbours(space, genotype) if allowed(neighbour.genotype)]
    cells = [genotype, *(neighbour.genotype for neighbour in tried)]
    scores = score_mixtures(
        supernet, [one_hot(space, cell, supernet.classifier.weight) for cell in cells], held_out, channels_last
    )
    # a loss that is not finite is the worst, and result.json cannot hold it
    losses = [score.loss if math.isfinite(score.loss) else None for score in scores]
    best = min(range(len(cells)), key=lambda i: scores[i].loss if math.isfinite(scores[i].loss) else math.inf)
    rows: list[dict[str, Any]] = []
    for i, (cell, score) in enumerate(zip(cells, scores)):
        row = {"digest": cell.digest(), "loss": losses[i], "accuracy": score.accuracy, "change": None}
        if i:
            change = tried[i - 1]
            row["change"] = {
                "cell": change.cell,
                "edge": list(change.edge),
                "from": change.former,
                "to": change.operation,
            }
        rows.append(row)
    record = {
        "split": "held_out",
        "images": len(held_out),
        "note": NOTE,
        "moved": best > 0,
        "chosen": rows[best],
        "candidates": rows,
    }
    return cells[best], record
