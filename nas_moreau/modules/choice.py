"""A choice in a module: options of which a search finds one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nas_moreau.errors import InputError, quoted


class Mixture(NamedTuple):
    """The weights of the options in a forward pass.

    Attributes:
        weights: (options,).
        active: Numbers of the options to compute; None for all.
    """

    weights: Tensor
    active: tuple[int, ...] | None = None


class Options(Protocol):
    """Options that are computed together, such as the widths of one layer: a module with these methods.

    Attributes:
        names: Name of each option.
    """

    names: tuple[str, ...]

    def outputs(self, active: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the output of each option in `active`."""

    def mixed(self, mixture: Mixture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the weighted sum of the outputs."""

    def plain(self, number: int) -> nn.Module:
        """Returns the option as a module by itself, which may share parameters with the options."""


class Choice(nn.Module):
    """A place in a module for which a search finds one of several options.

    Called with any arguments, it passes them to every option and returns the sum of the outputs, weighed by the softmax
    of `alphas`: a tensor, or tuples, lists and dicts of tensors. Choices of the same name are one decision: a search
    gives them the same alphas.

    Args:
        options: Name -> module; at least two. Or options that are computed together: `Width`, `Depth`.
        name: Of the decision; by default the place in the module, for example "encoder.0.act".

    Attributes:
        alphas: (options,), logits.
        names: Names of the options.

    Raises:
        InputError: There are fewer than two options, one is not a module, or two of them share parameters.

    Example:
        >>> import torch
        >>> choice = Choice({"double": torch.nn.Identity(), "relu": torch.nn.ReLU()})
        >>> choice(torch.tensor([-2.0, 2.0])).tolist()
        [-1.0, 2.0]
    """

    names: tuple[str, ...]
    alphas: nn.Parameter

    def __init__(self, options: Mapping[str, nn.Module] | nn.Module, name: str | None = None):
        super().__init__()
        if name is not None and not _is_name(name):
            raise InputError(f"A Choice cannot be named {quoted(name)}.", "Give a text, or leave the name out.")
        self.name = name
        if isinstance(options, nn.Module) and hasattr(options, "mixed"):
            found: Any = options
        elif isinstance(options, Mapping | nn.ModuleDict):
            found = SeparateOptions(dict(options.items()), self.title)
        else:
            raise InputError(
                f"{self.title} was given {quoted(options)} as its options.", 'Give a dict: {"conv": ..., "skip": ...}.'
            )
        self.candidates, self.names = found, tuple(found.names)
        self.alphas = nn.Parameter(torch.zeros(len(self.names), device="cpu"))
        self.mixture: Mixture | None = None

    @property
    def title(self) -> str:
        """The Choice as messages name it."""
        return "A Choice" if self.name is None else f"The Choice '{self.name}'"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the weighted sum of the options' outputs."""
        if _OBSERVERS:
            return _OBSERVERS[-1](self, args, kwargs)
        mixture = self.mixture
        if mixture is None:
            mixture = Mixture(torch.softmax(self.alphas, -1))
        return self.candidates.mixed(mixture, args, kwargs)

    def plain(self, number: int) -> nn.Module:
        """Returns an option as a module by itself; it may hold further Choices."""
        found: nn.Module = self.candidates.plain(number)
        return found

    def extra_repr(self) -> str:
        """Returns name and options, for the module's text."""
        return ", ".join([*([] if self.name is None else [f"name={self.name!r}"]), f"options={list(self.names)}"])


def _is_name(name: Any) -> bool:
    """Returns whether something is a text that is not blank and that a file can hold (no lone surrogates)."""
    return isinstance(name, str) and bool(name.strip()) and not any("\ud800" <= letter <= "\udfff" for letter in name)


class SeparateOptions(nn.Module):
    """Options that have nothing in common; each is computed by itself.

    Args:
        options: Name -> module.
        title: The Choice as messages name it.
    """

    def __init__(self, options: dict[str, Any], title: str):
        super().__init__()
        owners: dict[int, str] = {}
        within = title[0].lower() + title[1:]
        for name, option in options.items():
            if not _is_name(name):
                raise InputError(f"{title} has an option named {quoted(name)}.", "Name every option by a text.")
            if not isinstance(option, nn.Module):
                raise InputError(
                    f"Option '{name}' of {within} is {quoted(option)}, not a torch module.",
                    "Give an nn.Module: nn.Identity() to leave a place out, nas_moreau.modules.zero() for zeros.",
                )
            for parameter in option.parameters():
                other = owners.setdefault(id(parameter), name)
                if other != name:
                    raise InputError(
                        f"The options '{other}' and '{name}' of {within} share "
                        "parameters, so that each would be trained for the other.",
                        "Give every option parameters that no other has (copy.deepcopy), or use Width or Depth.",
                    )
        if len(options) < 2:
            raise InputError(f"{title} has {len(options)} option(s).", "Give at least two.")
        self.names = tuple(options)
        self.members = nn.ModuleList(options.values())

    def outputs(self, active: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Returns the output of each option in `active`."""
        return [self.members[number](*args, **kwargs) for number in active]

    def mixed(self, mixture: Mixture, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Returns the weighted sum of the outputs."""
        active = range(len(self.names)) if mixture.active is None else mixture.active
        weights = mixture.weights.unbind()
        return weighted_sum([weights[number] for number in active], self.outputs(active, args, kwargs))

    def plain(self, number: int) -> nn.Module:
        """Returns an option."""
        return self.members[number]


def weighted_sum(weights: Sequence[Tensor], outputs: Sequence[Any]) -> Any:
    """Returns the sum of outputs of one structure (tensors in tuples, lists and dicts), each times its weight.

    What is not a floating-point tensor is taken from the first: the check before a search refuses it where it differs.

    Args:
        weights: 0-dim.
        outputs: Of the options.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        if not (first.is_floating_point() or first.is_complex()):
            return first
        total: Tensor = WeightedSum.apply(torch.stack([*weights]), *outputs)
        return total
    if isinstance(first, dict):
        found = {key: weighted_sum(weights, [output[key] for output in outputs]) for key in first}
        if isinstance(first, defaultdict):
            return defaultdict(first.default_factory, found)
        return type(first)(found)
    if isinstance(first, tuple | list):
        parts = [weighted_sum(weights, part) for part in zip(*outputs)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first


class WeightedSum(torch.autograd.Function):
    """sum_k w_k o_k of tensors of one shape, with one pass over each tensor forwards and two backwards."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *outputs: Tensor) -> Tensor:
        """Returns the sum; `weights` is (k,)."""
        ctx.save_for_backward(weights, *outputs)
        factors = weights.to(outputs[0].dtype).unbind()
        total = outputs[0] * factors[0]
        for factor, output in zip(factors[1:], outputs[1:]):
            total.addcmul_(output, factor)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns (<grad, o_k>) for all k, and w_k grad for each."""
        weights, *outputs = ctx.saved_tensors
        of_weights = None
        if ctx.needs_input_grad[0]:
            of_weights = torch.stack([_inner_product(grad, output) for output in outputs]).to(weights.dtype)
        factors = weights.to(grad.dtype).unbind()
        of_outputs = [grad * factor if ctx.needs_input_grad[1 + k] else None for k, factor in enumerate(factors)]
        return of_weights, *of_outputs


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in (torch.float32, torch.float64) and a.is_contiguous() and b.is_contiguous() and a.dtype == b.dtype:
        return torch.dot(a.flatten(), b.flatten())
    product = a * b.conj() if b.is_complex() else a * b
    return product.sum(dtype=torch.float32) if a.dtype in (torch.float16, torch.bfloat16) else product.sum().real


Observer = Callable[[Choice, tuple[Any, ...], dict[str, Any]], Any]
_OBSERVERS: list[Observer] = []


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Within this context Choices return what `observer` returns for (choice, args, kwargs)."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.pop()


class Places(NamedTuple):
    """The Choices of a module.

    Attributes:
        by_name: Decision -> its Choices.
        paths: Place in the module -> decision.
        choices: Place in the module -> Choice.
    """

    by_name: dict[str, list[Choice]]
    paths: dict[str, str]
    choices: dict[str, Choice]

    @property
    def options(self) -> dict[str, tuple[str, ...]]:
        """Decision -> names of its options."""
        return {name: choices[0].names for name, choices in self.by_name.items()}

    def names(self) -> dict[str, list[str]]:
        """Returns place in the module -> names of the options there."""
        return {place: list(self.by_name[name][0].names) for place, name in self.paths.items()}

    def within(self, path: str, number: int) -> list[str]:
        """Returns the places of the Choices that an option of the Choice at `path` holds."""
        inner = {id(part) for part in self.choices[path].plain(number).modules() if isinstance(part, Choice)}
        return [other for other, choice in self.choices.items() if id(choice) in inner]


def find_choices(module: nn.Module) -> Places:
    """Returns the Choices of a module, in the order of its submodules, outer ones before those within them.

    Raises:
        InputError: There is none, or Choices of one name have different options.
    """
    by_name: dict[str, list[Choice]] = {}
    paths: dict[str, str] = {}
    found: dict[str, Choice] = {}
    for path, choice in module.named_modules():
        if not isinstance(choice, Choice):
            continue
        name = choice.name if choice.name is not None else shown_path(path, found)
        first = by_name.setdefault(name, [choice])[0]
        if first is not choice:
            if first.name is None or choice.name is None:
                raise InputError(
                    f"The name '{name}' of a Choice is also the place of another Choice, which has no name.",
                    "Name the other one too: Choices of one name are one decision.",
                )
            if first.names != choice.names:
                raise InputError(
                    f"Two Choices are named '{name}' and have different options: {', '.join(first.names)}; "
                    f"{', '.join(choice.names)}.",
                    "Choices of one name are one decision: give them the same options, or different names.",
                )
            by_name[name].append(choice)
        paths[path], found[path] = name, choice
    if not by_name:
        raise InputError(
            f"The module {type(module).__name__} has no Choice, so there is nothing to search.",
            "Put a Choice({...}) where one of several modules is to be found.",
        )
    return Places(by_name, paths, found)


def shown_path(path: str, outer: Collection[str]) -> str:
    """Returns the path of a submodule as users know it: without the parts by which a Choice holds its options.

    Args:
        path: In the module.
        outer: Paths of the Choices that it may be within.
    """
    parts = path.split(".")
    shown, place = [], 0
    while place < len(parts):
        if parts[place] == "candidates" and ".".join(parts[:place]) in outer:
            place += 2 if parts[place + 1 : place + 2] == ["members"] else 1
        else:
            shown.append(parts[place])
            place += 1
    return ".".join(shown) or "choice"


@contextmanager
def mixed_by(places: Places, mixtures: Mapping[str, Mixture]) -> Iterator[None]:
    """Within this context every Choice computes the mixture of its decision."""
    pairs = [(choice, mixtures[name]) for name, choices in places.by_name.items() for choice in choices]
    for choice, mixture in pairs:
        choice.mixture = mixture
    try:
        yield
    finally:
        for choice, _ in pairs:
            choice.mixture = None


def chosen_module(module: nn.Module, picks: Mapping[str, int], places: Places) -> nn.Module:
    """Returns the module with every Choice replaced by its picked option; changes `module` (give it a copy).

    Args:
        module: Holds Choices.
        picks: Decision -> number of the option.
        places: `find_choices` of the module.
    """
    names = {id(choice): name for name, choices in places.by_name.items() for choice in choices}
    done: dict[int, nn.Module] = {}

    def resolve(part: nn.Module) -> nn.Module:
        if id(part) in done:
            return done[id(part)]
        if isinstance(part, Choice):
            done[id(part)] = found = resolve(part.plain(picks[names[id(part)]]))
            return found
        done[id(part)] = part
        for key, child in part._modules.items():
            if child is not None:
                part._modules[key] = resolve(child)
        return part

    # the Choices stay alive until the end, so that no other module takes one of their ids
    found, seen = resolve(module), set[int]()
    for part in found.modules():
        for key, value in list(vars(part).items()):
            if key not in _REGISTERED and (other := _without_choices(value, done, seen)) is not value:
                vars(part)[key] = other
    # what still reaches a Choice, a bound method for one, gets the option too
    for name, choices in places.by_name.items():
        for choice in choices:
            weights = torch.zeros_like(choice.alphas, requires_grad=False)
            weights[picks[name]] = 1.0
            choice.mixture = Mixture(weights, (picks[name],))
    return found


_REGISTERED = ("_modules", "_parameters", "_buffers")


def _without_choices(value: Any, done: Mapping[int, nn.Module], seen: set[int]) -> Any:
    """Returns an attribute with the Choices in its lists, tuples and dicts replaced; the same object without any.

    Args:
        value: The attribute.
        done: Number (`id`) of a Choice -> its option.
        seen: Numbers of the containers that were seen; extended.
    """
    if isinstance(value, Choice):
        return done.get(id(value), value)
    if not isinstance(value, dict | list | tuple) or id(value) in seen:
        return value
    if isinstance(value, tuple):
        parts = [_without_choices(part, done, seen) for part in value]
        if all(a is b for a, b in zip(parts, value)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    seen.add(id(value))
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if (other := _without_choices(part, done, seen)) is not part:
            value[key] = other
    return value
