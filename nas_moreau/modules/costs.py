"""What every option costs where it stands: parameters, multiply-adds, and latency that is measured on the device."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas_moreau.architecture.networks.latency import ROUNDS, Timed
from nas_moreau.data.splitting import seeded
from nas_moreau.errors import InputError
from nas_moreau.modules.check import Call, record_calls
from nas_moreau.modules.choice import Choice, Places, chosen_module, find_choices
from nas_moreau.modules.copying import copy_of
from nas_moreau.modules.cost_table import Costs, CostTable, OptionCost, parents_of
from nas_moreau.modules.setup import ModuleSetup, evaluating

WHOLES = 12
"""Modules that are timed as a whole, for the part that no option changes and for how options act together."""
Size = Sequence[int]
"""Shape of a tensor."""
SLOPES = (0.5, 1.5)
"""Bounds of the factor by which an option within a module takes longer than alone."""


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
    sample = stream.first()
    with evaluating(setup.whole), torch.no_grad(), seeded(0):
        calls, whole_call = record_calls(module, setup.whole.loss, sample)
        if whole_call is None:
            raise InputError(
                "The loss calls only methods of the module, so that its latency cannot be measured.",
                "Let the loss call the module itself.",
            )
        timed = Timed(setup.device)
        raw = _measured_options(module, setup.places, calls, timed)
        wholes = _whole_modules(module, setup.places)
        for network in (*(whole for _, whole in wholes), *networks):
            timed.add(network, whole_call.args, whole_call.kwargs)
        times = timed.run(rounds)
        own, others = times[: len(times) - len(networks)], times[len(times) - len(networks) :]
        table = _table(setup.places, raw, own, wholes, whole_call, count_parameters(module, setup.places)[0])
        table = replace(table, device=str(_device_name(setup.device)), names=setup.places.names())
        return table, [ms for ms, _ in others]


@dataclass
class _Raw:
    """An option as it is timed: its place in the list of timings, its counts, how often it is called, and the options
    numbered 0 of the Choices within it, which are part of time and multiply-adds."""

    number: int
    parameters: int
    macs: int
    count: int
    nested: list[str]


def _outside_choices(module: nn.Module) -> dict[int, int]:
    """Returns the parameters of a module without those that only Choices hold: `id` -> number of scalars."""
    if isinstance(module, Choice):
        return {}
    found = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
    for child in module.children():
        found |= _outside_choices(child)
    return found


def count_parameters(module: nn.Module, places: Places) -> tuple[int, dict[str, list[int]]]:
    """Returns the number of scalars that no Choice holds, and those that each option adds to them, by place.

    Parameters that several places of a decision share are those of the first.

    Args:
        module: Holds Choices.
        places: Its Choices.
    """
    outside, found = _outside_choices(module), dict[str, list[int]]()
    counted = {name: set(outside) for name in places.by_name}
    alive = []  # so that no other parameter takes the `id` of one that was counted
    for path, name in places.paths.items():
        plain = [places.choices[path].plain(number) for number in range(len(places.options[name]))]
        alive += plain
        held = [_outside_choices(option) for option in plain]
        found[path] = [sum(size for key, size in own.items() if key not in counted[name]) for own in held]
        counted[name].update(*held)
    return sum(outside.values()), found


def _measured_options(
    module: nn.Module, places: Places, calls: Mapping[str, Call], timed: Timed
) -> dict[str, list[_Raw]]:
    found: dict[str, list[_Raw]] = {}
    for path, counts in count_parameters(module, places)[1].items():
        found[path] = []
        for number, parameters in enumerate(counts):
            option = copy_of(places.choices[path].plain(number))
            nested = places.within(path, number)
            if nested:
                inner = find_choices(option)
                option = chosen_module(option, dict.fromkeys(inner.by_name, 0), inner)
            call = calls.get(path)
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
        twin = copy_of(module)
        picks = {name: draws.randrange(len(options)) if number else 0 for name, options in places.options.items()}
        wholes.append((picks, chosen_module(twin, picks, find_choices(twin)).eval()))
    return wholes


def _table(
    places: Places,
    raw: Mapping[str, list[_Raw]],
    times: list[tuple[float, float]],
    wholes: list[tuple[dict[str, int], nn.Module]],
    whole_call: Call,
    outside: int,
) -> CostTable:
    """Returns the table, without device and names; `outside` are the parameters that no Choice holds."""
    options: dict[str, list[OptionCost]] = {}
    parents = parents_of(places)
    # inner Choices come after those that hold them: the other way round, their costs are known when they are taken off
    for path in reversed(places.paths):
        options[path] = []
        for entry in raw[path]:
            ms, spread = times[entry.number] if entry.number >= 0 else (0.0, 0.0)
            within = [options[other][0] for other in entry.nested if _with_first_options(other, entry.nested, parents)]
            options[path].append(
                OptionCost(
                    entry.parameters,
                    entry.count * entry.macs - sum(cost.macs for cost in within),
                    max(0.0, entry.count * ms - sum(cost.ms for cost in within)),
                    entry.count * spread,
                )
            )
    options = {path: options[path] for path in places.paths}
    costs = Costs(CostTable(OptionCost(0, 0, 0.0), options, ""), places)
    sums = [costs.of(picks)["ms"] for picks, _ in wholes]
    rest, slope = _line(sums, [ms for ms, _ in times[len(times) - len(wholes) :]])
    options = {
        path: [replace(cost, ms=slope * cost.ms, spread=slope * cost.spread) for cost in found]
        for path, found in options.items()
    }
    picks, network = wholes[0]
    known = costs.of(picks)
    base = OptionCost(
        outside,
        count_macs(network, whole_call) - int(known["macs"]),
        rest,
    )
    return CostTable(base, options, "")


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


def _of_attention(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _of_recurrent_layer(x: Size, first: Size, second: Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * (math.prod(first) + math.prod(second))


def _of_recurrent_layers(x: Size, weights: Sequence[Size], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _of_attention,
    "mkldnn_rnn_layer": _of_recurrent_layer,
    "_cudnn_rnn": _of_recurrent_layers,
    "miopen_rnn": _of_recurrent_layers,
    "_trilinear": lambda first, weight, second, *_, **__: 2 * first[0] * math.prod(weight),
    "mv": lambda matrix, vector, *_, **__: 2 * math.prod(matrix),
    "addmv": lambda bias, matrix, vector, *_, **__: 2 * math.prod(matrix),
    "dot": lambda first, second, *_, **__: 2 * math.prod(first),
}
"""Operation -> floating-point operations by the shapes of its arguments, of those that torch's counter leaves out."""


def count_macs(module: nn.Module, call: Call) -> int:
    """Returns the multiply-adds of convolutions, linear and recurrent layers and matrix products in a call of a module.

    Args:
        module: The module.
        call: Its arguments.
    """
    own: dict[Any, Any] = {getattr(torch.ops.aten, n): f for n, f in FORMULAS.items() if hasattr(torch.ops.aten, n)}
    with _counted_products(), FlopCounterMode(display=False, custom_mapping=own) as counter, torch.no_grad():
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
