"""What every option costs where it stands: parameters, multiply-adds, and latency that is measured on the device."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_moreau.architecture.networks.latency import ROUNDS, Timed
from nas_moreau.errors import InputError
from nas_moreau.modules.check import Call, record_calls
from nas_moreau.modules.choice import Places, chosen_module, find_choices
from nas_moreau.modules.samples import seeded
from nas_moreau.modules.setup import ModuleSetup, evaluating
from nas_moreau.runs.atomic import write_atomic

KINDS = ("parameters", "macs", "ms")
WHOLES = 12
"""Modules that are timed as a whole, for the part that no option changes and for how options act together."""
SLOPES = (0.5, 1.5)
"""Bounds of the factor by which an option within a module takes longer than alone."""


@dataclass(frozen=True)
class OptionCost:
    """The cost of an option at all places of its decision, without what Choices within it cost.

    Attributes:
        parameters: Number of scalars.
        macs: Multiply-adds of convolutions, linear layers and matrix products for one sample.
        ms: Median of the measured milliseconds for one sample.
        spread: Half of the interquartile range of the timings, ms.
    """

    parameters: int
    macs: int
    ms: float
    spread: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """The costs of all options, and of the part of the module that is the same for all choices.

    Attributes:
        base: Of the rest.
        options: Place of a Choice -> cost of each option there, in the order of its options.
        device: On which the latency was measured, in words.
    """

    base: OptionCost
    options: dict[str, list[OptionCost]]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        options = {place: [vars(cost) for cost in found] for place, found in self.options.items()}
        return {"version": 1, "device": self.device, "base": vars(self.base), "options": options}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostTable:
        """Returns the table that `to_dict` wrote.

        Raises:
            InputError: The data are damaged.
        """
        try:
            options = {place: [OptionCost(**cost) for cost in found] for place, found in data["options"].items()}
            return cls(OptionCost(**data["base"]), options, str(data["device"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"The table of costs is damaged ({error}).", "Measure again.") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON."""
        write_atomic(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CostTable:
        """Returns a saved table.

        Raises:
            InputError: It cannot be read.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The table of costs {path} cannot be read: {error}.", "Measure again.") from None

    def check(self, places: Places) -> None:
        """Raises InputError unless the table is of a module with these Choices."""
        counts = {place: len(places.options[name]) for place, name in places.paths.items()}
        if {place: len(found) for place, found in self.options.items()} != counts:
            raise InputError("The table of costs is of a module with other Choices.", "Measure again.")

    def largest(self, kind: str) -> float:
        """Returns the sum over all places of the most expensive option."""
        return sum(max(getattr(cost, kind) for cost in found) for found in self.options.values())

    def smallest(self, kind: str) -> float:
        """Returns the sum over all places of the cheapest option."""
        return sum(min(getattr(cost, kind) for cost in found) for found in self.options.values())


class Costs:
    """The cost of choices.

    Args:
        table: Of every option.
        places: The Choices.
    """

    def __init__(self, table: CostTable, places: Places):
        table.check(places)
        self.table, self.places = table, places
        self.parents = _parents(places)
        self._sent: dict[Any, torch.Tensor] = {}

    def of(self, picks: Mapping[str, int]) -> dict[str, float]:
        """Returns "parameters", "macs" and "ms" of the module with the picked options."""
        found = {kind: getattr(self.table.base, kind) for kind in KINDS}
        for path, name in self.places.paths.items():
            if all(picks[self.places.paths[parent]] in holding for parent, holding in self.parents[path]):
                for kind in KINDS:
                    found[kind] += getattr(self.table.options[path][picks[name]], kind)
        return found

    def expected(self, weights: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor:
        """Returns the mean cost of the options under independent draws, relative to the most expensive ones: 0 to 1.

        The part that no option changes is left out. A Choice within an option counts with that option's weight.

        Args:
            weights: Decision -> weights of its options.
            kind: One of `KINDS`.
        """
        terms = []
        for path, name in self.places.paths.items():
            row = weights[name]
            term = (row * self._on(row, path, kind)).sum()
            for parent, holding in self.parents[path]:
                term = term * weights[self.places.paths[parent]][sorted(holding)].sum()
            terms.append(term)
        return torch.stack(terms).sum() / max(self.table.largest(kind), 1e-30)

    def _on(self, like: torch.Tensor, path: str, kind: str) -> torch.Tensor:
        """Returns the costs of a place's options where a tensor lies; sent there once."""
        key = path, kind, like.dtype, like.device
        if key not in self._sent:
            row = [getattr(cost, kind) for cost in self.table.options[path]]
            self._sent[key] = torch.tensor(row, dtype=like.dtype, device="cpu").to(like.device)
        return self._sent[key]


def _parents(places: Places) -> dict[str, list[tuple[str, frozenset[int]]]]:
    """Returns for every Choice those that it is within, each with the options that hold it."""
    found: dict[str, list[tuple[str, frozenset[int]]]] = {path: [] for path in places.paths}
    for parent, name in places.paths.items():
        holding: dict[str, set[int]] = {}
        for number in range(len(places.options[name])):
            for inner in places.within(parent, number):
                holding.setdefault(inner, set()).add(number)
        for inner, numbers in holding.items():
            found[inner].append((parent, frozenset(numbers)))
    return found


def measure_costs(setup: ModuleSetup, rounds: int = ROUNDS) -> CostTable:
    """Returns the costs of all options on the device of the search, for one sample, in evaluation mode.

    The inputs of every Choice are those of a sample of the held-out data. Options are timed in turns, `rounds` times
    each after a warm-up, and the median counts. Whole modules are timed with them, and a straight line is fitted: their
    time is that of the part which no option changes plus a factor times the sum of their options, which are multiplied
    by it in the table (alone, an option finds other caches than within the module).

    Args:
        setup: The search.
        rounds: Timings of each option.

    Raises:
        InputError: The module fails on a single sample.
    """
    return measure_beside(setup, [], rounds)[0]


def measure_beside(
    setup: ModuleSetup, networks: Sequence[nn.Module], rounds: int = ROUNDS
) -> tuple[CostTable, list[float]]:
    """Returns the costs of all options, and the latencies of networks that are timed in turns with them, ms.

    Args:
        setup: The search.
        networks: Take what the module of the search takes.
        rounds: Timings of each option and network.

    Raises:
        InputError: As `measure_costs`.
    """
    stream, module = setup.data.held_out, setup.whole.module
    sample = stream.fetched(stream.numbers[:1], 0)
    with evaluating(setup.whole), torch.no_grad(), seeded(0), _counted_products():
        calls, whole_call = record_calls(module, setup.whole.loss, sample)
        if whole_call is None:
            raise InputError(
                "The loss calls only methods of the module, so that its latency cannot be measured.",
                "Let the loss call the module itself.",
            )
        timed = Timed(setup.device)
        raw = _measured_options(setup.places, calls, timed)
        wholes = _whole_modules(module, setup.places)
        for network in (*(whole for _, whole in wholes), *networks):
            timed.add(network, whole_call.args, whole_call.kwargs)
        times = timed.run(rounds)
        own, others = times[: len(times) - len(networks)], times[len(times) - len(networks) :]
        table = _table(setup.places, raw, own, wholes, whole_call, str(_device_name(setup.device)))
        return table, [ms for ms, _ in others]


@dataclass
class _Raw:
    """An option as it is timed: its place in the list of timings, its counts, how often it is called, and the options
    numbered 0 of the Choices within it, which are part of all that."""

    number: int
    parameters: int
    macs: int
    count: int
    nested: list[str]


def _measured_options(places: Places, calls: Mapping[str, Call], timed: Timed) -> dict[str, list[_Raw]]:
    found: dict[str, list[_Raw]] = {}
    for path, name in places.paths.items():
        found[path] = []
        for number in range(len(places.options[name])):
            option = copy.deepcopy(places.choices[path].plain(number))
            nested = places.within(path, number)
            if nested:
                own = find_choices(option)
                option = chosen_module(option, dict.fromkeys(own.by_name, 0), own)
            call = calls.get(path)
            parameters = sum(p.numel() for p in option.parameters())
            if call is None:  # a place that this sample does not reach costs no time
                found[path].append(_Raw(-1, parameters, 0, 0, nested))
                continue
            macs = count_macs(option, call)
            found[path].append(
                _Raw(timed.add(option.eval(), call.args, call.kwargs), parameters, macs, call.count, nested)
            )
    return found


def _whole_modules(module: nn.Module, places: Places) -> list[tuple[dict[str, int], nn.Module]]:
    """Returns modules of different choices, with their picks: the first options of all, and random ones."""
    wholes, draws = [], random.Random(0)
    for number in range(WHOLES):
        twin = copy.deepcopy(module)
        picks = {name: draws.randrange(len(options)) if number else 0 for name, options in places.options.items()}
        wholes.append((picks, chosen_module(twin, picks, find_choices(twin)).eval()))
    return wholes


def _table(
    places: Places,
    raw: Mapping[str, list[_Raw]],
    times: list[tuple[float, float]],
    wholes: list[tuple[dict[str, int], nn.Module]],
    whole_call: Call,
    device: str,
) -> CostTable:
    options: dict[str, list[OptionCost]] = {}
    parents = _parents(places)
    # inner Choices come after those that hold them: the other way round, their costs are known when they are taken off
    for path in reversed(places.paths):
        options[path] = []
        for entry in raw[path]:
            ms, spread = times[entry.number] if entry.number >= 0 else (0.0, 0.0)
            within = [options[other][0] for other in entry.nested if _with_first_options(other, entry.nested, parents)]
            options[path].append(
                OptionCost(
                    entry.parameters - sum(cost.parameters for cost in within),
                    entry.count * entry.macs - sum(cost.macs for cost in within),
                    max(0.0, entry.count * ms - sum(cost.ms for cost in within)),
                    entry.count * spread,
                )
            )
    options = {path: options[path] for path in places.paths}
    costs = Costs(CostTable(OptionCost(0, 0, 0.0), options, device), places)
    sums = [costs.of(picks)["ms"] for picks, _ in wholes]
    rest, slope = _line(sums, [ms for ms, _ in times[len(times) - len(wholes) :]])
    options = {
        path: [replace(cost, ms=slope * cost.ms, spread=slope * cost.spread) for cost in found]
        for path, found in options.items()
    }
    picks, network = wholes[0]
    known = costs.of(picks)
    base = OptionCost(
        sum(p.numel() for p in network.parameters()) - int(known["parameters"]),
        count_macs(network, whole_call) - int(known["macs"]),
        rest,
    )
    return CostTable(base, options, device)


def _line(sums: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Returns intercept and slope of the least-squares line through relative errors, the intercept not negative.

    Args:
        sums: Sum of the options of each module.
        measured: Its time.
    """
    weights = [1 / ms**2 for ms in measured]
    total = sum(weights)
    x, y = (sum(w * v for w, v in zip(weights, values)) / total for values in (sums, measured))
    spread = sum(w * (s - x) ** 2 for w, s in zip(weights, sums))
    slope = sum(w * (s - x) * (ms - y) for w, s, ms in zip(weights, sums, measured)) / spread if spread else 1.0
    slope = min(max(slope, SLOPES[0]), SLOPES[1])
    return max(0.0, y - slope * x), slope


def _with_first_options(path: str, nested: list[str], parents: Mapping[str, list[tuple[str, frozenset[int]]]]) -> bool:
    """Returns whether a Choice is reached where all Choices in `nested` take their first option."""
    return all(0 in holding for parent, holding in parents[path] if parent in nested)


def count_macs(module: nn.Module, call: Call) -> int:
    """Returns the multiply-adds of convolutions, linear layers and matrix products in one call of a module.

    Args:
        module: The module.
        call: Its arguments.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*call.args, **call.kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _counted_products() -> Iterator[None]:
    """Within this context attention is computed by products that are counted, not by one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return f"{device.type}, {torch.get_device_module(device).get_device_name(device)}"
