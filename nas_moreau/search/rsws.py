"""Random search with weight sharing (Li & Talwalkar, UAI 2019): no architecture is learnt, only the shared weights.

Every step trains one genotype, drawn uniformly from the space, in the shared weights. At the end genotypes drawn
likewise are measured one-hot on the architecture split, all on the same images, and the best is the result: its
operations get the highest alphas, so that all that reads alphas finds it. The published code draws 1,000 genotypes,
measures them on ten batches and the best ten on the whole split; here it is one round of fewer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.architecture import Genotype, SearchSpace, Supernet
from nas_moreau.bilevel import Bilevel, Info, Method
from nas_moreau.bilevel.method import at
from nas_moreau.bilevel.tensors import Tensors, norm, value_and_grads
from nas_moreau.config import SearchConfig
from nas_moreau.data import Part, seed_for
from nas_moreau.search.candidates import measure, one_hot
from nas_moreau.search.schedules import Rules
from nas_moreau.search.supernet_problem import Batch, Mixing

GENOTYPES, IMAGES = 100, 1000
"""Drawn at the end, and the images each of them is measured on."""

CERTAIN = 10.0
"""The alpha of what was chosen; the others have 0."""


class RswsState(NamedTuple):
    """Steps done, and the state of the weights' update rule."""

    k: int
    y_rule: Any


def rsws(search: SearchConfig, rules: Rules) -> Method:
    """Returns the method: y along grad_y f on the weight split; x rests and F is not looked at."""
    update = rules.update_weights

    def init(problem: Bilevel, x: Tensors, y: Tensors) -> RswsState:
        return RswsState(0, update.init(y))

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: RswsState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, RswsState, Info]:
        alpha, beta = at(rules.alphas_lr, state.k), at(rules.weights_lr, state.k)
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        lower = value_and_grads(problem.f, x, y, lower_batch, wrt="y")
        new_y, y_rule = update.apply(lower.grad_y, beta, y, state.y_rule)
        norms = {"d_y": norm(lower.grad_y)}
        info = Info(alpha, beta, norms, f=lower.value, f_aux=lower.aux)
        return x, new_y, RswsState(state.k + 1, y_rule), info

    return Method(init, step)


def uniform_path(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns the one-hot weights of a genotype drawn uniformly from the space, of the type and place of the alphas."""
    drawn = one_hot(space, space.random_genotype(random.Random(batch.seed)), alphas[0])
    active = drawn.active or {}
    return Mixing([drawn.mixture[cell] for cell in space.cells], [active[cell] for cell in space.cells])


def best_of_many(
    space: SearchSpace,
    supernet: Supernet,
    architecture: Part,
    seed: int,
    channels_last: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[list[Tensor], str]:
    """Returns the alphas that stand for the best of `GENOTYPES` genotypes, and a sentence on how it was found.

    Args:
        space: What may be drawn.
        supernet: With the shared weights.
        architecture: The architecture split.
        seed: Of the draws.
        channels_last: Memory layout of the batches.
        check_stop: Called between batches; it may raise.
    """
    like = supernet.classifier.weight
    draws = random.Random(seed_for(seed, "genotypes at the end of rsws"))
    drawn = {genotype.digest(): genotype for genotype in (space.random_genotype(draws) for _ in range(GENOTYPES))}
    tried: list[Genotype] = list(drawn.values())
    part = architecture.sample(IMAGES)
    scores = measure(supernet, [one_hot(space, genotype, like) for genotype in tried], part, channels_last, check_stop)
    # a loss that is not finite is the worst
    best = min(range(len(tried)), key=lambda i: scores[i].loss if scores[i].loss == scores[i].loss else float("inf"))
    chosen = one_hot(space, tried[best], like)
    alphas = [CERTAIN * chosen.mixture[cell] for cell in space.cells]
    if "none" in space.operations:
        for table in alphas:
            # edges that the genotype leaves out are `none`
            table[table.sum(-1) == 0, space.operations.index("none")] = CERTAIN
    note = (
        f"{tried[best].digest()} has the lowest loss, {scores[best].loss:.4f}, of {len(tried)} genotypes "
        f"on {len(part)} images of the architecture split"
    )
    return alphas, note
