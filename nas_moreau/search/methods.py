"""Search methods by name: a bilevel method, or a mixing with its bilevel method, and what may follow the name.

`+beta` adds the beta-DARTS term to F; `+pc` makes the channels partial, with edge weights that become part of x.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from nas_moreau import distributed
from nas_moreau.architecture import SearchSpace, Supernet
from nas_moreau.bilevel import Method, StepSizes
from nas_moreau.bilevel.methods import METHODS, MethodInfo
from nas_moreau.bilevel.simplex_steps import Groups
from nas_moreau.config import Config, SearchConfig
from nas_moreau.errors import InputError, unknown
from nas_moreau.search.mixing import MIXINGS, Choose, MixingInfo
from nas_moreau.search.random_cell import RANDOM
from nas_moreau.search.schedules import Schedules, build_schedules, search_step_sizes
from nas_moreau.search.supernet_problem import Mix

ADDITIONS = ("beta", "pc")


@dataclass(frozen=True)
class SearchMethod:
    """A search method as its name describes it.

    Attributes:
        name: The whole name, `darts1+beta` for example.
        info: The bilevel method; None for the method `random`, which draws a cell and searches nothing.
        mixing: What takes the place of the softmax; None for the softmax.
        additions: Those of `ADDITIONS` that the name ends with.
    """

    name: str
    info: MethodInfo | None
    mixing: MixingInfo | None = None
    additions: frozenset[str] = frozenset()

    @property
    def is_random(self) -> bool:
        """Whether it only draws a cell."""
        return self.info is None

    @property
    def mix(self) -> Mix | None:
        """The function from logits to mixing weights; None for the softmax."""
        return None if self.mixing is None else self.mixing.mix

    @property
    def choose(self) -> Choose | None:
        """How a method that learns no alphas chooses a cell at the end; None for one that learns them."""
        return None if self.mixing is None else self.mixing.choose

    @property
    def evaluations(self) -> int:
        """Gradient evaluations of one step in a search by the default settings."""
        return self.count(SearchConfig())

    def count(self, search: SearchConfig) -> int:
        """Returns the gradient evaluations of one step in a search by these settings."""
        if self.info is None:
            return 0
        if "published" in self.info.needs:
            return self.info.count(StepSizes())
        return self.info.count(search_step_sizes(search, build_schedules(search, 1), self.info))

    @property
    def source(self) -> str:
        """Where it is published."""
        if self.info is None:
            return "reference: a cell drawn uniformly from the space"
        return self.info.source if self.mixing is None else self.mixing.source

    @property
    def takes_steps(self) -> bool:
        """Whether a search can be run with it: there are step sizes for it, and it does not only draw a cell."""
        return self.info is not None and "published" not in self.info.needs

    @property
    def is_automatic(self) -> bool:
        """Whether it finds constants by itself, on the first batches."""
        return self.info is not None and "automatic" in self.info.needs

    @property
    def is_capturable(self) -> bool:
        """Whether a step can be recorded once and replayed: a capturable bilevel method, and no draws on the host."""
        return self.info is not None and self.info.capturable and self.mixing is None

    @property
    def is_softmax(self) -> bool:
        """Whether the mixing weights are, in the mean, the softmax of the alphas."""
        return self.mixing is None or self.mixing.softmax

    @property
    def learns_alphas(self) -> bool:
        """Whether the alphas are learned by gradients."""
        return self.info is not None and self.choose is None


def search_methods() -> dict[str, SearchMethod]:
    """Returns name -> search method, without additions.

    Raises:
        InputError: A bilevel method and a mixing have the same name.
    """
    if twice := METHODS.keys() & (MIXINGS.keys() | {RANDOM}):
        raise InputError(f"The name '{min(twice)}' is taken by a mixing.", "Register the method under another name.")
    known = {name: SearchMethod(name, info) for name, info in METHODS.items()}
    for name, mixing in MIXINGS.items():
        if mixing.method not in METHODS:
            raise unknown(f"bilevel method of the mixing {name}", mixing.method, METHODS)
        known[name] = SearchMethod(name, METHODS[mixing.method], mixing)
    return known | {RANDOM: SearchMethod(RANDOM, None)}


def parse_method(name: str) -> SearchMethod:
    """Returns the search method of a name such as `moreau+beta+pc`.

    Raises:
        InputError: Unknown method or addition.
    """
    base, *additions = name.split("+")
    known = search_methods()
    if base not in known:
        raise unknown("search method", base, known)
    method = known[base]
    for addition in additions:
        if addition not in ADDITIONS or not method.learns_alphas:
            cure = "Only '+beta' and '+pc' can follow a method, and only one that learns alphas by gradients."
            raise InputError(f"'+{addition}' cannot follow '{base}'.", cure)
        if additions.count(addition) > 1:
            raise InputError(f"'{name}' has '+{addition}' twice.", "Write it once.")
    return SearchMethod(name, method.info, method.mixing, frozenset(additions))


def parse_methods(methods: str, seeds: str) -> dict[str, tuple[int, ...]]:
    """Returns method -> seeds of texts such as "moreau+beta,random:0-7" and "0,1,2".

    Args:
        methods: Names separated by commas; seeds of a method alone follow a colon: one, or a range.
        seeds: Numbers and ranges separated by commas, for the methods without.

    Raises:
        InputError: An unknown method, one given twice, or an invalid seed.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in methods.split(","):
        name, colon, own = (piece.strip() for piece in part.partition(":"))
        parse_method(name)
        if name in found:
            raise InputError(f"The method {name} is given twice.", "Give it once, with all its seeds.")
        found[name] = _parse_seeds(own if colon else seeds)
    return found


def _parse_seeds(text: str) -> tuple[int, ...]:
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + 10_000:
            raise InputError(f"Invalid seed '{part}'.", "Write --seeds 0,1,2 or 0-4, or a method's own: random:0-7.")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"The seeds {text} have one twice.", "Give each seed once.")
    return tuple(seeds)


def check_method(config: Config) -> SearchMethod:
    """Returns the configuration's search method, if the other settings go together with it.

    Raises:
        InputError: They do not.
    """
    search, performance = config.search, config.performance
    method = parse_method(search.method)
    if search.penalty.weights() and (method.is_random or method.mix is not None):
        raise InputError(
            f"The method '{search.method}' draws its operations; search.penalty weighs them by the softmax of the "
            "alphas, which has no meaning for it.",
            "Take moreau, darts1 or darts2, or leave search.penalty out (derive.max_macs limits any method's cell).",
        )
    if method.info is None:
        return method
    search_step_sizes(search, build_schedules(search, 1), method.info)
    own = method.is_automatic or {"hessian", "inner loop"} <= set(method.info.needs) or method.info.name == "darts2"
    if own and search.weights.rule != "momentum":
        raise InputError(
            f"'{search.method}' takes, or looks ahead by, steps of SGD: search.weights.rule={search.weights.rule} has "
            "no meaning for it.",
            "Take search.weights.rule=momentum, or a method such as moreau or darts1.",
        )
    if "hessian" in method.info.needs:
        forbidden = {
            "several processes": distributed.world_size() > 1,
            "performance.compile": performance.compile,
            "performance.activation_checkpointing": performance.activation_checkpointing,
        }
        for name, wanted in forbidden.items():
            if wanted:
                raise InputError(
                    f"The method '{search.method}' needs second derivatives, which {name} does not give.",
                    "Use a first-order method such as moreau, or do without it.",
                )
    return method


def search_supernet(space: SearchSpace, search: SearchConfig, num_classes: int, in_channels: int) -> Supernet:
    """Returns the supernet that the configuration's method searches in, with initial weights from the global generator.

    Raises:
        InputError: A size does not fit.
    """
    method = parse_method(search.method)
    # native kernels have no second derivatives
    kernels = "portable" if method.info is not None and "hessian" in method.info.needs else "auto"
    return Supernet(
        space,
        search.channels,
        search.layers,
        num_classes,
        in_channels,
        search.alphas.init_scale,
        partial_channels=search.partial_channels if "pc" in method.additions else 1,
        kernels=kernels,
    )


def build_method(
    search: SearchConfig,
    steps_per_epoch: int,
    groups: Groups | None = None,
    hold: Callable[[StepSizes], StepSizes] = lambda sizes: sizes,
) -> tuple[Method, Schedules]:
    """Returns the bilevel method that the configuration names, ready to run, and the schedules it was built with.

    Args:
        search: The configuration.
        steps_per_epoch: Steps of an epoch.
        groups: `Supernet.alpha_groups()`, which the rules that step on simplices need.
        hold: What the method's step sizes are passed through.
    """
    method = parse_method(search.method)
    assert method.info is not None, "the method `random` takes no steps"
    if not method.is_softmax:
        search = search.model_copy(update={"alphas": search.alphas.model_copy(update={"rule": "adam"})})
    schedules = build_schedules(search, steps_per_epoch, groups)
    return method.info.build(hold(search_step_sizes(search, schedules, method.info))), schedules
