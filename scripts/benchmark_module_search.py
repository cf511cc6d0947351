"""Measures of the search inside a module, on this machine.

python scripts/benchmark_module_search.py latency     predicted against measured latency of random choices
python scripts/benchmark_module_search.py overhead    a step of search_module against the same step by hand
python scripts/benchmark_module_search.py choice      a Choice of k options against the sum of its options
python scripts/benchmark_module_search.py examples    found against random choices of docs/examples, over seeds
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import random
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from nas_moreau import Choice
from nas_moreau.modules import Found
from nas_moreau.modules.cost_table import Costs
from nas_moreau.modules.costs import measure_beside
from nas_moreau.modules.search import module_config
from nas_moreau.modules.setup import build_module_search
from nas_moreau.modules.stream import module_data
from nas_moreau.modules.subject import ChoiceSearch, random_picks
from nas_moreau.search.engine import SearchJob

ROUNDS = 61
"""Timings of each option and network."""
LARGEST, LARGE, LATENCY = "largest", 500, 1.02
"""Choices that are compared: those of the most parameters among so many, at this multiple of the found latency."""
PERMUTATIONS = 100_000
EXAMPLES = ("signals", "unet", "bytes_transformer", "timm_model")


def example(name: str) -> ModuleType:
    """Returns the module of a worked example."""
    path = Path(__file__).parents[1] / "docs" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def latency(name: str, count: int) -> dict[str, Any]:
    """Returns how well the table predicts the latency of `count` random choices of an example, timed in turns."""
    found: Found = example(name).main(steps=1, count=100)
    known = found.setup.places.options
    picks = [random_picks(known, 1, number) for number in range(count)]
    networks = [found.network(choices={key: known[key][k] for key, k in picked.items()}) for picked in picks]
    table, measured = measure_beside(found.setup, networks, ROUNDS)
    costs = Costs(table, found.setup.places)
    errors = [(costs.of(picked)["ms"] - ms) / ms for picked, ms in zip(picks, measured)]
    sizes = sorted(abs(error) for error in errors)
    return {
        "example": name,
        "n": count,
        "device": table.device,
        "measured_ms": [min(measured), max(measured)],
        "mean_error": statistics.fmean(errors),
        "mean_absolute_error": statistics.fmean(sizes),
        "median_absolute_error": statistics.median(sizes),
        "largest_error": sizes[-1],
        "within_10_percent": sum(size <= 0.1 for size in sizes) / count,
    }


def overhead(steps: int, rounds: int) -> dict[str, Any]:
    """Returns the time of a step of search_module and of the same step written by hand, in turns."""
    signals = example("signals")
    config = module_config(steps, "moreau", 0, "cpu", {})
    torch.manual_seed(0)
    data = module_data(signals.train(600), signals.validation(600), None, config, torch.device("cpu"))
    ours, theirs = [], []
    for _ in range(rounds):
        setup = build_module_search(signals.make_model(), signals.loss, data, config, steps, None)
        job = SearchJob(setup, ChoiceSearch(setup, {}, None), None, {})
        by_hand = ByHand(copy.deepcopy(setup.whole.module), setup)
        for step in range(steps):
            begin = time.thread_time()
            job.train_step()
            middle = time.thread_time()
            by_hand.step(step)
            theirs.append(time.thread_time() - middle)
            ours.append(middle - begin)
    ours_ms, theirs_ms = (1e3 * statistics.median(times) for times in (ours, theirs))
    return {"steps": steps * rounds, "ours_ms": ours_ms, "by_hand_ms": theirs_ms, "ratio": ours_ms / theirs_ms}


class ByHand:
    """The lagged Moreau-envelope step as one would write it in a script: three modules, torch's optimizers."""

    def __init__(self, module: nn.Module, setup: Any):
        self.setup, self.y, self.theta = setup, module.train(), copy.deepcopy(module).train()
        self.alphas = [choice.alphas for choice in self.y.modules() if isinstance(choice, Choice)]
        theirs = [choice.alphas for choice in self.theta.modules() if isinstance(choice, Choice)]
        alphas = {id(p) for p in (*self.alphas, *theirs)}
        self.of_theta = theirs
        self.weights = [p for p in self.y.parameters() if id(p) not in alphas]
        self.weights_theta = [p for p in self.theta.parameters() if id(p) not in alphas]
        self.adam = torch.optim.Adam(self.alphas, lr=0.02, betas=(0.5, 0.999), weight_decay=1e-3)
        self.sgd = torch.optim.SGD(self.weights, lr=0.0125, momentum=0.9, weight_decay=3e-4)
        self.sgd_theta = torch.optim.SGD(self.weights_theta, lr=0.0125, momentum=0.9, weight_decay=3e-4)

    def step(self, step: int) -> None:
        """Takes a step: F and f at y, f at theta; then alphas, weights and theta."""
        upper, lower = self.setup.batches(step)
        loss, c, gamma = self.setup.whole.loss, 1.0, 100.0
        both = [*self.alphas, *self.weights]
        first = torch.autograd.grad(loss(self.y, upper.data), both, allow_unused=True)
        second = torch.autograd.grad(loss(self.y, lower.data), both, allow_unused=True)
        of_theta = [*self.of_theta, *self.weights_theta]
        third = torch.autograd.grad(loss(self.theta, lower.data), of_theta, allow_unused=True)
        n = len(self.alphas)
        with torch.no_grad():
            for i, p in enumerate(self.alphas):
                p.grad = first[i] / c + second[i] - third[i]
            for i, (p, q) in enumerate(zip(self.weights, self.weights_theta)):
                apart = (p - q) / gamma
                p.grad = first[n + i] / c + second[n + i] - apart
                q.grad = third[n + i] - apart
        nn.utils.clip_grad_norm_(self.weights, 5.0)
        nn.utils.clip_grad_norm_(self.weights_theta, 5.0)
        self.adam.step()
        self.sgd.step()
        self.sgd_theta.step()
        with torch.no_grad():
            for a, b in zip(self.of_theta, self.alphas):
                a.copy_(b)


def choice_of(count: int, rounds: int) -> dict[str, Any]:
    """Returns the time of forward and backward of a Choice and of its options one after the other."""
    torch.manual_seed(0)
    options = {f"conv{k}": nn.Conv2d(16, 16, 3, padding=1) for k in range(count)}
    choice, x = Choice(options), torch.randn(32, 16, 16, 16, requires_grad=True)
    target = torch.randn(32, 16, 16, 16)

    def together() -> None:
        choice(x).backward(target)

    def apart() -> None:
        for option in options.values():
            option(x).backward(target)

    times: dict[str, list[float]] = {"together": [], "apart": []}
    for _ in range(rounds):
        for name, call in (("together", together), ("apart", apart)):
            begin = time.thread_time()  # one thread: what other programs take does not count
            call()
            times[name].append(time.thread_time() - begin)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {"options": count, **medians, "ratio": medians["together"] / medians["apart"]}


def compare_example(name: str, seeds: list[int], steps: int | None, count: int) -> dict[str, Any]:
    """Returns the scores of the found choices of several searches beside those of random and of large ones, with p."""
    module, scores, rows = example(name), dict[str, list[float]](), []
    for seed in seeds:
        begin = time.monotonic()
        found: Found = module.main(seed=seed, **({} if steps is None else {"steps": steps}))
        seconds = time.monotonic() - begin
        comparison = found.compare_random(count, seeds=1, others={LARGEST: largest(found)})
        for kind in ("found", "random", LARGEST):
            scores[kind] = scores.get(kind, []) + comparison.scores(kind)
        record = found.result.last_stage or {}
        row = {"seed": seed, "seconds": seconds, "choices": found.choices, "moved": record.get("moved")}
        rows.append({**row, **{kind: comparison.scores(kind) for kind in scores}})
        print(rows[-1], file=sys.stderr, flush=True)
    summary = {
        kind: {
            "n": len(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "p": None if kind == "found" else p_within_seeds([(*row["found"], row[kind]) for row in rows]),
        }
        for kind, values in scores.items()
    }
    return {"example": name, "steps": comparison.steps, **summary, "rows": rows}


def p_within_seeds(blocks: list[tuple[float, list[float]]]) -> float:
    """Returns the two-sided p-value of the found scores against the others, by permutations within each seed.

    Data, split and initial weights are those of the seed: under the hypothesis of no difference each of a seed's scores
    could be the found one.

    Args:
        blocks: For each seed the found score and the others.
    """
    draw = random.Random(0)
    centred = [[score - statistics.fmean([found, *others]) for score in (found, *others)] for found, others in blocks]
    seen = abs(sum(scores[0] for scores in centred))
    larger = sum(abs(sum(map(draw.choice, centred))) >= seen - 1e-12 for _ in range(PERMUTATIONS))
    return (larger + 1) / (PERMUTATIONS + 1)


def largest(found: Found) -> dict[str, str]:
    """Returns the choices of the most parameters, of `LARGE` random ones, within the latency of the found ones."""
    known, table = found.setup.places.options, Costs(found.cost_table, found.setup.places)
    limit = LATENCY * table.of(found.picks())["ms"]
    draws = [found.picks(), *(random_picks(known, 2, number) for number in range(LARGE))]
    fitting = [picks for picks in draws if table.of(picks)["ms"] <= limit]
    most = max(fitting, key=lambda picks: table.of(picks)["parameters"])
    return {name: options[most[name]] for name, options in known.items()}


def main() -> None:
    """Prints one JSON object for each measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "overhead", "choice", "examples"])
    parser.add_argument("--examples", default=",".join(EXAMPLES), help="names in docs/examples")
    parser.add_argument("-n", type=int, default=24, help="networks, rounds or random choices")
    parser.add_argument("--steps", type=int, help="of a search; by default 100, or those of the example")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="of the searches of the examples")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = args.examples.split(",")
    if args.what == "latency":
        found = (latency(name, args.n) for name in names)
    elif args.what == "overhead":
        found = (overhead(args.steps or 100, 3) for _ in range(1))
    elif args.what == "choice":
        found = (choice_of(count, args.n) for count in (2, 4, 8))
    else:
        found = (compare_example(name, [*map(int, args.seeds.split(","))], args.steps, args.n) for name in names)
    for entry in found:
        json.dump(entry, sys.stdout, indent=1)
        print(flush=True)


if __name__ == "__main__":
    main()
