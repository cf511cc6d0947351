"""What a search's configuration says about step sizes: schedules, update rules, and the step sizes of each method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from nas_moreau.bilevel import StepSizes, adam, adamw, chain, clip, distance_over_gradients, mirror, projected, sgd
from nas_moreau.bilevel.methods import MethodInfo
from nas_moreau.bilevel.simplex_steps import Groups
from nas_moreau.bilevel.updates import Update
from nas_moreau.config import SearchConfig
from nas_moreau.config.sections import AlphasConfig, WeightsConfig
from nas_moreau.errors import InputError

MOREAU_LRS = {"weights_lr", "theta_lr"}

INNER_STEPS = 10
"""Steps of the weights in one step of a method with an inner loop, and products with the Hessian."""


class Schedules(NamedTuple):
    """Learning rates as functions of the step k, and the update rules that act on directions."""

    weights_lr: Callable[[int], float]
    alphas_lr: Callable[[int], float]
    update_alphas: Update
    update_weights: Update


def cosine(start: float, end: float, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns the learning rate as a function of the step: half a cosine from `start` to `end`, one step an epoch."""

    def at(k: int) -> float:
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * (k // steps_per_epoch) / epochs))

    return at


def build_schedules(search: SearchConfig, steps_per_epoch: int, groups: Groups | None = None) -> Schedules:
    """Returns the schedules and update rules of a configuration.

    Args:
        search: The configuration.
        steps_per_epoch: Steps of an epoch.
        groups: The alphas of which each softmax makes one simplex (`Supernet.alpha_groups`), for the rules that step
            on simplices.
    """
    weights, alphas = search.weights, search.alphas
    return Schedules(
        cosine(weights.lr, weights.lr_min, search.epochs, steps_per_epoch),
        *_alphas_rule(alphas, search.epochs, steps_per_epoch, groups),
        _weights_rule(weights),
    )


def _weights_rule(weights: WeightsConfig) -> Update:
    """Returns the update rule of the weights and of theta."""
    if weights.rule == "momentum":
        return sgd(weights.momentum, weights.weight_decay, clip=weights.clip)
    rule = adamw((weights.momentum, 0.999), weight_decay=weights.weight_decay)
    return rule if weights.clip is None else chain(clip(weights.clip), rule)


def _alphas_rule(
    alphas: AlphasConfig, epochs: int, steps_per_epoch: int, groups: Groups | None
) -> tuple[Callable[[int], float], Update]:
    """Returns the step size of the alphas, as a function of the step, and their update rule."""
    if alphas.rule == "adam":
        rule = adam(alphas.betas, weight_decay=alphas.weight_decay)
        return cosine(alphas.lr, alphas.lr_min, epochs, steps_per_epoch), rule
    return lambda k: alphas.step, {"mirror": mirror, "projected": projected}[alphas.rule](groups)


def search_step_sizes(search: SearchConfig, schedules: Schedules, info: MethodInfo) -> StepSizes:
    """Returns the step sizes of a method in a search.

    y's learning rate is that of the configuration divided by how much steeper the method's direction is than grad_y f:
    F/c + f by (1+c)/c, F + c f by 1+c. So a network learns at the same effective rate under every method. AdamW's steps
    do not follow the length of the direction: nothing is divided.

    Args:
        search: The configuration; `search.moreau.weights_lr` and `theta_lr` replace what follows from c.
        schedules: Made from it.
        info: The method.

    Raises:
        InputError: The method needs constants that the paper prints.
    """
    moreau = search.moreau
    if "published" in info.needs:
        raise InputError(
            f"'{info.name}' has the constants that the paper prints for small problems; there are none for a search.",
            "Use --preset meha_paper, the settings of the paper's search.",
        )
    rules = {"update_y": schedules.update_weights, "update_theta": schedules.update_weights}
    if "automatic" in info.needs:
        return StepSizes(update_x=distance_over_gradients(), **rules)
    share, theta_share = _steepness(search, info), 1.0
    if "envelope" in info.needs:
        share = moreau.weights_lr / search.weights.lr if moreau.weights_lr else share
        theta_share = moreau.theta_lr / search.weights.lr if moreau.theta_lr else share
    inner = INNER_STEPS if "inner loop" in info.needs else 1
    return StepSizes(
        alpha=schedules.alphas_lr,
        beta=lambda k: share * schedules.weights_lr(k),
        eta=lambda k: theta_share * schedules.weights_lr(k),
        gamma=moreau.gamma,
        c=moreau.c,
        p=moreau.p,
        inner_steps=moreau.theta_steps if "envelope" in info.needs else inner,
        update_x=schedules.update_alphas,
        **rules,
    )


def _steepness(search: SearchConfig, info: MethodInfo) -> float:
    """Returns what y's learning rate is multiplied by, so that the method's direction moves y as grad_y f does."""
    c = search.moreau.c
    if search.weights.rule == "adamw":
        return 1.0
    if info.needs & {"joint", "envelope"}:
        return c / (1 + c)
    if info.needs & {"penalty", "gradient penalty"}:
        return 1 / (1 + c)
    return 0.5 if "barrier" in info.needs else 1.0


def smaller_steps(settings: SearchConfig, factor: float) -> SearchConfig:
    """Returns the settings with every learning rate multiplied by `factor`."""
    if factor == 1:
        return settings
    weights, alphas, moreau_lrs = settings.weights, settings.alphas, settings.moreau.model_dump(include=MOREAU_LRS)
    return settings.model_copy(
        update={
            "weights": weights.model_copy(update={"lr": factor * weights.lr, "lr_min": factor * weights.lr_min}),
            "alphas": alphas.model_copy(
                update={name: factor * getattr(alphas, name) for name in ("lr", "lr_min", "step")}
            ),
            "moreau": settings.moreau.model_copy(update={name: lr and factor * lr for name, lr in moreau_lrs.items()}),
        }
    )
