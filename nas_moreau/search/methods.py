"""Search methods by name: each is a bilevel method with the update rules of the configuration.

A name is a method, followed by `+beta` for the beta-DARTS term in F and `+pc` for partial channels with edge weights,
which become part of x. Methods that mix the operations otherwise than by the softmax of the alphas bring a function for
that along.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from nas_moreau.architecture import SearchSpace, Supernet
from nas_moreau.bilevel import Method, moreau
from nas_moreau.bilevel.rivals.darts import darts1, darts2
from nas_moreau.config import SearchConfig
from nas_moreau.data import Part
from nas_moreau.errors import InputError, did_you_mean
from nas_moreau.search.drnas import dirichlet_weights
from nas_moreau.search.gdas import gumbel_paths
from nas_moreau.search.rsws import best_of_many, rsws, uniform_path
from nas_moreau.search.schedules import Rules, build_rules
from nas_moreau.search.supernet_problem import Mix

Build = Callable[[SearchConfig, Rules], Method]
Choose = Callable[[SearchSpace, Supernet, Part, int, bool, Callable[[], None]], tuple[list[Tensor], str]]


class Registered(NamedTuple):
    """A search method: what builds it, and the arguments of `register_method`."""

    build: Build
    mix: Mix | None = None
    choose: Choose | None = None


METHODS: dict[str, Registered] = {}
ADDITIONS = ("beta", "pc")


def register_method(name: str, mix: Mix | None = None, choose: Choose | None = None) -> Callable[[Build], Build]:
    """Makes a search method known by name; the decorated function builds it from the configuration and the rules.

    The method it returns has the contract of `nas_moreau.bilevel.Method`: init(problem, x, y) and
    step(problem, x, y, state, upper_batch, lower_batch), with x the alphas and y the weights.

    Args:
        name: Free, without '+'.
        mix: (space, logits of every cell, batch) -> `Mixing`: what takes the place of the softmax of the alphas in
            every loss. Draw from a generator seeded by `batch.seed`, so that a resumed search repeats them.
        choose: For a method that learns no alphas: (space, trained supernet, architecture split, seed, channels_last,
            check_stop) -> (logits of every cell, sentence for the log), called after the last step; it must call
            check_stop() regularly, which may raise. No addition can follow such a method.
    """

    def register(build: Build) -> Build:
        if name in (*METHODS, "random") or "+" in name:
            raise InputError(f"A method cannot be named '{name}'.", "Choose a name that is free and has no '+'.")
        METHODS[name] = Registered(build, mix, choose)
        return build

    return register


def parse_method(name: str) -> tuple[str, frozenset[str]]:
    """Returns the method and its additions of a name such as `moreau+beta+pc`.

    Raises:
        InputError: Unknown method or addition.
    """
    base, *additions = name.split("+")
    if base not in (*METHODS, "random"):
        raise InputError(f"There is no search method '{base}'.", did_you_mean(base, [*METHODS, "random"]))
    for addition in additions:
        if addition not in ADDITIONS or base == "random" or METHODS[base].choose is not None:
            cure = "Only '+beta' and '+pc' can follow a method, and only one that learns alphas by gradients."
            raise InputError(f"'+{addition}' cannot follow '{base}'.", cure)
        if additions.count(addition) > 1:
            raise InputError(f"'{name}' names '+{addition}' twice.", "Name it once.")
    return base, frozenset(additions)


def parse_methods(methods: str, seeds: str) -> dict[str, tuple[int, ...]]:
    """Returns method -> seeds of texts such as "moreau+beta,random:0-7" and "0,1,2".

    Args:
        methods: Names with commas between; a name may carry seeds of its own after a colon: one, or a range.
        seeds: Numbers and ranges with commas between, for the methods that carry none.

    Raises:
        InputError: An unknown method, one named twice, or something that is no seed.
    """
    found: dict[str, tuple[int, ...]] = {}
    for word in methods.split(","):
        name, colon, own = (part.strip() for part in word.partition(":"))
        parse_method(name)
        if name in found:
            raise InputError(f"The method {name} is named twice.", "Name it once, with all its seeds.")
        found[name] = _parse_seeds(own if colon else seeds)
    return found


def _parse_seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 10_000:
            raise InputError(f"'{word}' is no seed.", "Write --seeds 0,1,2 or 0-4, or a method's own: random:0-7.")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"The seeds {text} hold one twice.", "Name each seed once.")
    return tuple(seeds)


def check_macs_penalty(search: SearchConfig) -> None:
    """Raises InputError when expected multiply-adds are to be penalised with a method that does not mix by softmax."""
    base, _ = parse_method(search.method)
    if search.macs_penalty and (base == "random" or METHODS[base].mix is not None):
        raise InputError(
            f"The method '{base}' draws its operations; search.macs_penalty weighs them by the softmax of the alphas, "
            "which has no meaning for it.",
            "Take moreau, darts1 or darts2, or set search.macs_penalty=0 (derive.max_macs limits any method's cell).",
        )


def search_supernet(space: SearchSpace, search: SearchConfig, num_classes: int, in_channels: int) -> Supernet:
    """Returns the supernet that the configuration's method searches in, with initial weights from the global generator.

    Raises:
        InputError: A size does not fit.
    """
    return Supernet(
        space, search.channels, search.layers, num_classes, in_channels, search.alphas.init_scale,
        partial_channels=search.partial_channels if "pc" in parse_method(search.method)[1] else 1,
    )  # fmt: skip


def build_method(search: SearchConfig, steps_per_epoch: int) -> tuple[Method, Rules]:
    """Returns the method the configuration names, ready to run, and the rules it was built with."""
    base, _ = parse_method(search.method)
    rules = build_rules(search, steps_per_epoch)
    return METHODS[base].build(search, rules), rules


def registered(name: str) -> Registered:
    """Returns what was registered under the name of a method, its additions left aside."""
    return METHODS[parse_method(name)[0]]


def _moreau(order: str) -> Build:
    def build(search: SearchConfig, rules: Rules) -> Method:
        settings = search.moreau
        of_y = settings.weights_lr / search.weights.lr if settings.weights_lr else settings.c / (1 + settings.c)
        of_theta = settings.theta_lr / search.weights.lr if settings.theta_lr else of_y
        return moreau(
            alpha=rules.alphas_lr,
            beta=lambda k: of_y * rules.weights_lr(k),
            eta=lambda k: of_theta * rules.weights_lr(k),
            gamma=settings.gamma,
            c=settings.c,
            p=settings.p,
            order=order,
            theta_steps=settings.theta_steps,
            update_x=rules.update_alphas,
            update_y=rules.update_weights,
            update_theta=rules.update_weights,
        )

    return build


# one evaluation at (x, theta) on a fresh batch serves both (9) and (10): cheapest, and unbiased under minibatches
register_method("moreau")(_moreau("lagged"))
register_method("moreau-gauss-seidel")(_moreau("gauss-seidel"))
register_method("moreau-jacobi")(_moreau("jacobi"))
register_method("moreau-lagged")(_moreau("lagged"))


@register_method("darts1")
def _darts1(search: SearchConfig, rules: Rules) -> Method:
    return darts1(rules.alphas_lr, rules.weights_lr, update_x=rules.update_alphas, update_y=rules.update_weights)


@register_method("darts2")
def _darts2(search: SearchConfig, rules: Rules) -> Method:
    return darts2(
        rules.alphas_lr,
        rules.weights_lr,
        update_x=rules.update_alphas,
        update_y=rules.update_weights,
    )


# first-order DARTS in all but how the operations are mixed
register_method("gdas", gumbel_paths)(_darts1)
register_method("drnas", dirichlet_weights)(_darts1)
register_method("rsws", uniform_path, best_of_many)(rsws)
