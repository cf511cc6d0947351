"""What takes the place of the softmax of the alphas in a search: by Gumbel paths, Dirichlet samples or uniform paths.

    @register_mixing("sigmoid-darts")
    def sigmoids(space, alphas, batch):
        return Mixing([torch.sigmoid(logits) for logits in alphas])

makes a search method of the name: the bilevel method `darts1` with these mixing weights. A mixing that draws does so
from a generator seeded by `batch.seed`, so that a resumed search repeats its draws.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Dirichlet
from torch.nn import functional as f

from nas_moreau.architecture import Genotype, SearchSpace, Supernet
from nas_moreau.data import Part, seed_for
from nas_moreau.errors import InputError
from nas_moreau.search.mixture_scores import one_hot, score_mixtures
from nas_moreau.search.random_cell import RANDOM
from nas_moreau.search.supernet_problem import Batch, Mix, Mixing

Choose = Callable[..., tuple[list[Tensor], str]]

HOTTEST, COLDEST = 10.0, 0.1
"""GDAS: the temperature falls linearly from the first to the second over the search, as published."""

SMALLEST = 1e-6
"""DrNAS: lower bound of the concentrations; below, samples and their gradients are no longer finite."""

GENOTYPES, IMAGES = 100, 1000
"""Random search with weight sharing: genotypes drawn at the end, and images on which each is measured. The published
code draws 1,000, measures them on ten batches and the best ten on the whole split; fewer keep the choice short."""

CERTAIN = 10.0
"""Random search with weight sharing: the alpha of what was chosen, the others are 0; a softmax weight above 0.99."""


class MixingInfo(NamedTuple):
    """A mixing of the table: what `register_mixing` was given, and the function that it decorated."""

    name: str
    mix: Mix
    method: str
    choose: Choose | None
    source: str
    softmax: bool


MIXINGS: dict[str, MixingInfo] = {}
"""Name -> mixing."""


def register_mixing(
    name: str, method: str = "darts1", choose: Choose | None = None, source: str = "", *, softmax: bool = False
) -> Callable[[Mix], Mix]:
    """Makes a search method of a bilevel method and the decorated function from logits to mixing weights.

    The function gets (space, logits of every cell, batch) and returns a `Mixing`: weights of shape (edges, operations)
    for every cell, and optionally which operations to compute.

    Args:
        name: Free, without '+'.
        method: Name of the bilevel method that moves alphas and weights.
        choose: For a method that learns no alphas: called after the last step with (space, trained supernet,
            architecture split, seed, channels_last, check_stop); returns (logits of every cell, sentence for the log).
            check_stop() is to be called between batches and may raise. No addition can follow such a method.
        source: Where it is published.
        softmax: Whether the weights are, in the mean, the softmax of the alphas. Only then `search.alphas.rule` can be
            a step on simplices; other alphas are moved by Adam.

    Raises:
        InputError: The name is taken or contains '+'.
    """

    def register(mix: Mix) -> Mix:
        if name in (*MIXINGS, RANDOM) or "+" in name:
            raise InputError(f"A mixing cannot be named '{name}'.", "Choose a free name without '+'.")
        MIXINGS[name] = MixingInfo(name, mix, method, choose, source, softmax)
        return mix

    return register


@register_mixing("gdas", source="Dong and Yang, CVPR 2019", softmax=True)
def gumbel_paths(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns one-hot weights drawn with probabilities softmax(alphas), and the paths they stand for.

    The gradient is straight-through: that of softmax((log softmax(alphas) + Gumbel noise) / temperature). Only the
    drawn operations are evaluated, so only their weights pass a gradient on, as in the paper.
    """
    temperature = HOTTEST + (COLDEST - HOTTEST) * batch.progress
    generator = torch.Generator(device="cpu").manual_seed(batch.seed)
    weights = []
    for logits in alphas:
        # on the CPU in double precision: the same draws on every device
        noise = torch.empty(logits.shape, dtype=torch.float64, device="cpu").exponential_(generator=generator)
        gumbel = -noise.log().to(logits)
        soft = torch.softmax((torch.log_softmax(logits, -1) + gumbel) / temperature, -1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft)
        weights.append(hard + (soft - soft.detach()))
    if alphas[0].is_meta:
        return Mixing(weights)  # nothing was drawn, so that no path is known
    # one reading from the device for all cells
    drawn = torch.stack(weights).argmax(-1).tolist()
    return Mixing(weights, [[(k,) for k in path] for path in drawn])


@register_mixing("drnas", source="Chen et al., ICLR 2021")
def dirichlet_weights(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns weights drawn from Dirichlet(elu(alphas) + 1), edge by edge, with pathwise gradients.

    With first-order alternation and the paper's l2 regulariser towards the symmetric Dirichlet (alpha = 0), which is
    the weight decay of the alphas (`search.alphas.weight_decay`, 1e-3 as published). Not used of the paper: progressive
    shrinking (two stages, weak operations dropped, more channels) and the first epochs without steps of the alphas.
    Partial channels are `drnas+pc`.
    """
    if alphas[0].is_meta:
        # no numbers to draw with: the mean has the shape and the dependence on the alphas
        return Mixing([(f.elu(logits) + 1) / (f.elu(logits) + 1).sum(-1, keepdim=True) for logits in alphas])
    # on the CPU in double precision: the same draws on every device; the library draws from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(batch.seed)
        # one reading from the device for all cells
        concentrations = (f.elu(torch.stack(alphas).double().cpu()) + 1).clamp(min=SMALLEST)
        drawn = [Dirichlet(concentration, validate_args=False).rsample() for concentration in concentrations]
    return Mixing([_among_candidates(weights.to(logits), logits, space) for weights, logits in zip(drawn, alphas)])


def _among_candidates(weights: Tensor, logits: Tensor, space: SearchSpace) -> Tensor:
    """Returns the draw restricted to the candidates of each edge, which is a draw of the Dirichlet of these alone."""
    if not space.ragged:
        return weights
    weights = weights.masked_fill(logits == -math.inf, 0.0)
    return weights / weights.sum(-1, keepdim=True)


def best_of_many(
    space: SearchSpace,
    supernet: Supernet,
    architecture: Part,
    seed: int,
    channels_last: bool = False,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[list[Tensor], str]:
    """Returns alphas for the best of `GENOTYPES` random genotypes, and a sentence on how it was found.

    All are measured one-hot on the same images.

    Args:
        space: From which genotypes are drawn.
        supernet: With the shared weights.
        architecture: The architecture split.
        seed: Seed of the draws.
        channels_last: Memory layout of the batches.
        check_stop: Called between batches; it may raise.
    """
    like = supernet.classifier.weight
    draws = random.Random(seed_for(seed, "genotypes at the end of rsws"))
    drawn = {genotype.digest(): genotype for genotype in (space.random_genotype(draws) for _ in range(GENOTYPES))}
    tried: list[Genotype] = list(drawn.values())
    part = architecture.sample(IMAGES)
    mixtures = [one_hot(space, genotype, like) for genotype in tried]
    scores = score_mixtures(supernet, mixtures, part, channels_last, check_stop)
    # a loss that is not finite is the worst
    best = min(range(len(tried)), key=lambda i: scores[i].loss if scores[i].loss == scores[i].loss else float("inf"))
    chosen = one_hot(space, tried[best], like)
    alphas = [CERTAIN * weights for weights in chosen.weights]
    for cell, rows in zip(space.cells, alphas):
        for edge in (rows.sum(-1) == 0).nonzero().flatten().tolist():
            # edges that the genotype leaves out are `none`, where that is a candidate
            if "none" in space.candidates(cell, edge):
                rows[edge, space.candidates(cell, edge).index("none")] = CERTAIN
    sentence = (
        f"{tried[best].digest()} has the lowest loss, {scores[best].loss:.4f}, of {len(tried)} genotypes "
        f"on {len(part)} images of the architecture split"
    )
    return alphas, sentence


@register_mixing("rsws", method="lower-only", choose=best_of_many, source="Li and Talwalkar, UAI 2019")
def uniform_path(space: SearchSpace, alphas: list[Tensor], batch: Batch) -> Mixing:
    """Returns the one-hot weights of a genotype drawn uniformly from the space; only the shared weights are trained."""
    return one_hot(space, space.random_genotype(random.Random(batch.seed)), alphas[0])
