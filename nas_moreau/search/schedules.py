"""What all search methods share: schedules of the step sizes, and the update rules that act on directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from nas_moreau.bilevel import adam, sgd
from nas_moreau.bilevel.updates import Update
from nas_moreau.config import SearchConfig

MOREAU_LRS = {"weights_lr", "theta_lr"}


class Rules(NamedTuple):
    """Step sizes as functions of the step k, and the update rules that act on directions."""

    weights_lr: Callable[[int], float]
    alphas_lr: Callable[[int], float]
    update_weights: Update
    update_alphas: Update


def cosine(start: float, end: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns the step size as a function of the step: half a cosine from `start` to `end`, changed at every epoch."""

    def at(k: int) -> float:
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * (k // steps_per_epoch) / epochs))

    return at


def build_rules(search: SearchConfig, steps_per_epoch: int) -> Rules:
    """Returns the published schedules and update rules with the configuration's numbers."""
    weights, alphas = search.weights, search.alphas
    return Rules(
        cosine(weights.lr, weights.lr_min, search.epochs, steps_per_epoch),
        cosine(alphas.lr, alphas.lr_min, search.epochs, steps_per_epoch),
        sgd(weights.momentum, weights.weight_decay, clip=weights.clip),
        adam(alphas.betas, weight_decay=alphas.weight_decay),
    )


def smaller_steps(settings: SearchConfig, factor: float) -> SearchConfig:
    """Returns the settings with every step size multiplied by `factor`."""
    if factor == 1:
        return settings
    weights, alphas, moreau_lrs = settings.weights, settings.alphas, settings.moreau.model_dump(include=MOREAU_LRS)
    return settings.model_copy(
        update={
            "weights": weights.model_copy(update={"lr": factor * weights.lr, "lr_min": factor * weights.lr_min}),
            "alphas": alphas.model_copy(update={"lr": factor * alphas.lr, "lr_min": factor * alphas.lr_min}),
            "moreau": settings.moreau.model_copy(update={name: lr and factor * lr for name, lr in moreau_lrs.items()}),
        }
    )
